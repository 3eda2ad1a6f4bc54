"""How much memory a job needs, and whether the machine has it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import comfy.model_management
import torch
from torch import Tensor

from ..sampling.effort import Needs
from ..stdit3.config import STDiT3Config
from ..stdit3.portions import MOST_ELEMENTS, MOST_ELEMENTS_ELSEWHERE

# In tensors of one value per token and hidden channel: what lives throughout a block (the tokens, the normalised
# tokens, the branch and their sum), and what self attention adds (queries, keys, values and their float32 rotation),
# which is made in portions. Counted by following every allocation of a forward; see tests/comfy/test_memory.py.
RESIDENT_TENSORS = 4
JOINED_TENSORS = 6  # ... and while many small portions are joined to the whole
ATTENTION_TENSORS = 10
QKV_TENSORS = 3  # what the size of a portion is measured in

SAMPLER_TENSORS = 5
"""Float32 tensors of a latent's size that a run keeps in main memory where it is computed on a card: the latent and its
copies, the noise and the result."""
SAMPLER_TENSORS_HERE = 18
"""... and where it is computed there too, before and after a row: what the sampler holds, and what ComfyUI sums up of
two rows that it computes one after the other. Counted, see tests/comfy/test_memory.py."""

SHARED_WITH_SYSTEM = ("cpu", "mps")
"""Devices whose memory is the system's: there the operating system kills the program where a card would say no."""


def activation_bytes(
    config: STDiT3Config, latent_shape: Sequence[int], dtype_size: int, device_type: str = "cuda"
) -> float:
    """Peak bytes of activations for latents [B, C, T, h, w] computed in a dtype of ``dtype_size`` bytes.

    Assumes attention that does not hold all its scores at once, as every kernel ComfyUI offers. Within 25 percent of
    the counted peak for a thousand tokens and more; not yet compared with a GPU's own counter.
    """
    batch, _, frames, height, width = latent_shape
    values = batch * frames * math.ceil(height / 2) * math.ceil(width / 2) * config.hidden_size
    return bytes_of_values(values, dtype_size, device_type)


def bytes_of_values(values: float, dtype_size: int, device_type: str = "cuda") -> float:
    """The same for so many numbers in all tokens."""
    most = MOST_ELEMENTS.get(device_type, MOST_ELEMENTS_ELSEWHERE)
    portions = max(1, math.ceil(values * QKV_TENSORS / most))
    return values * dtype_size * max(JOINED_TENSORS, RESIDENT_TENSORS + ATTENTION_TENSORS / portions)


def check_room(needed: float, work: str, instead: str) -> None:
    """Refuse work that the system's free memory cannot hold, before the operating system ends the program.

    Args:
        needed: bytes; work: what needs them, at the start of a sentence; instead: what to choose.

    Raises:
        ValueError: with both sizes in GB.
    """
    free = max(0.0, comfy.model_management.get_free_memory(torch.device("cpu")))
    if needed > free:
        raise ValueError(
            f"{work} needs about {needed / 2**30:,.1f} GB of memory, and this machine has {free / 2**30:,.1f} GB free; "
            f"choose {instead}."
        )


def check_latents_fit(shape: Sequence[int], clips: int = 1) -> None:
    """Refuse a latent [B, C, T, h, w] that cannot be sampled and kept ``clips`` times over; see :func:`check_room`."""
    size = "×".join(str(side) for side in shape)
    here = comfy.model_management.get_torch_device().type in SHARED_WITH_SYSTEM
    needed = 4.0 * math.prod(shape) * ((SAMPLER_TENSORS_HERE if here else SAMPLER_TENSORS) + clips - 1)
    check_room(needed, f"Sampling latents of {size}", "a smaller size, fewer frames or a smaller batch")


def check_forward_fits(needed: float, x: Tensor) -> None:
    """Refuse latents [B, C, T, h, w] whose forward of ``needed`` bytes the system's memory cannot hold.

    A card says so by itself.
    """
    if x.device.type in SHARED_WITH_SYSTEM:
        size = "×".join(str(side) for side in x.shape)
        check_room(needed, f"One step on latents of {size}", "a smaller size, fewer frames or a smaller batch")


def check_frames_fit(shape: Sequence[int]) -> None:
    """Refuse decoded pixels [B, 3, T, H, W] that the system's memory cannot hold as images."""
    batch, _, frames, height, width = shape
    work = f"Holding {batch * frames} decoded frames of {height}×{width} pixels"
    check_room(
        4.0 * math.prod(shape), work, "Open-Sora Decode to Video, which holds a few at a time, or a smaller size"
    )


def model_needs(model: Any, shape: Sequence[int]) -> Needs:
    """What an Open-Sora MODEL needs to sample one clip of latents [B, C, T, h, w], as ComfyUI counts it."""
    return Needs({"this MODEL's": float(model.model_size())}, model.model.memory_required([1, *shape[1:]]))


def card_bytes() -> float | None:
    """Bytes of the graphics card that ComfyUI lets models use; None where it uses none."""
    device = comfy.model_management.get_torch_device()
    if device.type in SHARED_WITH_SYSTEM:
        return None
    return comfy.model_management.get_total_memory(device) - comfy.model_management.extra_reserved_memory()
