"""Frame masks: which latent frames a step changes, and the mask strategy text of Open-Sora 1.2.

A frame mask holds one edit ratio per latent frame: 1 = made freely, 0 = kept, 0.3 = stays the reference until the
noise level has fallen to 0.3 and is remade from there. Source: upstream ``opensora/schedulers/rf/__init__.py`` and
``opensora/utils/inference_utils.py`` of release 1.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .factor_curve import FactorCurve, together
from .schedule import TRAIN_TIMESTEPS

FREE = 1.0
"""Edit ratio of a frame that is made from noise."""
KEPT = 0.0
"""Edit ratio of a frame that stays as it is."""

GROUP_SEPARATOR = ";"
FIELD_SEPARATOR = ","


@dataclass(frozen=True)
class Strategy:
    """One group of a mask strategy: take frames of a reference, put them into the clip, allow so much editing.

    Counts are latent frames; negative starts count from the end. ``loop`` is the segment of a long video the group
    belongs to, ``reference`` the number of the reference, ``edit_ratio`` the mask value written.
    """

    loop: int = 0
    reference: int = 0
    reference_start: int = 0
    target_start: int = 0
    length: int = 1
    edit_ratio: float = KEPT


FIELDS: dict[str, tuple[str, type]] = {
    "loop": ("loop", int),
    "reference": ("reference", int),
    "reference_start": ("start in the reference", int),
    "target_start": ("start in the clip", int),
    "length": ("length", int),
    "edit_ratio": ("edit ratio", float),
}
"""The fields in the order they are written, what people call them, and what they hold."""


def parse_strategy(text: str | None) -> list[Strategy]:
    """Read ``"0;0,1,0,-1,1,0.3"``: groups joined by ``;``, up to six fields joined by ``,``, missing ones default."""
    if not text:
        return []
    return [_parse_group(group) for group in text.split(GROUP_SEPARATOR)]


def format_strategy(groups: Sequence[Strategy]) -> str:
    """The text of a strategy, every field written out; :func:`parse_strategy` reads it back."""
    return GROUP_SEPARATOR.join(FIELD_SEPARATOR.join(str(value) for value in astuple(group)) for group in groups)


def _parse_group(group: str) -> Strategy:
    fields = group.split(FIELD_SEPARATOR)
    if len(fields) > len(FIELDS):
        raise ValueError(
            f"The mask strategy group {group!r} has {len(fields)} fields, at most {len(FIELDS)} are allowed: "
            f"{', '.join(name for name, _ in FIELDS.values())}."
        )
    named = zip(FIELDS, fields, strict=False)
    parsed = Strategy(**{name: _parse_field(group, text, *FIELDS[name]) for name, text in named})
    if math.isnan(parsed.edit_ratio):
        raise ValueError(f"The edit ratio in the mask strategy group {group!r} is no number; 0 keeps, 1 is free.")
    if not KEPT <= parsed.edit_ratio <= FREE:
        nearest = min(max(parsed.edit_ratio, KEPT), FREE)
        raise ValueError(
            f"The edit ratio in the mask strategy group {group!r} must lie between 0 (keep) and 1 (free); "
            f"the nearest good value is {nearest:g}."
        )
    return parsed


def _parse_field(group: str, text: str, name: str, kind: type) -> Any:
    try:
        return kind(text)
    except ValueError:
        wanted = "a number" if kind is float else "a whole number"
        raise ValueError(f"The {name} in the mask strategy group {group!r} is {text!r}; it must be {wanted}.") from None


def snap_to_group(start: int, length: int, align: int | None) -> int:
    """The group boundary nearest to frame ``start`` of ``length`` frames (upstream ``find_nearest_point``).

    Halves go down, and the last boundary always leaves one whole group behind it.
    """
    if not align:
        return start
    group, rest = divmod(start, align)
    if rest > align / 2 and group < length // align - 1:
        group += 1
    return group * align


@dataclass(frozen=True)
class Span:
    """Frames copied from a reference into the clip: ``length`` frames from ``source`` to ``target``.

    ``curves`` are factors on ``edit_ratio`` along these frames: 0 is the first of them and 1 the last one, also where
    another span is written over some of them.
    """

    reference: int
    source: int
    target: int
    length: int
    edit_ratio: float
    curves: tuple[FactorCurve, ...] = ()

    @property
    def ratios(self) -> tuple[float, ...]:
        """The edit ratio of every frame, in order."""
        return strengths(self.edit_ratio, self.curves, self.length)


def strengths(edit_ratio: float, curves: Sequence[FactorCurve], length: int) -> tuple[float, ...]:
    """The edit ratios of ``length`` frames: one number times the curves, rounding included within the limits."""
    return tuple(min(max(edit_ratio * factor, KEPT), FREE) for factor in together(curves, length))


def even_groups(span: Span, loop: int) -> list[Strategy]:
    """The span of one segment as groups of a mask strategy, in order: each has one edit ratio."""
    groups: list[Strategy] = []
    for frame, ratio in enumerate(span.ratios):
        if groups and groups[-1].edit_ratio == ratio:
            groups[-1] = replace(groups[-1], length=groups[-1].length + 1)
        else:
            groups.append(Strategy(loop, span.reference, span.source + frame, span.target + frame, 1, ratio))
    return groups


def place(
    groups: Sequence[Strategy], reference_lengths: Sequence[int], clip_length: int, loop: int, align: int | None
) -> list[Span]:
    """Turn strategy groups of one loop into frame spans inside the clip, in the order they are written.

    Args:
        groups: all groups; those of other loops are ignored.
        reference_lengths: latent frames of every reference.
        clip_length: latent frames of the clip.
        align: snap both starts to this many latent frames (5 for release 1.2), None leaves them.

    Raises:
        ValueError: a reference number or a start outside what exists.
    """
    spans = []
    for group in groups:
        if group.loop != loop:
            continue
        check_reference(group.reference, len(reference_lengths))
        available = reference_lengths[group.reference]
        number = group.reference
        source = _start(group.reference_start, available, align, f"from which reference {number} is taken", "reference")
        target = _start(group.target_start, clip_length, align, f"where reference {number} is to start", "clip")
        length = min(group.length, clip_length - target, available - source)
        if length < 1:
            raise ValueError(
                f"The mask strategy group for reference {group.reference} covers {length} frames; "
                "the nearest good value is 1."
            )
        spans.append(Span(group.reference, source, target, length, group.edit_ratio))
    return spans


def moved(
    groups: Sequence[Strategy], reference_lengths: Sequence[int], clip_length: int, align: int | None
) -> list[int]:
    """The references of which any group, of any loop, would lie elsewhere if starts were snapped; see :func:`place`."""
    return sorted(
        {
            group.reference
            for group in groups
            if place([group], reference_lengths, clip_length, group.loop, align)
            != place([group], reference_lengths, clip_length, group.loop, None)
        }
    )


def check_reference(number: int, count: int) -> None:
    """Refuse the number of a reference that is not among the ``count`` connected ones."""
    if count < 1:
        raise ValueError(f"The mask strategy asks for reference {number}, but none is connected; connect at least 1.")
    if not 0 <= number < count:
        raise ValueError(
            f"The mask strategy asks for reference {number}, but {count} are connected; the nearest good value is "
            f"{0 if number < 0 else count - 1}."
        )


def _start(start: int, length: int, align: int | None, what: str, where: str) -> int:
    if not -length <= start < length:
        nearest = 0 if start < 0 else length - 1
        raise ValueError(
            f"Latent frame {start}, {what}, lies outside the {where} of {length} latent frames; the nearest good value "
            f"is {nearest}."
        )
    return snap_to_group(start % length, length, align)


def overlapping(spans: Sequence[Span]) -> list[int]:
    """Target frames that more than one span writes; the later span wins there."""
    seen: set[int] = set()
    twice: set[int] = set()
    for span in spans:
        frames = set(range(span.target, span.target + span.length))
        twice |= seen & frames
        seen |= frames
    return sorted(twice)


def listed(numbers: Sequence[int]) -> str:
    """Growing numbers for a sentence: ``1, 4 to 199, 201``, however many they are."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][1] == number - 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first} to {last}" for first, last in runs)


def write_spans(latent: Tensor, mask: Tensor, references: Sequence[Tensor], spans: Sequence[Span]) -> None:
    """Copy the spans into one clip, later ones over earlier ones.

    Args:
        latent: ``[C, T, h, w]``, changed in place; mask: ``[T]``, changed in place.
        references: latents ``[C, t, h, w]``.
    """
    for span in spans:
        source = references[span.reference][:, span.source : span.source + span.length]
        latent[:, span.target : span.target + span.length] = source
        mask[span.target : span.target + span.length] = mask.new_tensor(span.ratios)


def active_frames(mask: Tensor, sigma: float | Tensor) -> Tensor:
    """Where a mask of edit ratios lets step at noise level ``sigma`` change the latents (bool, shape of ``mask``).

    Compared on the 0..1000 scale as in the original; ``sigma`` above 1 counts as 1, so a free frame is never left
    out (the original's rounding skips the first step of small images).
    """
    time = torch.as_tensor(sigma, dtype=torch.float32, device=mask.device).clamp_max(1.0) * TRAIN_TIMESTEPS
    return mask.float() * TRAIN_TIMESTEPS >= time
