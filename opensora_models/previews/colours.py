"""The linear map from latents to colours, fitted to an autoencoder: close enough to see what a clip is about.

An encoder is shown a still clip of smooth colours, and each latent is held against the mean colour of the pixels it
stands for. Smooth and still, because nothing else of a latent than its mean colour can be had linearly.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as functional
from torch import Tensor

from ..releases.lengths import Counting

CELLS = 16
"""Latents to a side of the clip: twice as many different ones as the largest autoencoder has channels."""
RIDGE = 1e-4
"""Of the mean variance of a channel: keeps channels that hardly vary from taking part with huge factors."""
LEAST_FRAMES, MOST_FRAMES = 5, 40
SEED = 25


@dataclass(frozen=True)
class Colours:
    """``factors`` a row of red, green and blue for every channel, and ``bias``; colours come out in [-1, 1]."""

    factors: tuple[tuple[float, float, float], ...]
    bias: tuple[float, float, float]


def fit_colours(latents: Tensor, colours: Tensor) -> Colours:
    """The map with the least squared error from ``latents`` [N, C] to ``colours`` [N, 3] in [-1, 1].

    Raises ValueError where an autoencoder gives no numbers.
    """
    x, y = latents.double(), colours.double()
    if not bool(torch.isfinite(x).all()):
        raise ValueError("The autoencoder gives latents that are not numbers, so no colours can be fitted to it.")
    middle, mean = x.mean(dim=0), y.mean(dim=0)
    centred = x - middle
    products = centred.T @ centred
    ridge = RIDGE * products.diagonal().mean().clamp_min(1e-12)
    products += ridge * torch.eye(len(products), dtype=products.dtype, device=products.device)
    factors = torch.linalg.solve(products, centred.T @ (y - mean))
    rows = tuple((float(r), float(g), float(b)) for r, g, b in factors.tolist())
    red, green, blue = (mean - middle @ factors).tolist()
    return Colours(rows, (red, green, blue))


def whole_length(counting: Counting) -> int:
    """Frames of a short clip of more than one latent frame that comes back as long as it went in."""
    lengths = range(LEAST_FRAMES, MOST_FRAMES)
    return next((n for n in lengths if counting.frames(counting.latents(n)) == n), LEAST_FRAMES)


def colour_clip(frames: int, space: int) -> Tensor:
    """A still clip of smooth random colours, images [frames, H, W, 3] in [0, 1], ``space`` pixels a latent."""
    coarse = torch.rand(1, 3, CELLS // 2, CELLS // 2, generator=torch.Generator().manual_seed(SEED))
    side = CELLS * space
    picture = functional.interpolate(coarse, size=(side, side), mode="bilinear", align_corners=True)
    return picture[0].movedim(0, -1).expand(frames, side, side, 3).contiguous()


def mean_colours(clip: Tensor, latent_frames: int, height: int, width: int) -> Tensor:
    """Of a still clip [F, H, W, 3] in [0, 1] the colour of every latent, [t, h, w, 3] in [-1, 1]."""
    small = functional.adaptive_avg_pool2d(clip[:1].movedim(-1, 1), (height, width)).movedim(1, -1)
    return (2 * small - 1).expand(latent_frames, height, width, 3)
