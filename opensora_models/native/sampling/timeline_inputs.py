"""From a timeline's plan and the pictures at its sockets to a chain of references, and what the page draws of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from ...sampling.film import Sheet, sheet_of
from ...sampling.fitting import Fit
from ...sampling.placements import AT_POSITION, longest_good
from ...sampling.references import Reference, apply_strategy
from ...sampling.timeline import Plan
from ...sampling.timeline_use import UsedSpans, idle, renumbered, report, segments_of, used_sources, used_spans
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


def plan_references(
    plan: Plan, pictures: Mapping[int, Tensor], vae: Any, clip: ClipSize, before: ReferenceChain, fit: Fit
) -> PlannedChain:
    """The chain ``before`` and after it the plan's references; only pictures that it uses are encoded, each once.

    Raises:
        ValueError: a number without a picture, a place outside the clip, or what the release cannot do; all of it
            before anything is encoded.
    """
    sources, release = used_sources(plan, max(pictures, default=-1) + 1), clip.release
    for number in sources:
        if number not in pictures:
            raise ValueError(
                f"The plan uses reference {number}, but nothing is connected to {SOCKET}{number}; the nearest good "
                f"value is {min(pictures, key=lambda known: abs(known - number))}."
            )
    taken = {number: longest_good(release, batch.shape[0]) for number, batch in pictures.items()}
    lengths = [0] * (max(taken, default=-1) + 1)
    for number, count in taken.items():
        lengths[number] = count if release is None else release.latents.lengths.counting.latents(count)
    used = used_spans(plan, lengths, clip.latent_frames, release, segments=segments_of(plan))
    encoded: list[Reference] = []
    said = idle(sorted(set(pictures) - set(sources)))
    for number in sources:
        placing = Placing(AT_POSITION, take=taken[number], fit=fit)
        references, notes = encode_pictures(vae, (pictures[number], None), clip, placing)
        encoded += references
        said += [f"Reference {number}: {note}" for note in notes]
    placed = apply_strategy(encoded, renumbered(plan, sources))
    films = {number: batch[: taken[number]] for number, batch in pictures.items()}
    sheet = sheet_of(films, dict(enumerate(lengths)), (clip.height, clip.width), fit)
    told = (*said, *report(used))
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
        "before": [asdict(reference.strategy(number)) for number, reference in enumerate(before.references)],
        "said": list(told),
    }
