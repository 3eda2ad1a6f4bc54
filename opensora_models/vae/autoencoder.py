"""Open-Sora 1.2's and 1.3's video autoencoders: clips of any length, group by group.

Groups share nothing but (in v1.3) one blended frame, so working through them one after the other is exact and keeps
memory constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..releases.groups import FRAMES_PER_LATENT, GROUP_FRAMES, SPATIAL_FACTOR, Version
from .causal import CausalConfig, CausalDecoder, CausalEncoder
from .distribution import Draw, Posterior, mode
from .image import ImageAutoencoder, ImageConfig
from .piecewise import PiecewiseAutoencoder
from .statistics import V12_IMAGE_SCALE, V12_STATISTICS, V13_STATISTICS
from .strips import Strips
from .temporal import TemporalAutoencoder, TemporalConfig
from .tiling import Axis, Layout


class VideoAutoencoder(PiecewiseAutoencoder):
    """What both releases share: cutting a clip into groups.

    ``group_frames`` is upstream's ``micro_frame_size``; None takes any clip in one piece. ``overlap``: neighbouring
    groups share a frame, which becomes the mean of both.
    """

    version: Version
    space_factor = SPATIAL_FACTOR
    frames_per_latent: int = FRAMES_PER_LATENT
    group_frames: int | None = GROUP_FRAMES
    overlap: bool = False
    clips_apart = False

    @property
    def group_latents(self) -> int | None:
        """Latent frames of a full group."""
        return None if self.group_frames is None else (self.group_frames - 1) // self.frames_per_latent + 1

    def encode_slices(self, frames: int) -> list[slice]:
        """The frames each group takes."""
        if self.group_frames is None or frames == 1:
            return [slice(0, frames)]
        size = self.group_frames
        starts = range(0, frames - 1, size - 1) if self.overlap else range(0, frames, size)
        return [slice(start, min(start + size, frames)) for start in starts]

    def decode_slices(self, latents: int) -> list[slice]:
        """The latent frames each group takes."""
        size = self.group_latents or latents
        return [slice(start, min(start + size, latents)) for start in range(0, latents, size)]

    def encode_layout(self, shape: Sequence[int]) -> Layout:
        frames, height, width = shape[-3:]
        slices = tuple(self.encode_slices(frames))
        gives = tuple(self.latents_of_group(part.stop - part.start) for part in slices)
        small = lambda side: side // SPATIAL_FACTOR  # noqa: E731
        return Layout(Axis(slices, gives, gives), Axis.whole(height, small), Axis.whole(width, small))

    def decode_layout(self, shape: Sequence[int], num_frames: int | None = None) -> Layout:
        latents, height, width = shape[-3:]
        large = lambda side: side * SPATIAL_FACTOR  # noqa: E731
        return Layout(self._decode_axis(latents, num_frames), Axis.whole(height, large), Axis.whole(width, large))

    def _decode_axis(self, latents: int, num_frames: int | None) -> Axis:
        slices = tuple(self.decode_slices(latents))
        total = self.frames_of(latents) if num_frames is None else num_frames
        size = self.group_frames or total
        gives = tuple(
            self.frames_of_group(part.stop - part.start, min(size, total - size * index))
            for index, part in enumerate(slices)
        )
        if not self.overlap:
            return Axis(slices, gives, gives)
        keeps = tuple(count - (index + 1 < len(gives)) for index, count in enumerate(gives))
        return Axis(slices, gives, keeps, blend=1, weight=0.5)

    def latents_of_group(self, frames: int) -> int:
        """Latent frames that a group of ``frames`` frames gives."""
        return -(-frames // self.frames_per_latent)

    def frames_of_group(self, latents: int, frames: int) -> int:
        """Frames that a group of ``latents`` latent frames and the true length ``frames`` gives."""
        return self.frames_per_latent * (latents - 1) + 1

    def frames_of(self, latents: int) -> int:
        """Frames that come back for ``latents`` latent frames when the true length is not given."""
        return sum(
            self.frames_per_latent * (part.stop - part.start - 1) + 1 - (self.overlap and part.start > 0)
            for part in self.decode_slices(latents)
        )

    def encode_group(self, frames: Tensor, plan: Strips | None, draw: Draw) -> Tensor:
        """Pixels [B, 3, t, H, W] in [-1, 1] of one group to latents [B, C, l, h, w]."""
        raise TypeError("VideoAutoencoder is a base; use OpenSora12 or OpenSora13")

    def decode_group(self, latents: Tensor, frames: int, plan: Strips | None) -> Tensor:
        """Latents [B, C, l, h, w] of one group to pixels [B, 3, t, H, W]; ``frames`` is the group's true length."""
        raise TypeError("VideoAutoencoder is a base; use OpenSora12 or OpenSora13")

    def encode_piece(self, pixels: Tensor, plan: Strips | None = None, draw: Draw = mode) -> Tensor:
        return self.encode_group(pixels, plan, draw)

    def decode_piece(self, latents: Tensor, plan: Strips | None = None, *, frames: int | None = None) -> Tensor:
        count = latents.shape[2]
        return self.decode_group(latents, self.frames_of_group(count, 1) if frames is None else frames, plan)


class _SpatialStage(nn.Module):
    """Holds the image autoencoder under the key ``spatial_vae.module``."""

    def __init__(self, config: ImageConfig, operations: Any) -> None:
        super().__init__()
        self.module = ImageAutoencoder(config, operations=operations)

    def encode(self, video: Tensor, plan: Strips | None, draw: Draw) -> Tensor:
        """Pixels [B, 3, T, H, W] to scaled image latents [B, 4, T, h, w]."""
        frames = video.transpose(1, 2).flatten(0, 1)
        latents = [
            draw(Posterior(self.module.moments(part, plan))) * V12_IMAGE_SCALE for part in _micro_batches(frames, plan)
        ]
        return torch.cat(latents).unflatten(0, (video.shape[0], -1)).transpose(1, 2)

    def decode(self, latents: Tensor, plan: Strips | None) -> Tensor:
        """Scaled image latents [B, 4, T, h, w] to pixels [B, 3, T, H, W]."""
        flat = latents.transpose(1, 2).flatten(0, 1)
        frames: Tensor | None = None
        done = 0
        for part in _micro_batches(flat, plan):
            pixels = self.module.decode(part / V12_IMAGE_SCALE, plan)
            if frames is None:
                frames = pixels.new_empty((flat.shape[0], *pixels.shape[1:]))
            frames[done : done + pixels.shape[0]] = pixels
            done += pixels.shape[0]
        assert frames is not None
        return frames.unflatten(0, (latents.shape[0], -1)).transpose(1, 2)


def _micro_batches(frames: Tensor, plan: Strips | None) -> tuple[Tensor, ...]:
    return (frames,) if plan is None else frames.split(plan.images)


class OpenSora12(VideoAutoencoder):
    """Open-Sora 1.2: an image stage per frame and a temporal stage per group of 17 frames.

    Source: VideoAutoencoderPipeline (opensora/models/vae/vae.py of release 1.2); keys are the checkpoint's.
    """

    version: Version = "1.2"

    def __init__(
        self, image: ImageConfig = ImageConfig(), temporal: TemporalConfig = TemporalConfig(), *,  # noqa: B008
        group_frames: int | None = GROUP_FRAMES, operations: Any = nn,
    ) -> None:  # fmt: skip
        super().__init__()
        self.group_frames = group_frames
        self.frames_per_latent = temporal.factor
        self.latent_channels = temporal.latent_channels
        self.spatial_vae = _SpatialStage(image, operations)
        self.temporal_vae = TemporalAutoencoder(temporal, operations=operations)
        shift, scale = V12_STATISTICS.tensors(1)
        self.register_buffer("shift", shift.clone())
        self.register_buffer("scale", scale.clone())

    def encode_group(self, frames: Tensor, plan: Strips | None, draw: Draw) -> Tensor:
        images = self.spatial_vae.encode(frames, plan, draw)
        return draw(Posterior(self.temporal_vae.moments(images)))

    def frames_of_group(self, latents: int, frames: int) -> int:
        return self.frames_per_latent * latents - -frames % self.frames_per_latent

    def decode_group(self, latents: Tensor, frames: int, plan: Strips | None) -> Tensor:
        return self.spatial_vae.decode(self.temporal_vae.decode(latents, frames), plan)

    def normalise(self, latents: Tensor) -> Tensor:
        return (latents - self.shift) / self.scale

    def denormalise(self, latents: Tensor) -> Tensor:
        return latents * self.scale + self.shift


class OpenSora13(VideoAutoencoder):
    """Open-Sora 1.3: one causal 3-D autoencoder; neighbouring groups share a frame (``overlap``).

    Source: OpenSoraVAE_V1_3 (opensora/models/vae_v1_3/vae.py of release 1.3); keys are the checkpoint's.
    """

    version: Version = "1.3"

    def __init__(
        self, config: CausalConfig = CausalConfig(), *, group_frames: int | None = GROUP_FRAMES,  # noqa: B008
        overlap: bool = True, normalization: str | None = "video", operations: Any = nn,
    ) -> None:  # fmt: skip
        super().__init__()
        self.group_frames = group_frames
        self.overlap = overlap and group_frames is not None
        self.normalization = normalization
        self.latent_channels = config.latent_channels
        self.encoder = CausalEncoder(config, operations)
        self.decoder = CausalDecoder(config, operations)

    def latents_of_group(self, frames: int) -> int:
        return -(-frames // self.encoder.factor)

    def frames_of_group(self, latents: int, frames: int) -> int:
        return self.decoder.factor * latents - self.decoder.extra_frames

    def frames_of(self, latents: int) -> int:
        return sum(
            self.frames_of_group(part.stop - part.start, 0) - (self.overlap and part.start > 0)
            for part in self.decode_slices(latents)
        )

    def encode_group(self, frames: Tensor, plan: Strips | None, draw: Draw) -> Tensor:
        return draw(Posterior(self.moments(frames, plan)))

    def moments(self, frames: Tensor, plan: Strips | None) -> Tensor:
        """Mean and log variance [B, 2C, l, h, w] of one group."""
        return self.encoder(frames) if plan is None else self.encoder.strips(frames, plan)

    def decode_group(self, latents: Tensor, frames: int, plan: Strips | None) -> Tensor:
        return self.decoder(latents) if plan is None else self.decoder.strips(latents, plan)

    def normalise(self, latents: Tensor) -> Tensor:
        return V13_STATISTICS[self.normalization].normalise(latents) if self.normalization else latents

    def denormalise(self, latents: Tensor) -> Tensor:
        return V13_STATISTICS[self.normalization].denormalise(latents) if self.normalization else latents
