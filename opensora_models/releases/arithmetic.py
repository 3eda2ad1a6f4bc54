"""What one row through a released network costs: operations (one multiply-add = 2) and memory."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

from ..mmdit.config import TIME_WIDTH, MMDiTConfig
from ..mmdit.memory import activation_bytes
from .groups import Version
from .stdit3_cost import RELEASED as STDIT3_SIZES
from .stdit3_cost import operations_per_row as stdit3_operations

LatentCells = tuple[int, int, int]
"""Latent frames, height and width."""

Operations = Callable[[LatentCells, int], int]
"""``(latent cells, text tokens) -> operations``."""


def mmdit_operations(config: MMDiTConfig) -> Operations:
    """The rule for an MMDiT: ``24·(D + S)·h²·L`` and attention ``4·(D + S)·h·L²`` at the released MLP width."""

    def count(cells: LatentCells, text_tokens: int) -> int:
        hidden, mlp = config.hidden_size, config.mlp_hidden
        visual = prod(cells) // config.patch_size**2
        tokens, blocks = visual + text_tokens, config.depth + config.depth_single_blocks
        linear = 2 * tokens * blocks * (4 * hidden**2 + 2 * hidden * mlp)
        attention = 4 * blocks * hidden * tokens**2
        vectors = (12 * config.depth + 3 * config.depth_single_blocks + 2) * hidden**2
        embedders = TIME_WIDTH * (2 if config.guidance_embed else 1) + config.vec_in_dim
        vectors += hidden * embedders + (3 if config.guidance_embed else 2) * hidden**2
        reference = config.reference_features if config.cond_embed else 0
        ends = visual * hidden * (2 * config.in_channels + reference) + text_tokens * config.context_in_dim * hidden
        return linear + attention + 2 * vectors + 2 * ends

    return count


Bytes = Callable[[LatentCells, int, int], float]
"""``(latent cells, text tokens, bytes of a number) -> bytes``."""


def mmdit_bytes(config: MMDiTConfig) -> Bytes:
    """Memory that one row through an MMDiT needs beside the weights."""

    def count(cells: LatentCells, text_tokens: int, size: int) -> float:
        return activation_bytes(config, (1, config.channels, *cells), text_tokens, size)

    return count


def released_stdit3_operations(version: Version) -> Operations:
    """The rule for the released 1.2 or 1.3."""

    def count(cells: LatentCells, text_tokens: int) -> int:
        return stdit3_operations(STDIT3_SIZES[version], cells, text_tokens)

    return count
