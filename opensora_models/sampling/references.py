"""References: pictures and clips placed into the clip to be made.

Release 1.2 (and 1.3 without condition rows) writes them into the latents together with a frame mask; release 1.3
tells the network about them beside the noise ("given frames"). Both start from the same list of references.
Sources: upstream ``opensora/utils/inference_utils.py`` (``append_generated``, ``prep_ref_and_mask``,
``prep_ref_and_update_mask_in_loop``).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..releases.known import RELEASES
from ..releases.release import Release
from .factor_curve import FactorCurve, course_of
from .given_input import untrained
from .masks import (
    FREE,
    KEPT,
    Span,
    Strategy,
    check_reference,
    even_groups,
    format_strategy,
    listed,
    overlapping,
    place,
    strengths,
    write_spans,
)
from .placements import check_room

DEFAULT_SPACE = 8
"""Pixels to a latent where the release is not known."""


@dataclass(frozen=True)
class Reference:
    """One encoded picture or clip and where it goes.

    ``latent`` ``[C, t, h, w]`` holds the autoencoder's latents. Starts and ``length`` are latent frames, negative
    starts count from the end; ``length`` None takes everything from ``source_start`` on. ``edit_ratio`` 0 keeps the
    frames, 1 ignores them. ``segment`` is the segment of a long video the reference belongs to (-1 = the last one).
    ``release`` is the id of the release it was encoded for, where that is known. ``curves`` are factors on
    ``edit_ratio`` along the frames that the clip takes, from the first (0) to the last (1); several multiply.
    """

    latent: Tensor = field(repr=False)
    target_start: int = 0
    source_start: int = 0
    length: int | None = None
    edit_ratio: float = KEPT
    segment: int = 0
    release: str | None = None
    curves: tuple[FactorCurve, ...] = ()

    @property
    def frames(self) -> int:
        """Latent frames of the encoded reference."""
        return self.latent.shape[1]

    @property
    def ratios(self) -> tuple[float, ...]:
        """The edit ratio of every frame it gives to a clip that has room for all of them."""
        start = self.source_start % self.frames if self.source_start < 0 else self.source_start
        rest = max(1, self.frames - start)
        return strengths(self.edit_ratio, self.curves, rest if self.length is None else min(self.length, rest))

    def strategy(self, number: int) -> Strategy:
        """This placement as a group of the mask strategy."""
        length = self.frames if self.length is None else self.length
        return Strategy(self.segment, number, self.source_start, self.target_start, length, self.edit_ratio)


@dataclass(frozen=True)
class Placed:
    """References laid into one clip.

    ``latent`` ``[C, T, h, w]``, ``mask`` ``[T]`` of edit ratios, ``spans`` in the order written, ``notes`` sentences
    for the user.
    """

    latent: Tensor = field(repr=False)
    mask: Tensor = field(repr=False)
    spans: tuple[Span, ...]
    notes: tuple[str, ...]

    @property
    def frames(self) -> tuple[int, ...]:
        """Latent frames that any reference fills, in order."""
        return tuple(sorted({span.target + k for span in self.spans for k in range(span.length)}))

    @property
    def pictures(self) -> tuple[int, ...]:
        """Those of :attr:`frames` that stand alone and are no part of a clip."""
        single = {span.target + k: span.length == 1 for span in self.spans for k in range(span.length)}
        return tuple(frame for frame in self.frames if single[frame])


def lay_out(
    references: Sequence[Reference],
    clip: Tensor,
    *,
    segment: int = 0,
    align: int | None = None,
    segments: int = 1,
    release: Release | None = None,
) -> Placed:
    """Write the references of one segment into a clip.

    Args:
        references: in order; where two meet, the later one wins.
        clip: latents ``[C, T, h, w]`` that fill the frames no reference covers.
        segment: which segment of a long video this is; ``segments`` how many there are.
        align: latent frames both starts are snapped to, see ``GivenRules`` of :mod:`..releases.release`.
        release: what the clip is made with, where that is known.

    Raises:
        ValueError: another release, channel count or size than the clip's, a start outside the clip, a strength that
            the release does not know, or nothing left to make.
    """
    _check_shapes(references, clip, release)
    groups = [reference.strategy(number) for number, reference in enumerate(references)]
    groups = [replace(group, loop=group.loop % segments if group.loop < 0 else group.loop) for group in groups]
    for group in groups:
        if group.loop == segment and group.reference < len(references):
            check_room_for(min(group.length, references[group.reference].frames), clip.shape[1], release)
    lengths = [reference.frames for reference in references]
    spans = [
        replace(span, curves=references[span.reference].curves)
        for span in place(groups, lengths, clip.shape[1], segment, align)
    ]
    latent, mask = clip.clone(), torch.full((clip.shape[1],), FREE)
    write_spans(latent, mask, [reference.latent.to(clip) for reference in references], spans)
    notes = filling_notes(groups, spans, segment, clip.shape[1], lengths, align)
    notes += _left_out(groups) if segments == 1 else []
    placed = Placed(latent, mask, tuple(spans), tuple(notes))
    if release is None:
        return placed
    _check_given(placed, clip.shape[1], release)
    return replace(placed, notes=(*notes, *untrained(spans, clip.shape[1], release)))


def strategy_text(references: Sequence[Reference], clip_length: int, align: int | None = None) -> str:
    """The mask strategy that says the same as the references' own placements.

    A group has one strength, so a reference with curves becomes several. They begin between groups of ``align`` latent
    frames; therefore all places are then written as they are used in a clip of ``clip_length`` latent frames, to be
    read without aligning.
    """
    groups = [reference.strategy(number) for number, reference in enumerate(references)]
    if not any(reference.curves for reference in references):
        return format_strategy(groups)
    lengths, used = [reference.frames for reference in references], []
    for group, reference in zip(groups, references, strict=True):
        (span,) = place([group], lengths, clip_length, group.loop, align)
        used += even_groups(replace(span, curves=reference.curves), group.loop)
    return format_strategy(used)


def apply_strategy(references: Sequence[Reference], groups: Sequence[Strategy]) -> list[Reference]:
    """Replace the placements and strengths of ``references`` by those of a mask strategy, one result per group.

    Curves go too: they are factors on a strength that no longer holds, and a strategy has its own for every group.

    Raises:
        ValueError: a group names a reference that is not there.
    """
    placed = []
    for group in groups:
        check_reference(group.reference, len(references))
        placed.append(
            Reference(
                references[group.reference].latent,
                group.target_start,
                group.reference_start,
                group.length,
                group.edit_ratio,
                group.loop,
                references[group.reference].release,
            )
        )
    return placed


def called(numbers: Sequence[int]) -> str:
    """References by their growing numbers, for a sentence: ``reference 0``, ``references 0, 2 to 4``."""
    return f"reference{'s' * (len(numbers) > 1)} {listed(numbers)}"


def without_curves(references: Sequence[Reference], groups: Sequence[Strategy]) -> list[str]:
    """A sentence on the curves that a mask strategy of ``groups`` sets aside."""
    used = {group.reference for group in groups}
    numbers = [number for number, reference in enumerate(references) if reference.curves and number in used]
    return [
        f"The curve on the strength of {called(numbers)} is not used: the mask strategy has a strength for every group."
    ] * bool(numbers)


def append_generated(text: str | None, references: int, loop: int, frames: int, edit_ratio: float) -> str:
    """The strategy of the next clip of a loop: the last ``frames`` latent frames of the clip just made come first.

    ``references`` is the number of references before that clip is appended to them.
    """
    group = Strategy(loop, references, -frames, 0, frames, edit_ratio)
    return ";".join([*([text] if text else []), format_strategy([group])])


CONDITION_TYPES = ("i2v_head", "i2v_tail", "i2v_loop", "v2v_head")
"""The given-frame plans of release 1.3: first picture, last picture, both, start of a clip."""


def given_spans(kind: str | None, lengths: Sequence[int], clip_length: int, most: int, *, close: bool) -> list[Span]:
    """Given frames of a first clip.

    Args:
        kind: one of :data:`CONDITION_TYPES`, None for no given frames.
        lengths: latent frames of each reference.
        clip_length: latent frames of the clip.
        most: how many frames ``v2v_head`` takes at most.
        close: whether this is also the last clip, so that ``i2v_tail`` and ``i2v_loop`` end on their picture.
    """
    if kind is None:
        return []
    _check_kind(kind, lengths)
    if kind == "v2v_head":
        return [Span(0, 0, 0, min(most, lengths[0], clip_length), KEPT)]
    spans = [] if kind == "i2v_tail" else [Span(0, 0, 0, 1, KEPT)]
    if close and kind == "i2v_tail":
        spans.append(Span(0, lengths[0] - 1, clip_length - 1, 1, KEPT))
    if close and kind == "i2v_loop":
        spans.append(_closing_span(lengths, clip_length))
    return spans


def continued_spans(
    kind: str, lengths: Sequence[int], previous: int, clip_length: int, most: int, *, close: bool
) -> list[Span]:
    """Given frames of a further clip: the end of the previous one, and the closing picture where ``close`` is set.

    The previous clip is reference number ``len(lengths)`` in the result; it has ``previous`` latent frames.
    """
    _check_kind(kind, lengths)
    taken = min(most, previous, clip_length)
    spans = [Span(len(lengths), previous - taken, 0, taken, KEPT)]
    if close and kind in ("i2v_tail", "i2v_loop"):
        spans.append(_closing_span(lengths, clip_length))
    return spans


def _closing_span(lengths: Sequence[int], clip_length: int) -> Span:
    """The last frame of the only reference, or the first frame of the last of several."""
    several = len(lengths) > 1
    return Span(len(lengths) - 1, 0 if several else lengths[-1] - 1, clip_length - 1, 1, KEPT)


def _check_kind(kind: str, lengths: Sequence[int]) -> None:
    if kind not in CONDITION_TYPES:
        raise ValueError(f"There is no condition type {kind!r}; use one of {', '.join(CONDITION_TYPES)}.")
    if not lengths:
        raise ValueError(f"The condition type {kind} needs a reference, none was given; connect at least 1.")


def _check_shapes(references: Sequence[Reference], clip: Tensor, release: Release | None) -> None:
    space = DEFAULT_SPACE if release is None else release.latents.space
    for number, reference in enumerate(references):
        got, want = reference.latent, clip
        other = RELEASES.get(reference.release or "")
        if other is not None and release is not None and other.autoencoder != release.autoencoder:
            raise ValueError(
                f"Reference {number} was encoded for {other.title} but the clip is made with {release.title}; encode "
                "the reference with the clip's own VAE."
            )
        if got.shape[0] != want.shape[0]:
            raise ValueError(
                f"Reference {number} has {got.shape[0]} latent channels but the clip has {want.shape[0]}: they come "
                "from different Open-Sora versions; encode the reference with the clip's own VAE."
            )
        if got.shape[2:] != want.shape[2:]:
            raise ValueError(
                f"Reference {number} has latents of {got.shape[2]}x{got.shape[3]} but the clip has "
                f"{want.shape[2]}x{want.shape[3]}; the nearest good size is {want.shape[2] * space}x"
                f"{want.shape[3] * space} pixels (height x width)."
            )


def check_strength(strength: float, release: Release | None) -> None:
    """Refuse to edit frames where a release can only be given them."""
    if release is not None and not release.given.frame_mask and strength != KEPT:
        raise ValueError(
            f"{release.title} has one time for all frames, so a frame is given as it is or made freely; the strength "
            f"{strength:g} was asked for, the nearest good value is {KEPT:g}."
        )


def _check_given(placed: Placed, length: int, release: Release) -> None:
    """Where a release has one time for all frames, a frame is given or made, and some must be made."""
    if release.given.frame_mask or not placed.spans:
        return
    for ratio in dict.fromkeys(ratio for span in placed.spans for ratio in span.ratios):
        check_strength(ratio, release)
    check_room_for(len(placed.frames), length, release)


def check_room_for(given: int, length: int, release: Release | None) -> None:
    """Refuse given latent frames that leave nothing to make where they cannot be edited."""
    if release is None or release.given.frame_mask:
        return
    check_room(release, length)
    if given >= length:
        raise ValueError(
            f"The references fill all {length} latent frames, so nothing is left to make; give at most "
            f"{release.latents.lengths.counting.frames(length - 1)} frames, or sample their latent with denoise "
            "below 1."
        )


def filling_notes(
    groups: Sequence[Strategy],
    spans: Sequence[Span],
    segment: int,
    length: int,
    lengths: Sequence[int],
    align: int | None,
) -> list[str]:
    """Sentences on what the spans of one segment fill, where they were moved or cut, and where they overlap.

    ``length`` and ``lengths`` are the latent frames of the clip and of every reference.
    """
    notes = []
    used = [group for group in groups if group.loop == segment]
    for group, span in zip(used, spans, strict=True):
        last = span.target + span.length - 1
        where = f"latent frame {span.target}" if span.length == 1 else f"latent frames {span.target} to {last}"
        notes.append(f"Reference {span.reference} fills {where}, {_how_much(span.ratios)}.")
        starts = (
            ("start in the clip", group.target_start % length, span.target),
            ("start in the reference", group.reference_start % lengths[span.reference], span.source),
        )
        notes += [
            f"Reference {span.reference}: the {name} was moved from latent frame {asked} to {used_start}, the nearest "
            f"group of {align}."
            for name, asked, used_start in starts
            if asked != used_start
        ]
        if span.length < group.length:
            notes.append(f"Reference {span.reference} was cut from {group.length} to {span.length} latent frames.")
    twice = overlapping(spans)
    if twice:
        notes.append(
            f"References overlap at latent frames {listed(twice)}; the later reference in the chain wins there."
        )
    return notes


def _left_out(groups: Sequence[Strategy]) -> list[str]:
    """Sentences on references of segments that a single clip does not have."""
    return [
        f"Reference {group.reference} belongs to segment {group.loop} of a long video; this clip is segment 0 and is "
        "made without it."
        for group in groups
        if group.loop
    ]


def _how_much(ratios: Sequence[float]) -> str:
    if all(ratio == ratios[0] for ratio in ratios):
        return "kept as it is" if ratios[0] == KEPT else f"edited with strength {ratios[0]:g}"
    return f"edited with a strength that {course_of(ratios)}"
