"""How much memory one forward needs beside the weights."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

from .config import MMDiTConfig
from .portions import MOST_ELEMENTS, MOST_ELEMENTS_ELSEWHERE

FLOAT_SIZE = 4

# In tensors of one value per token (text and image) and hidden channel. In a single block live the tokens, queries,
# keys, values and the result of attention; the MLP's hidden layer lies beside the values.
ATTENTION_TENSORS = 5.2
# While queries and keys are normalised and rotated there are the tokens, the modulated tokens, both of them and, of a
# portion, float32 copies.
# A layer that makes queries, keys and values at once holds all three meanwhile.
ROTATED_TENSORS, ROTATED_FUSED = 4, 7
ROTATED_COPIES = 6.5


def activation_bytes(
    config: MMDiTConfig, latent_shape: Sequence[int], text_tokens: int, dtype_size: int, device_type: str = "cuda"
) -> float:
    """Peak bytes of activations for latents [B, C, T, h, w] computed in a dtype of ``dtype_size`` bytes.

    Assumes attention that does not hold all its scores at once, as every kernel ComfyUI offers. Within 25 percent of
    the counted peak, see tests/unit/test_mmdit_memory.py; not yet compared with a GPU's own counter.
    """
    batch, _, *cells = latent_shape
    tokens = batch * (prod(cells) // config.patch_size**2 + text_tokens)
    return bytes_of_values(config, tokens * config.hidden_size, dtype_size, device_type)


def bytes_of_values(config: MMDiTConfig, values: float, dtype_size: int, device_type: str = "cuda") -> float:
    """The same for so many numbers in all tokens, those of the text among them."""
    rotated = min(values, MOST_ELEMENTS.get(device_type, MOST_ELEMENTS_ELSEWHERE)) * FLOAT_SIZE * ROTATED_COPIES
    whole = values * dtype_size * (ATTENTION_TENSORS + config.mlp_ratio)
    return max(whole, values * dtype_size * (ROTATED_FUSED if config.fused_qkv else ROTATED_TENSORS) + rotated)
