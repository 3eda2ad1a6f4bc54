"""The rectified-flow schedule of Open-Sora: which noise levels a run of N steps visits.

Times are ``t`` in 0..1000 (1000 = pure noise) or ``sigma = t / 1000``. The uniform times are shifted by

    ``tau' = r * tau / (1 + (r - 1) * tau)``

where ``r`` is the release's shift (:mod:`..releases.time_shift`, :mod:`..releases.flow_shift`). Larger and longer
clips spend more of their steps at high noise.
Source: upstream ``timestep_transform`` (``opensora/schedulers/rf/rectified_flow.py`` of release 1.2,
``opensora/schedulers/rf/time_sampler.py`` of release 1.3).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000
"""Times run from this value (noise) to 0 (clean), as in training."""


IMAGE_FPS = 120.0
"""Frame rate that stands for "this is a single image" in the network's fps input."""


def timesteps(steps: int, shift: float = 1.0, *, discrete: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    """The ``steps`` times a run visits, float32 ``[steps]``, falling from 1000; the final 0 is left out.

    ``discrete`` rounds the uniform times to whole numbers before the shift. ``dtype`` is that of ``shift_for``: with
    bfloat16 and a shift below 0.5 the original's first time is a little below or above 1000.
    """
    if steps < 1:
        raise ValueError(f"The schedule got {steps} steps; at least 1 is needed.")
    if not (math.isfinite(shift) and shift > 0):
        raise ValueError(f"The schedule got a shift of {shift}; it must be a number above 0, 1 means no shift.")
    uniform = (1.0 - torch.arange(steps, dtype=torch.float64) / steps) * TRAIN_TIMESTEPS
    if discrete:
        uniform = uniform.round()
    return (shift_time(uniform / TRAIN_TIMESTEPS, shift, dtype) * TRAIN_TIMESTEPS).float()


def shift_time(tau: Tensor, shift: float, dtype: torch.dtype = torch.float32) -> Tensor:
    """Move times ``tau`` in 0..1 towards noise by ``shift`` (the formula at the top of this file).

    In the original the times are float32 whatever the shift is, but ``r - 1`` is still formed in the shift's dtype:
    half precision cannot hold it exactly where r < 0.5.
    """
    less_one = shift - 1.0 if dtype == torch.float32 else float(torch.tensor(shift, dtype=dtype) - 1.0)
    return shift * tau / (1.0 + less_one * tau)


def sigmas(steps: int, shift: float = 1.0, *, discrete: bool = False, dtype: torch.dtype = torch.float32) -> Tensor:
    """The noise levels of a run, float32 ``[steps + 1]``: ``timesteps / 1000`` followed by 0.

    None lies above 1, since there is no more noise than pure noise: the original's rounding can give such a time,
    and then skips its first masked step.
    """
    levels = timesteps(steps, shift, discrete=discrete, dtype=dtype).double() / TRAIN_TIMESTEPS
    return torch.cat([levels, levels.new_zeros(1)]).float().clamp_max(1.0)


def size_conditioning(
    height: int, width: int, frames: int, fps: float, dtype: torch.dtype = torch.float32
) -> dict[str, float]:
    """The size numbers the network and the schedule are told, after rounding to ``dtype``.

    Upstream: ``prepare_multi_resolution_info``. A single image is announced with 120 frames per second.
    """

    def rounded(value: float) -> float:
        return float(torch.tensor(value, dtype=dtype))

    return {
        "height": rounded(height),
        "width": rounded(width),
        "num_frames": rounded(frames),
        "ar": rounded(height / width),
        "fps": rounded(IMAGE_FPS if frames == 1 else fps),
    }
