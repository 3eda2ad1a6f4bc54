"""From a timeline's plan and the pictures at its sockets to a chain of references, and what the page draws of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import Tensor

from ...sampling.film import Sheet, sheet_of
from ...sampling.fitting import Fit
from ...sampling.masks import place
from ...sampling.placements import AT_POSITION, longest_good
from ...sampling.references import Reference, apply_strategy
from ...sampling.timeline import Plan
from ...sampling.timeline_use import (
    UsedSpans,
    empty_sockets,
    idle,
    renumbered,
    report,
    segments_of,
    used_sources,
    used_spans,
)
from .clips import ClipSize
from .reference_inputs import Placing, ReferenceChain, encode_pictures

MOST_SOCKETS = 20
SOCKET = "picture"
"""What sockets are called, a number behind it; the number is the reference's."""
SHOWN_KEY = "opensora_timeline"
"""Under which key the page finds what a run made of a plan."""


@dataclass(frozen=True)
class PlannedChain:
    """A chain of references, the sentences on it, what the page is told, and small pictures for it."""

    chain: ReferenceChain
    notes: tuple[str, ...]
    shown: dict[str, Any]
    sheet: Sheet | None


def numbered_pictures(sockets: Mapping[str, Tensor | None], batch: Tensor | None) -> dict[int, Tensor]:
    """Pictures by the number a plan calls them: that of their socket, or their place in the batch.

    Raises:
        ValueError: both are connected, so that numbers would mean two things.
    """
    found = {int(name.removeprefix(SOCKET)): value for name, value in sockets.items() if value is not None}
    if found and batch is not None:
        raise ValueError("References come from the picture sockets or from one batch, both are connected; keep one.")
    if batch is not None:
        return {number: batch[number : number + 1] for number in range(batch.shape[0])}
    return found


def _check_connected(plan: Plan, pictures: Mapping[int, Tensor], *, batched: bool) -> None:
    """Refuse, with ValueError, a plan that asks for a picture which is not there; ``batched``: they are one batch."""
    for number in (group.reference for group in plan.places):
        if number in pictures:
            continue
        asked = f"The plan asks for reference {number}, but"
        if not pictures:
            raise ValueError(f"{asked} no picture is connected; connect at least 1.")
        lacking = f"the batch has {len(pictures)}" if batched else f"nothing is connected to {SOCKET}{number}"
        nearest = min(pictures, key=lambda known: abs(known - number))
        raise ValueError(f"{asked} {lacking}; the nearest good value is {nearest}.")


def plan_references(
    plan: Plan,
    pictures: Mapping[int, Tensor],
    vae: Any,
    clip: ClipSize,
    before: ReferenceChain,
    fit: Fit,
    *,
    batched: bool = False,
) -> PlannedChain:
    """The chain ``before`` and after it the plan's references; only pictures that it uses are encoded, each once.

    ``batched``: the pictures are one batch and have no sockets of their own.

    Raises:
        ValueError: a number without a picture, a place outside the clip, or what the release cannot do; all of it
            before anything is encoded.
    """
    _check_connected(plan, pictures, batched=batched)
    sources, release = used_sources(plan, max(pictures, default=-1) + 1), clip.release
    taken = {number: longest_good(release, batch.shape[0]) for number, batch in pictures.items()}
    lengths = [0] * (max(taken, default=-1) + 1)
    for number, count in taken.items():
        lengths[number] = count if release is None else release.latents.lengths.counting.latents(count)
    segments = segments_of(plan)
    used = [] if release is None else used_spans(plan, lengths, clip.latent_frames, release, segments=segments)
    encoded: list[Reference] = []
    said = idle(sorted(set(pictures) - set(sources)))
    for number in sources:
        placing = Placing(AT_POSITION, take=taken[number], fit=fit)
        references, notes = encode_pictures(vae, (pictures[number], None), clip, placing)
        encoded += references
        lengths[number] = references[0].frames
        said += [f"Reference {number}: {note}" for note in notes]
    if release is None:  # how many latent frames another model makes of a clip only its VAE tells
        used = used_spans(plan, lengths, clip.latent_frames, release, segments=segments)
    placed = apply_strategy(encoded, renumbered(plan, sources))
    films = {number: batch[: taken[number]] for number, batch in pictures.items()}
    sheet = sheet_of(films, dict(enumerate(lengths)), (clip.height, clip.width), fit)
    told = (*said, *empty_sockets(list(pictures), sources), *report(used))
    return PlannedChain(before.add(placed, said), told, _for_page(clip, used, lengths, before, told), sheet)


def _for_page(
    clip: ClipSize, used: Sequence[UsedSpans], lengths: Sequence[int], before: ReferenceChain, told: Sequence[str]
) -> dict[str, Any]:
    """The clip, the spans as they are used, the references of the chain before, and all sentences."""
    return {
        "release": clip.version,
        "frames": clip.frames,
        "latent_frames": clip.latent_frames,
        "lengths": list(lengths),
        "segments": [asdict(each) for each in used],
        "before": [_drawn(reference, number, clip) for number, reference in enumerate(before.references)],
        "said": list(told),
    }


def _drawn(reference: Reference, number: int, clip: ClipSize) -> dict[str, Any]:
    """A reference of the chain before with the strengths of its frames: where it lands, if it does in this clip."""
    group = reference.strategy(number)
    drawn, align = asdict(group), None if clip.release is None else clip.release.given.align
    try:
        (span,) = place([replace(group, reference=0)], [reference.frames], clip.latent_frames, group.loop, align)
    except ValueError:  # the sampler will refuse it; here it is only shown
        return {**drawn, "strengths": list(reference.ratios)}
    strengths = replace(span, curves=reference.curves).ratios
    return {**drawn, "target_start": span.target, "length": span.length, "strengths": list(strengths)}
