"""What ComfyUI needs to know about Open-Sora latents: channels, normalisation, and how to preview them.

A LATENT carries the autoencoder's own latents [B, C, T, h, w]; ComfyUI calls ``process_in`` before sampling and
``process_out`` after it, so saved latents and both autoencoders stay exchangeable with other programs.
"""

from __future__ import annotations

import math
from typing import Any

import comfy.latent_formats
import torch
from torch import Tensor

from ...vae.hunyuan import HunyuanConfig
from ...vae.statistics import V12_STATISTICS, V13_STATISTICS

# A preview shows at most this many latent frames, evenly spaced; more would be too small to see.
PREVIEW_FRAMES = 9

# The normalisation the released 1.3 models were trained with, among the autoencoder's options.
V13_NORMALISATION = V13_STATISTICS["video"]

# Open-Sora 1.2 latents come from a temporal autoencoder over Stable Diffusion XL latents. Provisional: the published
# linear map of SDXL latents to RGB, applied to the normalised channels. Shapes and motion are right, colours are a
# guess until the map is fitted to the trained autoencoder.
V12_RGB = [
    [0.3651, 0.4232, 0.4341],
    [-0.2533, -0.0042, 0.1068],
    [0.1076, 0.1111, -0.0362],
    [-0.3165, -0.2492, -0.2188],
]
V12_RGB_BIAS = [0.1084, -0.0175, -0.0011]


def _false_colours(channels: int, strength: float = 0.25) -> list[list[float]]:
    """Rows of RGB factors that spread the channels evenly around the colour circle."""
    turn = 2 * math.pi
    return [[strength * math.cos(turn * (c / channels + k / 3)) for k in range(3)] for c in range(channels)]


def contact_sheet(latents: Tensor) -> Tensor:
    """[B, C, T, h, w] -> [B, C, rows*h, columns*w]: up to nine evenly spaced frames in reading order.

    Also takes the single-frame case, which becomes one picture. Unused places of the last row stay zero.
    """
    frames = latents.shape[2]
    shown = min(frames, PREVIEW_FRAMES)
    picked = [round(i * (frames - 1) / max(shown - 1, 1)) for i in range(shown)]
    columns = math.ceil(math.sqrt(shown))
    rows = math.ceil(shown / columns)
    blank = torch.zeros_like(latents[:, :, 0])
    tiles = [latents[:, :, index] for index in picked] + [blank] * (rows * columns - shown)
    lines = [torch.cat(tiles[row * columns : (row + 1) * columns], dim=3) for row in range(rows)]
    return torch.cat(lines, dim=2)


class OpenSora12(comfy.latent_formats.LatentFormat):
    """Four channels, five latent frames per 17 frames, eight pixels per latent."""

    latent_channels = 4
    latent_dimensions = 3
    # 17 frames are 5 latents; 4 is the ratio inside a group, which core uses to size foreign empty latents.
    temporal_downscale_ratio = 4
    latent_rgb_factors = V12_RGB
    latent_rgb_factors_bias = V12_RGB_BIAS
    latent_rgb_factors_reshape = staticmethod(contact_sheet)

    def process_in(self, latent: Tensor) -> Tensor:
        """Autoencoder latents [B, 4, T, h, w] -> what the diffusion model sees."""
        return V12_STATISTICS.normalise(latent)

    def process_out(self, latent: Tensor) -> Tensor:
        """What the diffusion model made [B, 4, T, h, w] -> autoencoder latents."""
        return V12_STATISTICS.denormalise(latent)


class OpenSora13(comfy.latent_formats.LatentFormat):
    """Sixteen channels, five latent frames per 17 frames, eight pixels per latent."""

    latent_channels = 16
    latent_dimensions = 3
    temporal_downscale_ratio = 4
    # Provisional false colours: shapes and motion, not true colours; no trained autoencoder to fit a map to.
    latent_rgb_factors = _false_colours(16)
    latent_rgb_factors_reshape = staticmethod(contact_sheet)

    def process_in(self, latent: Tensor) -> Tensor:
        """Autoencoder latents [B, 16, T, h, w] -> what the diffusion model sees."""
        return V13_NORMALISATION.normalise(latent)

    def process_out(self, latent: Tensor) -> Tensor:
        """What the diffusion model made [B, 16, T, h, w] -> autoencoder latents."""
        return V13_NORMALISATION.denormalise(latent)


class OpenSora20(comfy.latent_formats.LatentFormat):
    """Sixteen channels, a latent frame for the first frame and for every four after it, eight pixels per latent."""

    latent_channels = 16
    latent_dimensions = 3
    temporal_downscale_ratio = 4
    scale_factor = HunyuanConfig().scale
    # The released autoencoder is HunyuanVideo's, for which ComfyUI has a fitted map.
    latent_rgb_factors = comfy.latent_formats.HunyuanVideo.latent_rgb_factors
    latent_rgb_factors_bias = comfy.latent_formats.HunyuanVideo.latent_rgb_factors_bias
    latent_rgb_factors_reshape = staticmethod(contact_sheet)


class OpenSora20HighCompression(comfy.latent_formats.LatentFormat):
    """128 channels, a latent frame for four frames, 32 pixels per latent.

    Not scaled: the factor of released latents is a setting of the autoencoder's file.
    """

    latent_channels = 128
    latent_dimensions = 3
    temporal_downscale_ratio = 4
    spacial_downscale_ratio = 32
    # Provisional false colours, of more channels; no trained autoencoder to fit a map to.
    latent_rgb_factors = _false_colours(128, 0.1)
    latent_rgb_factors_reshape = staticmethod(contact_sheet)


LATENT_FORMATS: dict[str, type[Any]] = {
    "1.2": OpenSora12,
    "1.3": OpenSora13,
    "2.0": OpenSora20,
    "2.0 high compression": OpenSora20HighCompression,
}
"""By the id of the release."""
