"""How much memory encoding and decoding take, and which strips fit into what is free.

The figures count tensors that live at the same time in the widest layers, fitted to what the allocator counts
(``tests/unit/test_vae_budget.py`` holds them to it). Workspaces of convolution libraries are not in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..frames import FRAMES_PER_LATENT, GROUP_FRAMES, GROUP_LATENTS, SPATIAL_FACTOR
from .autoencoder import OpenSora12, OpenSora13, VideoAutoencoder
from .strips import MIN_ROWS, Strips

MEBIBYTE = 2**20
# Of a 51x480x848 clip this is 1/30 of a layer: a third of the memory of whole layers, and still millions of elements.
STANDARD_STRIP = 64 * MEBIBYTE
SMALLEST_STRIP = 4 * MEBIBYTE
# Share of the free memory a plan may take; the rest is for workspaces of the convolutions and fragmentation.
USABLE = 0.8


@dataclass(frozen=True)
class Job:
    """One group at a time of a clip: pixel size and frames of the largest group, element size of the dtype."""

    height: int
    width: int
    frames: int
    element_size: int

    @classmethod
    def decoding(cls, latent_shape: Sequence[int], element_size: int) -> Job:
        """From latents [B, C, l, h, w]."""
        latents, height, width = latent_shape[-3:]
        frames = FRAMES_PER_LATENT * min(latents, GROUP_LATENTS)
        return cls(height * SPATIAL_FACTOR, width * SPATIAL_FACTOR, frames, element_size)

    @classmethod
    def encoding(cls, video_shape: Sequence[int], element_size: int) -> Job:
        """From pixels [B, 3, T, H, W]."""
        frames, height, width = video_shape[-3:]
        return cls(height, width, min(frames, GROUP_FRAMES), element_size)

    def layer(self, channels: int, frames: int | None = None) -> int:
        """Bytes of one full-size layer."""
        return channels * (self.frames if frames is None else frames) * self.height * self.width * self.element_size


class Need(NamedTuple):
    """Peak of one way of computing: ``layers`` full-size layers of the narrowest width and ``strips`` strips."""

    layers: float
    strips: float = 0.0

    def bytes(self, layer: int, strip: int) -> float:
        return self.layers * layer + self.strips * strip


# In one piece, by strips, by lean strips. Fitted to allocated bytes in float32 with strips of 1/8 to 1/48 of a layer.
_DECODE = {
    "1.2": (Need(7.0), Need(3.1, 7.0), Need(1.5, 16.0)),
    "1.3": (Need(9.4), Need(2.4, 7.0), Need(1.45, 5.0)),
}
_ENCODE = {
    "1.2": (Need(5.0), Need(2.05, 5.0), Need(1.4, 8.0)),
    "1.3": (Need(7.2), Need(2.1, 6.5), Need(1.25, 4.5)),
}
# Layers of twice the filters at latent size that v1.2's temporal stage holds at once.
_TEMPORAL = {"decode": 10.0, "encode": 8.0}


def decode_bytes(model: VideoAutoencoder, job: Job, plan: Strips) -> float:
    """Peak bytes of activations while one group is decoded."""
    return _peak(model, job, plan, _DECODE[model.version], _TEMPORAL["decode"])


def encode_bytes(model: VideoAutoencoder, job: Job, plan: Strips) -> float:
    """Peak bytes of activations while one group is encoded."""
    return _peak(model, job, plan, _ENCODE[model.version], _TEMPORAL["encode"])


def _peak(model: VideoAutoencoder, job: Job, plan: Strips, needs: tuple[Need, Need, Need], temporal: float) -> float:
    if isinstance(model, OpenSora12):
        layer = job.layer(model.spatial_vae.module.config.widths[0], min(plan.images, job.frames))
        cells = job.frames * job.height * job.width // SPATIAL_FACTOR**2
        other = temporal * cells * 2 * model.temporal_vae.config.filters * job.element_size
    else:
        assert isinstance(model, OpenSora13)
        layer, other = job.layer(model.encoder.conv_in.conv.out_channels), 0.0
    pixels = job.layer(3)
    whole = needs[0].bytes(layer, 0)
    if plan.strip_bytes is None:
        return pixels + max(whole, other)
    strip = max(plan.strip_bytes, MIN_ROWS * layer // max(1, job.height))
    return pixels + max(min(whole, needs[2 if plan.lean else 1].bytes(layer, strip)), other)


def fitting(model: VideoAutoencoder, job: Job, free: float, *, decoding: bool) -> Strips:
    """The fastest plan that fits into ``free`` bytes; the leanest one where nothing does."""
    measure = decode_bytes if decoding else encode_bytes
    candidates = candidate_plans()
    return next((plan for plan in candidates if measure(model, job, plan) <= USABLE * free), candidates[-1])


def candidate_plans() -> list[Strips]:
    """Plans from the fastest to the leanest."""
    plans = [Strips(STANDARD_STRIP, images=4), Strips(STANDARD_STRIP, images=1), Strips(STANDARD_STRIP, True, 1)]
    size = STANDARD_STRIP // 4
    while size >= SMALLEST_STRIP:
        plans.append(Strips(size, True, 1))
        size //= 4
    return plans


def tiles(height: int, width: int, model: VideoAutoencoder, element_size: int) -> Strips:
    """A lean plan whose strips have the area of a tile of ``height`` × ``width`` pixels, all frames of a group deep."""
    channels = (
        model.spatial_vae.module.config.widths[0]
        if isinstance(model, OpenSora12)
        else model.encoder.conv_in.conv.out_channels * GROUP_FRAMES
    )
    return Strips(max(1, height * width * channels * element_size), True, 1)
