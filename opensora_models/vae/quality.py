"""How close two clips are, frame by frame: PSNR and SSIM."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ..releases.groups import SPATIAL_FACTOR
from ..releases.known import RELEASES

# SSIM's own constants: an 11-pixel Gaussian of sigma 1.5, and stabilisers for values in [0, 1] (Wang et al., 2004).
WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
IDENTICAL_PSNR = 100.0
"""What identical frames are given instead of infinity, so that plots and means stay finite."""


def psnr(a: Tensor, b: Tensor) -> list[float]:
    """Peak signal-to-noise ratio in dB per frame of [T, H, W, 3] in [0, 1]; 100 at most."""
    errors = (a.float() - b.float()).square().flatten(1).mean(1)
    return [min(IDENTICAL_PSNR, -10 * math.log10(error)) if error > 0 else IDENTICAL_PSNR for error in errors.tolist()]


def ssim(a: Tensor, b: Tensor) -> list[float]:
    """Structural similarity per frame of [T, H, W, 3] in [0, 1], mean over channels and positions."""
    return [_ssim(x, y) for x, y in zip(a, b, strict=True)]


def _ssim(a: Tensor, b: Tensor) -> float:
    x, y = (image.float().movedim(-1, 0).unsqueeze(1) for image in (a, b))
    kernel = _gaussian(min(WINDOW, *x.shape[-2:])).to(x.device)

    def blur(values: Tensor) -> Tensor:
        return F.conv2d(F.conv2d(values, kernel[None, None, :, None]), kernel[None, None, None, :])

    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y = blur(x * x) - mean_x.square(), blur(y * y) - mean_y.square()
    covariance = blur(x * y) - mean_x * mean_y
    top = (2 * mean_x * mean_y + C1) * (2 * covariance + C2)
    bottom = (mean_x.square() + mean_y.square() + C1) * (var_x + var_y + C2)
    return float((top / bottom).mean())


def _gaussian(size: int) -> Tensor:
    offsets = torch.arange(size, dtype=torch.float32) - (size - 1) / 2
    weights = torch.exp(-offsets.square() / (2 * SIGMA**2))
    return weights / weights.sum()


def same_shape(original: Tensor, decoded: Tensor) -> tuple[Tensor, Tensor]:
    """Both clips [T, H, W, 3] cut to the frames and, centred, to the size they share.

    Raises ValueError where that would compare different things: sizes more apart than an encoder crops.
    """
    frames = min(len(original), len(decoded))
    height, width = (min(original.shape[axis], decoded.shape[axis]) for axis in (1, 2))
    if not all(_belong_together(original.shape[axis], decoded.shape[axis]) for axis in (1, 2)):
        raise ValueError(
            f"The clips are {original.shape[2]} x {original.shape[1]} and {decoded.shape[2]} x {decoded.shape[1]} "
            "pixels; compare a clip with its own reconstruction of the same size."
        )
    return tuple(_centre(clip[:frames, ..., :3], height, width) for clip in (original, decoded))  # type: ignore[return-value]


def _belong_together(side: int, decoded: int) -> bool:
    """Whether sides differ by no more than is cropped to whole latents of some release."""
    apart = abs(side - decoded)
    return apart <= SPATIAL_FACTOR or any(
        apart < release.latents.space and decoded % release.latents.space == 0 for release in RELEASES.values()
    )


def compared(original: Tensor, decoded: Tensor) -> str:
    """What :func:`same_shape` leaves out of two clips, as a sentence; "" if nothing."""
    shapes = {
        f"{len(clip)} frames of {clip.shape[2]} x {clip.shape[1]}": clip.shape[:3] for clip in (original, decoded)
    }
    frames, height, width = (min(sizes) for sizes in zip(*shapes.values(), strict=True))
    if len(shapes) == 1:
        return ""
    return f"Of {' and '.join(shapes)} pixels, the first {frames} and the middle {width} x {height} are compared."


def _centre(clip: Tensor, height: int, width: int) -> Tensor:
    top, left = (clip.shape[1] - height) // 2, (clip.shape[2] - width) // 2
    return clip[:, top : top + height, left : left + width]
