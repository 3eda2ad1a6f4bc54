"""How far Open-Sora 1.2 and 1.3 move their times towards noise.

    ``r = sqrt(height * width / 512**2) * sqrt(f)``

where ``f`` counts frames by the version's own rule.
Source: upstream ``timestep_transform`` (``opensora/schedulers/rf/rectified_flow.py`` of release 1.2,
``opensora/schedulers/rf/time_sampler.py`` of release 1.3).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

REFERENCE_SIDE = 512
"""Side of the picture whose shift is 1 (``base_resolution`` of the original's timestep transform)."""


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


def _rule(version: str) -> FrameRule:
    try:
        return FRAME_RULES[version]
    except KeyError:
        known = " or ".join(FRAME_RULES)
        raise ValueError(f"There is no Open-Sora schedule for version {version!r}; use {known}.") from None
