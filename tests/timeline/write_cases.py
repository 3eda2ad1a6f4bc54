"""Writes ``cases.json``: what random plans mean, how they are written anew, and what a release makes of them."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def completed() -> dict[str, Any]:
    """The cases of ``support/timeline_plans.py`` with the machine's answers."""
    from opensora.opensora_models.sampling.masks import Strategy, overlapping, place
    from opensora.opensora_models.sampling.timeline import FIELDS, Plan, format_plan
    from opensora.opensora_models.text.segments import PromptPart
    from support.timeline_plans import cases

    def strategy_of(row: dict[str, Any]) -> Strategy:
        return Strategy(
            **{FIELDS[name][0]: float(value) if name == "strength" else value for name, value in row.items()}
        )

    found = cases()
    for case in found["good"]:
        prompts = tuple(PromptPart(row["segment"], row["text"]) for row in case["prompts"])
        case["canonical"] = format_plan(Plan(tuple(map(strategy_of, case["references"])), prompts, case["notation"]))
    for case in found["placed"]:
        spans = place(list(map(strategy_of, case["references"])), case["lengths"], case["clip"], 0, case["align"])
        case["spans"] = [[span.reference, span.source, span.target, span.length] for span in spans]
        case["overlap"] = overlapping(spans)
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT / "tests"))
    package = ModuleType("opensora")
    package.__path__ = [str(ROOT)]
    sys.modules["opensora"] = package
    from support.timeline_plans import CASES, dumped

    CASES.write_text(dumped(completed()), encoding="utf-8")
