"""The description of a release: everything that differs between them, and nothing else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal

from .arithmetic import Bytes, Operations
from .guidance import Guidance
from .lengths import Lengths
from .sizes import Sizes

Use = Literal["text", "picture", "clip"]
"""What a video starts from: words alone, pictures at its ends, or a clip it continues."""


@dataclass(frozen=True)
class Latents:
    """The space a release works in.

    ``space`` pixels make a latent, ``patch`` latents (to a side) a token. ``cut``: a partial cell is left away (1.2)
    instead of filled up to a whole token. ``wordless``: a LATENT of so many channels that does not say its release is
    this one's, as it was before any did; of 2.0's, 16 channels are Flux's as well and 128 LTX's.
    """

    channels: int
    space: int
    patch: int
    lengths: Lengths
    cell: int
    cut: bool = False
    wordless: bool = False

    def side(self, pixels: int) -> int:
        """Latents of a side of ``pixels``."""
        cells = pixels // self.cell if self.cut else -(-pixels // self.cell)
        return cells * (self.cell // self.space)

    def cells(self, frames: int, height: int, width: int) -> tuple[int, int, int]:
        """Latent frames, height and width of a clip in frames and pixels."""
        return self.lengths.counting.latents(frames), self.side(height), self.side(width)

    def tokens_per_frame(self, height: int, width: int) -> int:
        """Tokens of one latent frame of a picture in pixels."""
        return -(-self.side(height) // self.patch) * -(-self.side(width) // self.patch)


@dataclass(frozen=True)
class Times:
    """``steps`` of the released settings, and ``shift(frames, height, width)`` of a clip in frames and pixels.

    ``options`` are names the shift, and the schedule made with it, take besides (:func:`.time_shift.shift_for`,
    ``sampling/schedule.py``).
    """

    steps: int
    shift: Callable[..., float]
    options: frozenset[str] = frozenset()


@dataclass(frozen=True)
class GuidanceRules:
    """Released guidance for every use.

    ``fade_reaches_end``: see ``run_scales`` of ``sampling/three_rows.py``. ``embedded``: the network is told its
    scale and needs no second row (Flux).
    """

    presets: Mapping[Use, Guidance]
    fade_reaches_end: bool = False


@dataclass(frozen=True)
class GivenRules:
    """How frames are given.

    ``kind``: kept by a frame mask, or shown at an input of the network. ``empty_row_sees_mask``: the row without
    references is told which frames would be given. ``written_back``: given pictures replace the finished frames.
    ``takes``: frames taken of a clip that is continued, the usual number first. ``anywhere``: trained with frames at
    other places than the ends. ``frame_mask``: the network has a time for every frame, so that a mask on the latents
    can keep frames or edit them with a strength. ``renoised``: given frames are noised anew before every model call.
    ``original_fit``: pictures of another size are fitted as in :mod:`..sampling.pictures`. ``align``: latent frames
    that places are snapped to, where only whole groups keep their meaning when moved.
    """

    kind: Literal["mask", "input"]
    takes: tuple[int, ...]
    empty_row_sees_mask: bool = False
    written_back: bool = False
    anywhere: bool = False
    frame_mask: bool = False
    renoised: bool = False
    original_fit: bool = False
    align: int | None = None


@dataclass(frozen=True)
class TextRules:
    """How words reach the network.

    ``limit`` tokens; ``padded``: always so many, seen by the encoder without a mask. ``pooled``: a CLIP-L state beside
    them. ``cleaned``: the caption cleaning of training. ``learned_negative``: the empty text is a table in the
    checkpoint, else the encoded "". ``suffixes``: prompts end in frame rate and motion (:mod:`..text.suffixes`), else
    in the scores of :mod:`..text.wording`; ``motion`` is the usual motion score.
    """

    limit: int
    padded: bool
    pooled: bool
    cleaned: bool
    learned_negative: bool
    suffixes: bool = False
    motion: float | None = None


@dataclass(frozen=True)
class Release:
    """One release of Open-Sora.

    ``id`` travels in a LATENT and is what menus show; ``autoencoder`` names the VAE that belongs to it; ``parameters``
    says how large the network is and ``weights`` how many numbers it has; ``row_bytes`` is the memory of one row, where
    it has been counted; ``files`` are the released names; ``image_stage`` are the sizes of pictures made
    before the video; ``step_tables`` say which steps can be left out, by published numbers (:mod:`..caching.tables`).
    """

    id: str
    title: str
    network: Literal["stdit3", "mmdit"]
    autoencoder: str
    latents: Latents
    sizes: Sizes
    times: Times
    guidance: GuidanceRules
    given: GivenRules
    text: TextRules
    operations: Operations
    parameters: str
    weights: float
    row_bytes: Bytes | None = None
    files: tuple[str, ...] = ()
    image_stage: Sizes | None = None
    step_tables: Mapping[str, str] = field(default_factory=dict)

    def latent_shape(self, frames: int, height: int, width: int) -> tuple[int, int, int, int]:
        """Channels, latent frames, height and width of a clip in frames and pixels."""
        return (self.latents.channels, *self.latents.cells(frames, height, width))
