"""Frames and latent frames of every release's autoencoder, and which clip lengths are good."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from .groups import GROUP_LATENTS, GROUP_STEP, Version, decoded_frames, latent_frames


class Counting(Protocol):
    """How an autoencoder turns frames into latent frames and back.

    ``group``: latent frames that keep their meaning together only, 1 where each has its own.
    """

    @property
    def group(self) -> int: ...

    def latents(self, frames: int) -> int:
        """Latent frames of a clip of ``frames`` frames, ragged ends included."""

    def frames(self, latents: int) -> int:
        """Frames the decoder gives back."""

    def holding(self, frame: int, latents: int) -> int:
        """The latent frame that holds frame ``frame`` (from 0) of a clip of ``latents`` latent frames."""

    def true_lengths(self, latents: int) -> list[int]:
        """Every length of a clip that comes back from so many latents where the decoder is told it; never empty."""


@dataclass(frozen=True)
class Grouped:
    """Groups of 17 frames and 5 latents, side by side (1.2) or sharing a frame (1.3)."""

    version: Version

    def latents(self, frames: int) -> int:
        """See :class:`Counting`."""
        return latent_frames(self.version, frames)

    def frames(self, latents: int) -> int:
        """See :class:`Counting`."""
        return decoded_frames(self.version, latents)

    @property
    def group(self) -> int:
        """See :class:`Counting`."""
        return GROUP_LATENTS

    def holding(self, frame: int, latents: int) -> int:
        """See :class:`Counting`; a latent frame holds four frames, the first one of a group only one."""
        step = GROUP_STEP[self.version]
        group = min(frame // step, max(1, -(-latents // GROUP_LATENTS)) - 1)
        inside = frame - group * step
        return group * GROUP_LATENTS + (0 if inside == 0 else 1 + (inside - 1) // 4)

    def true_lengths(self, latents: int) -> list[int]:
        """See :class:`Counting`; 1.2 drops the frames its groups were filled up with."""
        longest = self.frames(latents)
        if self.version == "1.3":
            return [longest]
        top = longest + 3
        return [n for n in range(max(1, top - 20), top + 1) if self.latents(n) == latents] or [longest]


@dataclass(frozen=True)
class Causal:
    """The first frame has a latent of its own, every further latent stands for ``factor`` frames (Hunyuan VAE)."""

    factor: int = 4

    def latents(self, frames: int) -> int:
        """See :class:`Counting`."""
        return (_at_least_one(frames, "frame") - 1) // self.factor + 1

    def frames(self, latents: int) -> int:
        """See :class:`Counting`."""
        return (_at_least_one(latents, "latent frame") - 1) * self.factor + 1

    @property
    def group(self) -> int:
        """See :class:`Counting`."""
        return 1

    def holding(self, frame: int, latents: int) -> int:
        """See :class:`Counting`."""
        return -(-frame // self.factor)

    def true_lengths(self, latents: int) -> list[int]:
        """See :class:`Counting`."""
        return [self.frames(latents)]


@dataclass(frozen=True)
class Strided:
    """Every latent stands for ``factor`` frames; a single frame stays single in both directions (DC-AE)."""

    factor: int = 4

    def latents(self, frames: int) -> int:
        """See :class:`Counting`."""
        return max(1, _at_least_one(frames, "frame") // self.factor)

    def frames(self, latents: int) -> int:
        """See :class:`Counting`."""
        return 1 if _at_least_one(latents, "latent frame") == 1 else latents * self.factor

    @property
    def group(self) -> int:
        """See :class:`Counting`."""
        return 1

    def holding(self, frame: int, latents: int) -> int:
        """See :class:`Counting`."""
        return frame // self.factor

    def true_lengths(self, latents: int) -> list[int]:
        """See :class:`Counting`."""
        return [self.frames(latents)]


@dataclass(frozen=True)
class Lengths:
    """Good clip lengths: one frame, or ``first`` frames and whole multiples of ``step`` more.

    ``longest`` is the longest clip of the release's settings and documents, not a limit of the network; None where
    none is named. ``presets`` are durations whose frames the release names. ``tile`` are the latent frames of a
    released tile and of the way to the next, where a last tile of one latent frame gives one frame; else None.
    """

    counting: Counting
    first: int
    step: int
    rule: str
    longest: int | None = None
    presets: Mapping[str, int] = field(default_factory=dict)
    tile: tuple[int, int] | None = None

    def is_good(self, frames: int) -> bool:
        """Whether a clip of this length comes back from the autoencoder as long as it went in."""
        return frames == 1 or (frames >= self.first and (frames - self.first) % self.step == 0)

    def nearest(self, frames: float) -> int:
        """The nearest good length; an image only where that is nearer than the shortest clip, halves go up."""
        if frames < (self.first + 1) / 2:
            return 1
        return self.first + max(0, math.floor((frames - self.first) / self.step + 0.5)) * self.step

    def lost(self, frames: int) -> int:
        """Frames by which a clip comes back short with the released tiling."""
        if self.tile is None:
            return 0
        (tile, stride), latents = self.tile, self.counting.latents(frames)
        return self.step - 1 if latents > tile and latents % stride == 1 else 0

    @property
    def examples(self) -> str:
        """The shortest good lengths and their rule."""
        return f"{', '.join(str(self.first + k * self.step) for k in range(3))}, … ({self.rule})"

    def check(self, frames: int, title: str) -> None:
        """Raises ValueError with the nearest good value."""
        if not self.is_good(frames):
            raise ValueError(
                f"{title} makes clips of 1 or {self.examples} frames, {frames} was given; the nearest good "
                f"value is {self.nearest(frames)}."
            )


def _at_least_one(count: int, name: str) -> int:
    if count < 1:
        raise ValueError(f"a clip needs at least 1 {name}, {count} was given")
    return count
