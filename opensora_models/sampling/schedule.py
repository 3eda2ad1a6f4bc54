"""The rectified-flow schedule of Open-Sora: which noise levels a run of N steps visits.

Times are ``t`` in 0..1000 (1000 = pure noise) or ``sigma = t / 1000``. The uniform times are shifted by

    ``tau' = r * tau / (1 + (r - 1) * tau)``,  ``r = sqrt(height * width / 512**2) * sqrt(f)``

where ``f`` counts frames by the version's own rule. Larger and longer clips spend more of their steps at high noise.
Source: upstream ``timestep_transform`` (``opensora/schedulers/rf/rectified_flow.py`` of release 1.2,
``opensora/schedulers/rf/time_sampler.py`` of release 1.3).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

TRAIN_TIMESTEPS = 1000
"""Times run from this value (noise) to 0 (clean), as in training."""

REFERENCE_SIDE = 512
"""Side of the picture whose shift is 1 (``base_resolution`` of the original's timestep transform)."""

IMAGE_FPS = 120.0
"""Frame rate that stands for "this is a single image" in the network's fps input."""


@dataclass(frozen=True)
class FrameRule:
    """How one version counts frames in the shift."""

    count: Callable[[Tensor], Tensor]
    scalable: bool
    """Whether ``transform_scale`` multiplies the shift of videos."""


FRAME_RULES: dict[str, FrameRule] = {
    "1.2": FrameRule(lambda frames: frames // 17 * 5, scalable=False),
    "1.3": FrameRule(lambda frames: (frames - 1) // 4, scalable=True),
}


def shift_for(
    version: str,
    height: float,
    width: float,
    frames: float,
    *,
    transform_scale: float = 1.0,
    scale_temporal: bool = True,
    dtype: torch.dtype = torch.float32,
) -> float:
    """The shift ``r`` of a clip.

    Args:
        version: "1.2" or "1.3".
        height, width: size in pixels.
        frames: number of pixel frames (not latent frames).
        transform_scale: extra factor of v1.3 videos (released value 1).
        scale_temporal: False counts every clip as a single image (v1.3 only).
        dtype: arithmetic of the rule; the released pipelines used bfloat16, exact work uses float32.

    Clips too short to count as one group (v1.2 below 17 frames, v1.3 below 5) would have shift 0 and a
    first time of 0/0 in the original; they are counted as one frame here.
    """
    rule = _rule(version)
    if min(height, width, frames) < 1:
        raise ValueError(
            f"The schedule got {frames:g} frames of {height:g}x{width:g}; height, width and frames start at 1."
        )
    h, w, n = (torch.tensor(float(value), dtype=dtype) for value in (height, width, frames))
    space = (h * w / REFERENCE_SIDE**2).sqrt()
    is_video = frames > 1 and (scale_temporal or not rule.scalable)
    time = rule.count(n).clamp_min(1.0).sqrt() if is_video else torch.ones((), dtype=dtype)
    factor = transform_scale if is_video and rule.scalable else 1.0
    return float(space * time * factor)


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


def _rule(version: str) -> FrameRule:
    try:
        return FRAME_RULES[version]
    except KeyError:
        known = " or ".join(FRAME_RULES)
        raise ValueError(f"There is no Open-Sora schedule for version {version!r}; use {known}.") from None
