"""Latents of training clips, fast: the shipped recipes' encoders are linear codes of single pictures.

:class:`LatentCode` measures that linear map from the autoencoder itself and checks it, so that a training step can draw
and encode fresh clips in milliseconds instead of running the encoder.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ..opensora_models.releases.groups import FRAMES_PER_LATENT, GROUP_FRAMES
from ..opensora_models.releases.known import release_named
from ..opensora_models.vae.autoencoder import VideoAutoencoder
from ..opensora_models.vae.tiled import OpenSora20
from .rendering import render_frames
from .scenes import Scene

PATCH = 8
TOLERANCE = 0.01  # largest difference from the encoder, of latents whose deviation is about 1


class LatentCode:
    """Normalised latents of frames: unit = W·patch + b for each 8×8 patch."""

    def __init__(self, model: VideoAutoencoder | OpenSora20) -> None:
        self.version, self.release = model.version, model.release
        inputs = 3 * PATCH * PATCH
        probes = torch.cat([torch.zeros(1, inputs), torch.eye(inputs)])
        pictures = F.pixel_shuffle(probes[:, :, None, None], PATCH)
        values = _unit_latents(model, pictures[:, :, None])[:, :, 0, 0, 0]
        self.bias = values[0]
        self.weight = (values[1:] - values[0]).T.contiguous()

    def __call__(self, pictures: Tensor) -> Tensor:
        """Pictures [N, 3, H, W] in [-1, 1] to normalised latents [N, C, H/8, W/8]."""
        return F.conv2d(pictures, self.weight.unflatten(1, (3, PATCH, PATCH)), self.bias, stride=PATCH)

    def pictures(self, latents: Tensor) -> Tensor:
        """The pictures [B, 3, l, H, W] whose code is nearest to normalised latents: a look without a decoder."""
        patches = torch.einsum(
            "ck,bklhw->blchw", torch.linalg.pinv(self.weight), latents - self.bias[:, None, None, None]
        )
        return F.pixel_shuffle(patches, PATCH).transpose(1, 2)

    def check(self, model: VideoAutoencoder | OpenSora20, video: Tensor) -> None:
        """Raise ValueError unless ``model`` encodes ``video`` [B, 3, T, H, W], one group, to the same latents."""
        difference = float((self.of_frames(video[:, :, ::FRAMES_PER_LATENT]) - _unit_latents(model, video)).abs().max())
        if difference > TOLERANCE:
            raise ValueError(f"The encoder is not a linear code of single frames: latents differ by {difference:.3f}.")

    def of_frames(self, video: Tensor) -> Tensor:
        """Every frame of [B, 3, T, H, W] coded by itself: normalised latents [B, C, T, h, w]."""
        return self(video.transpose(1, 2).flatten(0, 1)).unflatten(0, (len(video), -1)).transpose(1, 2)

    def clips(self, scenes: Sequence[Scene], frames: int, height: int, width: int) -> Tensor:
        """Normalised latents [B, C, l, h, w] of whole scenes; only the frames that carry latents are drawn."""
        return self.of_frames(render_frames(scenes, carrying_frames(self.version, frames), height, width))

    def evenly(self, scenes: Sequence[Scene], frames: int, height: int, width: int) -> Tensor:
        """The same for latent frames that show evenly spaced frames, as if groups did not begin anew."""
        count = len(carrying_frames(self.version, frames))
        numbers = [round(index * (frames - 1) / max(1, count - 1)) for index in range(count)]
        return self.of_frames(render_frames(scenes, numbers, height, width))


def carrying_frames(version: str, frames: int) -> list[int]:
    """The frame each latent frame shows: every fourth of each group of 17, whose last (1.2) or first (1.3) is one.

    2.0 has no groups: every fourth of the clip, the first included.
    """
    counting = release_named(version).latents.lengths.counting
    if counting.group == 1:
        return [counting.frames(number) - 1 for number in range(1, counting.latents(frames) + 1)]
    overlap = version == "1.3" and frames > 1  # a frame shared by two groups is in both
    starts = range(0, frames - 1, GROUP_FRAMES - 1) if overlap else range(0, frames, GROUP_FRAMES)
    numbers: list[int] = []
    for start in starts:
        stop = min(start + GROUP_FRAMES, frames)
        first = start if version == "1.3" else start + (stop - start - 1) % FRAMES_PER_LATENT
        numbers += range(first, stop, FRAMES_PER_LATENT)
    return numbers


@torch.no_grad()
def _unit_latents(model: VideoAutoencoder | OpenSora20, video: Tensor) -> Tensor:
    return model.normalise(model.encode(video))
