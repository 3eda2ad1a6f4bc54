"""How much memory one forward needs beside the weights."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ..stdit3.config import STDiT3Config
from ..stdit3.portions import MOST_ELEMENTS, MOST_ELEMENTS_ELSEWHERE

# In tensors of one value per token and hidden channel: what lives throughout a block (the tokens, the normalised
# tokens, the branch and their sum), and what self attention adds (queries, keys, values and their float32 rotation),
# which is made in portions. Counted by following every allocation of a forward; see tests/comfy/test_memory.py.
RESIDENT_TENSORS = 4
JOINED_TENSORS = 6  # ... and while many small portions are joined to the whole
ATTENTION_TENSORS = 10
QKV_TENSORS = 3  # what the size of a portion is measured in


def activation_bytes(
    config: STDiT3Config, latent_shape: Sequence[int], dtype_size: int, device_type: str = "cuda"
) -> float:
    """Peak bytes of activations for latents [B, C, T, h, w] computed in a dtype of ``dtype_size`` bytes.

    Assumes attention that does not hold all its scores at once, as every kernel ComfyUI offers. Within 25 percent of
    the counted peak for a thousand tokens and more; not yet compared with a GPU's own counter.
    """
    batch, _, frames, height, width = latent_shape
    values = batch * frames * math.ceil(height / 2) * math.ceil(width / 2) * config.hidden_size
    most = MOST_ELEMENTS.get(device_type, MOST_ELEMENTS_ELSEWHERE)
    portions = max(1, math.ceil(values * QKV_TENSORS / most))
    return values * dtype_size * max(JOINED_TENSORS, RESIDENT_TENSORS + ATTENTION_TENSORS / portions)
