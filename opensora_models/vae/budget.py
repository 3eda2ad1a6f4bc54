"""How much memory encoding and decoding take, and which strips fit into what is free.

The figures add up the tensors that live at the same time in the widest layers: those that are stored, and the rows of a
strip with the copies that are normalised and padded on the way. ``tests/unit/test_vae_memory.py`` holds them against
every allocation of the released networks. Workspaces of convolution libraries are not in them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..releases.groups import FRAMES_PER_LATENT, GROUP_FRAMES, GROUP_LATENTS, SPATIAL_FACTOR
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


# Layers of twice the filters, at latent size and over whole latent frames, that v1.2's temporal stage holds at once.
_TEMPORAL = {"decode": 6.13, "encode": 5.65}


def decode_bytes(model: VideoAutoencoder, job: Job, plan: Strips) -> float:
    """Peak bytes of activations while one group is decoded."""
    if isinstance(model, OpenSora12):
        images = _Layers.of_images(model, job, plan)
        return max(job.layer(3) + images.decoding(), _temporal_bytes(model, job, "decode"))
    assert isinstance(model, OpenSora13)
    return _Layers(job, job.frames, model.decoder.widths, plan, clips=True).decoding()


def encode_bytes(model: VideoAutoencoder, job: Job, plan: Strips) -> float:
    """Peak bytes of activations while one group is encoded, its pixels among them."""
    if isinstance(model, OpenSora12):
        images = _Layers.of_images(model, job, plan)
        return job.layer(3) + max(images.encoding(), _temporal_bytes(model, job, "encode"))
    assert isinstance(model, OpenSora13)
    return job.layer(3) + _Layers(job, job.frames, model.encoder.widths, plan, clips=True).encoding()


def _temporal_bytes(model: OpenSora12, job: Job, direction: str) -> float:
    frames = -(-job.frames // FRAMES_PER_LATENT) * FRAMES_PER_LATENT
    cells = frames * job.height * job.width // SPATIAL_FACTOR**2
    return _TEMPORAL[direction] * cells * 2 * model.temporal_vae.config.filters * job.element_size


class _Layers:
    """The full-size layers of a network over images or clips, where its memory peaks.

    ``narrow`` and ``wide`` are the widths of the two finest levels: the decoder doubles a layer of the wide one.
    """

    def __init__(self, job: Job, frames: int, widths: Sequence[int], plan: Strips, *, clips: bool) -> None:
        self.job, self.frames, self.plan, self.clips = job, frames, plan, clips
        self.narrow, self.wide = widths[0], widths[min(1, len(widths) - 1)]
        # Copies of the rows a convolution reads: normalised (one by one and joined for several images), padded.
        self.padded = (frames + 2) / frames if clips else 0.0
        self.copies = 1 + self.padded + (frames > 1 and not clips)
        # Statistics of a strip: a float32 copy and the kernel's result, for clips in half precision frame by frame.
        half = job.element_size < 4
        self.measured = (4.0 if half else 1.0) / (frames if clips and half else 1)

    @classmethod
    def of_images(cls, model: OpenSora12, job: Job, plan: Strips) -> _Layers:
        """v1.2's image stage, which takes some images at once."""
        return cls(job, min(plan.images, job.frames), model.spatial_vae.module.config.widths, plan, clips=False)

    def row(self, channels: int) -> int:
        """Bytes of one row of a full-size layer."""
        return channels * self.frames * self.job.width * self.job.element_size

    def layer(self, channels: int) -> int:
        """Bytes of a full-size layer."""
        return self.row(channels) * self.job.height

    def rows(self, row_bytes: int) -> int:
        """Rows of a strip, as in ``Strips.bounds``."""
        if self.plan.strip_bytes is None:
            return self.job.height
        return min(self.job.height, max(MIN_ROWS, self.plan.strip_bytes // max(1, row_bytes) // 2 * 2))

    def strip(self, rows: int, read: float, made: float) -> float:
        """Most bytes while strips of ``rows`` rows are made, the one before waiting to be written.

        ``read``: bytes for each row that is read, two more above and below in a lean run, in which two convolutions
        follow each other; ``made``: bytes for each row that is made.
        """
        halo, height = 4 if self.plan.lean else 2, self.job.height
        second = min(rows, height - rows)
        first = min(height, rows + halo) * read + rows * made
        return max(first, min(height, second + halo) * read + (rows + second) * made)

    def block(self) -> float:
        """A residual block of the narrow width: its input, unless lean its middle, and the rows of a strip."""
        row, lean = self.row(self.narrow), self.plan.lean
        rows = self.rows(row)
        if rows == self.job.height:  # nothing is cut
            return self.layer(self.narrow) * (3 + (self.padded or 1))
        convolved = self.strip(rows, row * (self.copies + lean), row)
        measured = self.strip(rows, 0.0, row) + rows * row * self.measured
        return self.layer(self.narrow) * (1 if lean else 2) + max(convolved, measured)

    def encoding(self) -> float:
        """The first level, or its halving."""
        row, layer = self.row(self.narrow), self.layer(self.narrow)
        if self.rows(row) == self.job.height:
            return self.block()
        halved = min(self.rows(2 * row), self.job.height // 2)
        return max(self.block(), 1.25 * layer + (3 * halved + 1) * row)

    def decoding(self) -> float:
        """The last doubling, which images store unless lean, the first block after it, the last ones, or the output."""
        narrow, wide, layer, lean = self.row(self.narrow), self.row(self.wide), self.layer(self.narrow), self.plan.lean
        rows, whole = self.rows(wide), self.layer(self.wide)
        if rows == self.job.height:
            return max(whole * (2 + self.padded) + (0 if self.clips else layer), self.block())
        stored = not lean and not self.clips
        made = lean and not self.clips  # rows of images are made for every strip, and normalised beside
        doubling = whole * (1.25 if stored else 0.25) + rows * wide * (1 + stored + self.measured)
        first = whole * (1.0 if stored else 0.25) + layer
        first += self.strip(rows, wide * (self.copies + made) + narrow * lean, narrow)
        output = layer + self.layer(3) + (self.rows(narrow) + 2) * narrow * self.copies
        return max(doubling, first, self.block(), output)


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
