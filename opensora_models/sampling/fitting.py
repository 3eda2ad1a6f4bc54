"""Brings reference pictures to the size of the clip, in the way that was chosen."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

Fit = Literal["crop", "pad", "stretch"]
FITS: tuple[Fit, ...] = get_args(Fit)


def fit_pictures(pictures: Tensor, height: int, width: int, fit: Fit) -> tuple[Tensor, str | None]:
    """Resize pictures ``[N, H, W, C]`` (0..1) to ``height`` x ``width``.

    ``crop`` fills the frame and cuts what sticks out, evenly on both sides; ``pad`` fits the picture inside and repeats
    its border; ``stretch`` changes its proportions. Returns the pictures and a sentence when something was changed.
    """
    own_height, own_width = pictures.shape[1:3]
    if (own_height, own_width) == (height, width):
        return pictures, None
    planes = pictures.movedim(-1, 1)
    if fit == "stretch":
        fitted = _resize(planes, height, width)
    else:
        scales = (height / own_height, width / own_width)
        scale = max(scales) if fit == "crop" else min(scales)
        inner = _resize(planes, max(1, round(own_height * scale)), max(1, round(own_width * scale)))
        fitted = _center(inner, height, width)
    note = f"A reference of {own_height}x{own_width} was brought to {height}x{width} pixels ({fit})."
    return fitted.movedim(1, -1).contiguous(), note


def _resize(planes: Tensor, height: int, width: int) -> Tensor:
    if planes.shape[2:] == (height, width):
        return planes
    resized = F.interpolate(planes.float(), (height, width), mode="bicubic", antialias=True, align_corners=False)
    return resized.clamp(0.0, 1.0).to(planes.dtype)


def _center(planes: Tensor, height: int, width: int) -> Tensor:
    """Cut or pad every side to the wanted size, keeping the middle in the middle."""
    for dim, wanted in ((2, height), (3, width)):
        surplus = planes.shape[dim] - wanted
        if surplus > 0:
            planes = planes.narrow(dim, surplus // 2, wanted)
    top, left = (height - planes.shape[2]) // 2, (width - planes.shape[3]) // 2
    bottom, right = height - planes.shape[2] - top, width - planes.shape[3] - left
    return F.pad(planes, (left, right, top, bottom), mode="replicate") if max(top, left, bottom, right) else planes
