"""How close two clips are, frame by frame: PSNR and SSIM."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

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

    Raises ValueError where that would compare different things: sizes more than a latent cell apart.
    """
    frames = min(len(original), len(decoded))
    height, width = (min(original.shape[axis], decoded.shape[axis]) for axis in (1, 2))
    if max(original.shape[1] - height, decoded.shape[1] - height, original.shape[2] - width,
           decoded.shape[2] - width) > 8:  # fmt: skip
        raise ValueError(
            f"The clips are {original.shape[2]} x {original.shape[1]} and {decoded.shape[2]} x {decoded.shape[1]} "
            "pixels; compare a clip with its own reconstruction of the same size."
        )
    return tuple(_centre(clip[:frames, ..., :3], height, width) for clip in (original, decoded))  # type: ignore[return-value]


def _centre(clip: Tensor, height: int, width: int) -> Tensor:
    top, left = (clip.shape[1] - height) // 2, (clip.shape[2] - width) // 2
    return clip[:, top : top + height, left : left + width]
