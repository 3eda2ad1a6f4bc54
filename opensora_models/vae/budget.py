"""How much memory encoding and decoding take, and which strips fit into what is free.

The figures count tensors that live at the same time in the widest layers; the factors in front were fitted to the
peaks that ``benchmarks/vae.py`` measures.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..frames import FRAMES_PER_LATENT, GROUP_FRAMES, GROUP_LATENTS, SPATIAL_FACTOR
from .autoencoder import OpenSora12, OpenSora13, VideoAutoencoder
from .strips import Strips

MEBIBYTE = 2**20
STANDARD_STRIP = 256 * MEBIBYTE
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


# Tensors of strip size that live at once: input with halo, normalised, padded, result, float32 measuring copy.
_STRIP_COPIES = 6.0
# Full-size tensors of the narrowest width that live at once: (in one piece, by strips, by lean strips).
_DECODE_LAYERS = {"1.2": (5.0, 3.0, 2.5), "1.3": (7.0, 2.6, 1.8)}
_ENCODE_LAYERS = {"1.2": (4.0, 2.2, 1.4), "1.3": (4.0, 2.2, 1.4)}


def decode_bytes(model: VideoAutoencoder, job: Job, plan: Strips) -> float:
    """Peak bytes of activations while one group is decoded, the group's pixels included."""
    return _peak(model, job, plan, _DECODE_LAYERS[model.version])


def encode_bytes(model: VideoAutoencoder, job: Job, plan: Strips) -> float:
    """Peak bytes of activations while one group is encoded, the group's pixels included."""
    return _peak(model, job, plan, _ENCODE_LAYERS[model.version])


def _peak(model: VideoAutoencoder, job: Job, plan: Strips, layers: tuple[float, float, float]) -> float:
    whole, strips, lean = layers
    base = job.layer(3) * 2.0
    if isinstance(model, OpenSora12):
        # The temporal stage works on latents; at most four or so of its widest layers live at once.
        images = min(plan.images, job.frames)
        unit = job.layer(model.spatial_vae.module.config.widths[0], images)
        cells = job.frames * job.height * job.width // SPATIAL_FACTOR**2
        temporal = 4.0 * cells * 2 * model.temporal_vae.config.filters * job.element_size
    else:
        assert isinstance(model, OpenSora13)
        unit = job.layer(model.encoder.conv_in.conv.out_channels)
        temporal = 0.0
    in_one_piece = whole * unit
    if plan.strip_bytes is None:
        return base + max(in_one_piece, temporal)
    cut = (lean if plan.lean else strips) * unit + _STRIP_COPIES * plan.strip_bytes
    return base + max(min(in_one_piece, cut), temporal)


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
