"""Brings reference pictures to the size of the clip, in the way that was chosen."""

from __future__ import annotations

from typing import Literal, get_args

import torch.nn.functional as F
from torch import Tensor

from .pictures import fit_as_original

Fit = Literal["crop", "pad", "stretch", "crop, smooth"]
FITS: tuple[Fit, ...] = get_args(Fit)


def fit_pictures(
    pictures: Tensor, height: int, width: int, fit: Fit, *, original: bool = False
) -> tuple[Tensor, str | None]:
    """Resize pictures ``[N, H, W, C]`` (0..1) to ``height`` x ``width``.

    ``crop`` fills the frame and cuts what sticks out, evenly on both sides, ``original`` in the very way of
    :mod:`.pictures`; ``crop, smooth`` never does it that way. ``pad`` fits the picture inside and repeats its border;
    ``stretch`` changes its proportions. Returns the pictures and a sentence when something was changed.
    """
    own_height, own_width = pictures.shape[1:3]
    if (own_height, own_width) == (height, width):
        return pictures, None
    note = f"A reference of {own_height}x{own_width} was brought to {height}x{width} pixels ({fit})."
    if original and fit == "crop":
        return fit_as_original(pictures, height, width), note
    planes = pictures.movedim(-1, 1)
    if fit == "stretch":
        fitted = _resize(planes, height, width)
    else:
        scales = (height / own_height, width / own_width)
        scale = min(scales) if fit == "pad" else max(scales)
        inner = _resize(planes, max(1, round(own_height * scale)), max(1, round(own_width * scale)))
        fitted = _center(inner, height, width)
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
