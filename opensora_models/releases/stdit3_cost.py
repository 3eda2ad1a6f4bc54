"""What a clip costs: tokens and arithmetic of the released 1.1 B STDiT3 models.

Counts are operations (one multiply-add = 2) of matrix products and attention, as an operation counter on the
original network gives them; norms and activations are memory traffic and come on top.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from .groups import LATENT_CHANNELS, Version

TEXT_TOKENS = 300
"""Longest text; a short prompt costs less."""


@dataclass(frozen=True)
class NetworkSize:
    """The numbers of a network that its arithmetic depends on. ``window`` is (height, width) in tokens or None."""

    hidden_size: int = 1152
    depth: int = 28
    in_channels: int = 4
    caption_channels: int = 4096
    mlp_ratio: float = 4.0
    window: tuple[int, int] | None = None


RELEASED: dict[Version, NetworkSize] = {
    "1.2": NetworkSize(in_channels=LATENT_CHANNELS["1.2"]),
    "1.3": NetworkSize(in_channels=LATENT_CHANNELS["1.3"], window=(8, 8)),
}


def token_grid(latent_shape: tuple[int, int, int]) -> tuple[int, int, int]:
    """Tokens in time, height and width of a latent [T, h, w]: patches of 1×2×2, odd sides padded."""
    time, height, width = latent_shape
    return time, math.ceil(height / 2), math.ceil(width / 2)


def operations_per_row(
    network: NetworkSize,
    latent_shape: tuple[int, int, int],
    text_tokens: int = TEXT_TOKENS,
    *,
    count_padding: bool = True,
) -> int:
    """Operations of one sample going once through the network.

    ``count_padding``: count a windowed grid as padded to whole windows, as the original computes it.
    """
    time, height, width = token_grid(latent_shape)
    hidden, depth = network.hidden_size, network.depth
    area = height * width
    tokens = time * area
    padded, sequence = tokens, time
    if network.window:
        rows, columns = network.window
        if count_padding:
            padded = time * math.ceil(height / rows) * rows * math.ceil(width / columns) * columns
        else:
            rows, columns = min(rows, height), min(columns, width)
        sequence = rows * columns * time
    # Per token and block: qkv 3, proj 1, cross q and proj 2, MLP 2·ratio (times hidden²).
    ungrouped = 2 + 2 * network.mlp_ratio
    linear = 2 * depth * hidden**2 * (tokens * (4 + ungrouped) + tokens * ungrouped + 4 * padded)
    spatial = 4 * depth * tokens * area * hidden
    temporal = 4 * depth * padded * sequence * hidden
    cross = 2 * depth * (4 * tokens * text_tokens * hidden + 4 * text_tokens * hidden**2)
    ends = 2 * tokens * 4 * hidden * 3 * network.in_channels
    ends += 2 * text_tokens * (network.caption_channels * hidden + hidden**2)
    return int(linear + spatial + temporal + cross + ends)
