"""The shared cases of a timeline's plan with the machine's answers, for the tests in Python and in JavaScript."""

from __future__ import annotations

from typing import Any

from opensora.opensora_models.releases.known import RELEASES
from opensora.opensora_models.releases.release import Release
from opensora.opensora_models.sampling.masks import Strategy, overlapping, place
from opensora.opensora_models.sampling.references import filling_notes
from opensora.opensora_models.sampling.timeline import FIELDS, Plan, format_plan
from opensora.opensora_models.sampling.timeline_use import report, used_spans
from opensora.opensora_models.text.segments import PromptPart
from support.timeline_plans import cases


def strategy_of(row: dict[str, Any]) -> Strategy:
    """A place as the machine holds it."""
    return Strategy(**{FIELDS[name][0]: float(value) if name == "strength" else value for name, value in row.items()})


def completed() -> dict[str, Any]:
    """The cases of ``support/timeline_plans.py`` with the machine's answers."""
    found = cases(list(RELEASES))
    for case in found["good"]:
        prompts = tuple(PromptPart(row["segment"], row["text"]) for row in case["prompts"])
        case["canonical"] = format_plan(Plan(tuple(map(strategy_of, case["references"])), prompts, case["notation"]))
    for case in found["placed"]:
        spans = place(list(map(strategy_of, case["references"])), case["lengths"], case["clip"], 0, case["align"])
        case["spans"] = [[span.reference, span.source, span.target, span.length] for span in spans]
        case["overlap"] = overlapping(spans)
        groups = list(map(strategy_of, case["references"]))
        case["notes"] = filling_notes(groups, spans, 0, case["clip"], case["lengths"], case["align"])
    for case in found["used"]:
        case["notes"], case["refused"] = what_is_said(case)
    found["releases"] = [release_rules(release) for release in RELEASES.values()]
    return found


def what_is_said(case: dict[str, Any]) -> tuple[list[str], str]:
    """Sentences on a plan as a release uses it, or the one with which it is refused."""
    plan = Plan(tuple(map(strategy_of, case["references"])))
    try:
        return report(used_spans(plan, case["lengths"], case["clip"], RELEASES[case["release"]])), ""
    except ValueError as error:
        return [], str(error)


def release_rules(release: Release) -> dict[str, Any]:
    """What the page must know of a release: frames of 1 to 60 latent frames, and the first frame each of them holds."""
    counting = release.latents.lengths.counting
    holding = [counting.holding(frame, 60) for frame in range(counting.frames(60))]
    return {
        "id": release.id,
        "title": release.title,
        "align": release.given.align,
        "editable": release.given.frame_mask,
        "anywhere": release.given.anywhere,
        "takes": list(release.given.takes),
        "first": release.latents.lengths.first,
        "frames": [counting.frames(latents) for latents in range(1, 61)],
        "starts": [holding.index(latent) if latent in holding else None for latent in range(60)],
    }
