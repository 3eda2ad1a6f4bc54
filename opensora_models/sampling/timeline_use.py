"""How a release uses a plan of a timeline: what is snapped, cut and written over, in the words references have."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from ..releases.release import Release
from .given_input import untrained
from .masks import Span, Strategy, check_reference, listed, place
from .references import check_room_for, check_strength, filling_notes
from .timeline import Plan

MOST_TOLD = 20
"""Sentences that a node and the log show of a plan; more would fill the page."""


@dataclass(frozen=True)
class UsedSpans:
    """What one segment's clip gets: ``spans`` in the order written, and sentences on them."""

    segment: int
    spans: tuple[Span, ...]
    notes: tuple[str, ...]


def used_sources(plan: Plan, count: int) -> list[int]:
    """Numbers of the references a plan takes, each once, in order.

    Raises:
        ValueError: one that is not among the ``count`` connected ones.
    """
    for group in plan.places:
        check_reference(group.reference, count)
    return sorted({group.reference for group in plan.places})


def idle(numbers: Sequence[int]) -> list[str]:
    """A sentence on connected pictures that a plan does not name, by their numbers in order."""
    subject = f"Reference {listed(numbers)} is" if len(numbers) == 1 else f"References {listed(numbers)} are"
    return [f"{subject} connected and in no place of the plan."] * bool(numbers)


def empty_sockets(connected: Sequence[int], sources: Sequence[int]) -> list[str]:
    """A sentence on sockets without a picture in front of one that is used: the mask strategy counts them as well.

    Args:
        connected: numbers of the pictures that are there.
        sources: those that the plan takes.
    """
    empty = sorted(set(range(max(sources, default=0))) - set(connected))
    if not empty:
        return []
    names = ", ".join(f"picture{number}" for number in empty)
    return [
        f"Nothing is connected to {names}, and mask_strategy counts sockets: a list of references for it needs an "
        "entry there too."
    ]


def renumbered(plan: Plan, sources: Sequence[int]) -> list[Strategy]:
    """The places with references counted among ``sources``, the numbers that are really used."""
    return [replace(group, reference=sources.index(group.reference)) for group in plan.places]


def used_spans(
    plan: Plan, lengths: Sequence[int], clip_length: int, release: Release | None, *, segments: int = 1
) -> list[UsedSpans]:
    """What every segment that the plan names gets.

    Args:
        lengths: latent frames of every reference.
        clip_length: latent frames of a segment's clip.
        segments: how many segments are made; -1 in a plan is the last of them.

    Raises:
        ValueError: what :func:`.masks.place` refuses, a strength the release does not know, and frames that leave
            nothing to make where a release can only be given them.
    """
    groups = [replace(group, loop=group.loop % segments) if group.loop < 0 else group for group in plan.places]
    for group in groups:
        check_strength(group.edit_ratio, release)
    align = None if release is None else release.given.align
    found = []
    for segment in sorted({group.loop for group in groups}):
        spans = place(groups, lengths, clip_length, segment, align)
        given = {span.target + frame for span in spans for frame in range(span.length)}
        check_room_for(len(given), clip_length, release)
        notes = filling_notes(groups, spans, segment, clip_length, lengths, align)
        notes += untrained(spans, clip_length, release) if release is not None else []
        found.append(UsedSpans(segment, tuple(spans), tuple(notes)))
    return found


def segments_of(plan: Plan) -> int:
    """How many segments a long video needs so that everything in the plan is used."""
    last = [group.loop for group in plan.places] + [part.first_segment for part in plan.prompts]
    return max([0, *last]) + 1


def report(used: Sequence[UsedSpans]) -> list[str]:
    """All sentences; where there are several segments each says which one it is about."""
    if len(used) == 1 and used[0].segment == 0:
        return list(used[0].notes)
    return [f"Segment {each.segment}: {note}" for each in used for note in each.notes]


def most_important(notes: Sequence[str]) -> list[str]:
    """The first sentences, and how many more the report holds."""
    rest = len(notes) - MOST_TOLD
    return [*notes[:MOST_TOLD], *[f"The report has {rest} sentences more."] * (rest > 0)]
