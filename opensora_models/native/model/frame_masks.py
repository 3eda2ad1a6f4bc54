"""Per-frame edit ratios: from ComfyUI's noise mask to the frames that take part in a step.

A ratio of 1 makes a frame freely, 0 keeps it, 0.3 keeps it until the noise level has fallen to 0.3. The sampler and the
network must agree on the moment, so both read the same whole numbers (see :mod:`.conds`).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...sampling.masks import active_frames
from ...sampling.schedule import TRAIN_TIMESTEPS
from .conds import FIXED_POINT, from_fixed, to_fixed


def active_at(ratios: Tensor, timestep: Tensor) -> Tensor:
    """Where ``min(t, 1000) <= 1000 * ratio``: bool of the shape of ``ratios`` (int64 millionths, [B, 1, T, h, w]).

    ``timestep`` is [B] on the 0..1000 scale.
    """
    time = timestep.float().clamp_max(TRAIN_TIMESTEPS).reshape(-1, *[1] * (ratios.ndim - 1))
    return from_fixed(ratios) * TRAIN_TIMESTEPS >= time


def denoise_mask_function(sigma: Tensor, denoise_mask: Tensor, extra_options: dict[str, Any]) -> Tensor:
    """ComfyUI's hook on the noise mask: ratios [B, C, T, h, w] become 1 where this step may change the latent, else 0.

    Ratios are rounded to millionths first because resizing a mask leaves rounding noise of its own.
    """
    level = sigma.reshape(-1, *[1] * (denoise_mask.ndim - 1))
    return active_frames(from_fixed(to_fixed(denoise_mask)), level).to(denoise_mask.dtype)


def ratios_from_mask(denoise_mask: Tensor) -> tuple[Tensor, Tensor | None]:
    """Splits a noise mask [B, C, T, h, w] into ratios per frame and, where a frame is not uniform, per latent pixel.

    Returns int64 millionths: [B, 1, T, 1, 1] (a frame takes part as soon as any of its pixels does) and [B, 1, T, h, w]
    or None when every frame has one ratio.
    """
    pixels = to_fixed(denoise_mask[:, :1])
    highest = pixels.amax(dim=(3, 4), keepdim=True)
    uniform = torch.equal(highest, pixels.amin(dim=(3, 4), keepdim=True))
    return highest, None if uniform else pixels


def is_free(ratios: Tensor) -> bool:
    """True if every frame may change from the first step on, so that no mask is needed at all."""
    return bool((ratios >= FIXED_POINT).all())
