"""How much memory one forward needs beside the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..stdit3.config import STDiT3Config


def activation_bytes(config: STDiT3Config, latent_shape: Sequence[int], dtype_size: int) -> float:
    """Peak bytes of activations for latents [B, C, T, h, w] computed in a dtype of ``dtype_size`` bytes."""
    batch, _, frames, height, width = latent_shape
    tokens = batch * frames * math.ceil(height / 2) * math.ceil(width / 2)
    return tokens * config.hidden_size * dtype_size * 12.0
