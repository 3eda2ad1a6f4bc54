"""Latents of training clips, fast: the shipped recipe's encoder is a linear code of single pictures.

:class:`LatentCode` measures that linear map from the encoder itself and checks it, so that a training step can draw
and encode fresh clips in milliseconds instead of running the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..opensora_models.frames import FRAMES_PER_LATENT, GROUP_FRAMES
from ..opensora_models.vae.causal import CausalEncoder
from ..opensora_models.vae.statistics import V13_STATISTICS
from .rendering import render_frames
from .scenes import Scene

PATCH = 8
TOLERANCE = 0.01  # largest difference from the encoder, of latents whose deviation is about 1


class LatentCode:
    """Normalised latents of frames: unit = W·patch + b for each 8×8 patch."""

    def __init__(self, encoder: CausalEncoder) -> None:
        inputs = 3 * PATCH * PATCH
        probes = torch.cat([torch.zeros(1, inputs), torch.eye(inputs)])
        pictures = F.pixel_shuffle(probes[:, :, None, None], PATCH)
        values = _unit_latents(encoder, pictures)[:, :, 0, 0]
        self.bias = values[0]
        self.weight = (values[1:] - values[0]).T

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in [-1, 1] to normalised latents [N, C, H/8, W/8]."""
        patches = F.pixel_unshuffle(pictures, PATCH)
        return torch.einsum("kc,nchw->nkhw", self.weight, patches) + self.bias[:, None, None]

    def pictures(self, latents: Tensor) -> Tensor:
        """The pictures [B, 3, l, H, W] whose code is nearest to normalised latents: a look without a decoder."""
        patches = torch.einsum(
            "ck,bklhw->blchw", torch.linalg.pinv(self.weight), latents - self.bias[:, None, None, None]
        )
        return F.pixel_shuffle(patches, PATCH).transpose(1, 2)

    @torch.no_grad()
    def check(self, encoder: CausalEncoder, video: Tensor) -> None:
        """Raise ValueError unless ``encoder`` gives the same latents for ``video`` [B, 3, T, H, W], one group."""
        wanted, got = encoder(video).chunk(2, dim=1)[0], self.latents(video)
        difference = float((got - wanted).abs().max())
        if difference > TOLERANCE:
            raise ValueError(f"The encoder is not a linear code of single frames: latents differ by {difference:.3f}.")

    def latents(self, video: Tensor) -> Tensor:
        """The encoder's own latents (before normalisation) of one group [B, 3, T, H, W]."""
        unit = self(video[:, :, ::FRAMES_PER_LATENT].transpose(1, 2).flatten(0, 1))
        return V13_STATISTICS["video"].denormalise(unit.unflatten(0, (video.shape[0], -1)).transpose(1, 2))

    def clips(self, scenes: Sequence[Scene], frames: int, height: int, width: int) -> Tensor:
        """Normalised latents [B, C, l, h, w] of whole scenes; only the frames that carry latents are drawn."""
        pictures = render_frames(scenes, latent_frames(frames), height, width)
        return self(pictures.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(scenes), -1)).transpose(1, 2)


def latent_frames(frames: int) -> list[int]:
    """The frame each latent frame of a v1.3 clip shows: every fourth, and shared frames once per group."""
    starts = range(0, frames - 1, GROUP_FRAMES - 1) if frames > 1 else range(1)
    numbers: list[int] = []
    for start in starts:
        numbers += range(start, min(start + GROUP_FRAMES, frames), FRAMES_PER_LATENT)
    return numbers


@torch.no_grad()
def _unit_latents(encoder: CausalEncoder, pictures: Tensor) -> Tensor:
    return _normalised(encoder(pictures[:, :, None]))[:, :, 0]


def _normalised(moments: Tensor) -> Tensor:
    return V13_STATISTICS["video"].normalise(moments.chunk(2, dim=1)[0])
