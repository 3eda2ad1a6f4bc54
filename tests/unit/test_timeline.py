"""The text of a timeline's plan: read, refused in one sentence, written, and used by a release's rules."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch

from opensora.opensora_models.releases.known import RELEASES
from opensora.opensora_models.sampling.film import CELL_HEIGHT, MOST_CELLS, sheet_of
from opensora.opensora_models.sampling.masks import Strategy, format_strategy, overlapping, place
from opensora.opensora_models.sampling.timeline import FIELDS, Plan, format_plan, parse_plan
from opensora.opensora_models.sampling.timeline_use import (
    empty_sockets,
    idle,
    renumbered,
    report,
    segments_of,
    used_sources,
    used_spans,
)
from opensora.opensora_models.text.segments import PromptPart, split_prompt
from support.timeline_cases import completed
from support.timeline_plans import CASES, COUNT, dumped

SHARED = json.loads(CASES.read_text(encoding="utf-8"))


def strategy_of(row: dict[str, Any]) -> Strategy:
    return Strategy(**{FIELDS[name][0]: value for name, value in row.items()})


def plan_of(case: dict[str, Any]) -> Plan:
    prompts = tuple(PromptPart(row["segment"], row["text"]) for row in case["prompts"])
    return Plan(tuple(strategy_of(row) for row in case["references"]), prompts, case["notation"])


def test_every_way_to_write_a_plan_is_read_and_written_back() -> None:
    assert len(SHARED["good"]) == COUNT
    for case in SHARED["good"]:
        plan = parse_plan(case["text"])
        assert plan == plan_of(case)
        text = format_plan(plan)
        assert parse_plan(text) == plan
        assert format_plan(parse_plan(text)) == text == case["canonical"]


def test_nothing_is_zero_with_a_sign() -> None:
    assert parse_plan('{"references": [{"strength": -0.0, "at": -0}]}').strategy == "0,0,0,0,1,0.0"


def test_both_notations_place_alike() -> None:
    for case in SHARED["good"]:
        plan = plan_of(case)
        if plan.places:
            assert parse_plan(plan.strategy).places == plan.places
            assert parse_plan(format_plan(Plan(plan.places))).places == plan.places


@pytest.mark.parametrize("case", SHARED["wrong"], ids=lambda case: ascii(case["text"][:60]))
def test_a_wrong_text_is_refused_in_one_sentence(case: dict[str, Any]) -> None:
    with pytest.raises(ValueError) as caught:
        parse_plan(case["text"])
    sentence = str(caught.value)
    assert sentence.endswith(".") and "\n" not in sentence and len(sentence) < 250
    assert case["sentence"] in (None, sentence)


@pytest.mark.parametrize("text", ['{"a":' * 20000, '{"references": [{"at": ' + "9" * 5000 + "}]}", "9" * 5000])
def test_a_text_nobody_meant_is_refused_too(text: str) -> None:
    with pytest.raises(ValueError):
        parse_plan(text)


def test_the_shared_cases_say_what_places_become() -> None:
    for case in SHARED["placed"]:
        groups = [strategy_of(row) for row in case["references"]]
        spans = place(groups, case["lengths"], case["clip"], 0, case["align"])
        assert [[span.reference, span.source, span.target, span.length] for span in spans] == case["spans"]
        assert overlapping(spans) == case["overlap"]


def test_the_shared_cases_are_those_of_today() -> None:
    """What the page is tested with is what the machine says now; `tests/timeline/write_cases.py` renews it."""
    assert json.loads(dumped(completed())) == SHARED


def test_words_come_out_as_prompt_segments_gives_them() -> None:
    plan = parse_plan('{"prompts": [{"segment": 2, "text": " the sea "}, {"text": "a forest"}]}')
    assert plan.prompt == "|0|a forest|2|the sea"
    assert [part.first_segment for part in split_prompt(plan.prompt)] == [0, 2]
    assert parse_plan('{"prompts": [{"text": "a forest"}]}').prompt == "a forest"
    assert parse_plan("0;0,1").prompt == parse_plan("").prompt == ""


def test_a_release_snaps_cuts_and_says_so() -> None:
    plan = parse_plan("0,0,0,3,9;0,1,0,4,1,0.3")
    used = used_spans(plan, [5, 1], 10, RELEASES["1.2"])
    assert [(span.target, span.length) for span in used[0].spans] == [(5, 5), (5, 1)]
    assert report(used) == [
        "Reference 0 fills latent frames 5 to 9, kept as it is.",
        "Reference 0: the start in the clip was moved from latent frame 3 to 5, the nearest group of 5.",
        "Reference 0 was cut from 9 to 5 latent frames.",
        "Reference 1 fills latent frame 5, edited with strength 0.3.",
        "Reference 1: the start in the clip was moved from latent frame 4 to 5, the nearest group of 5.",
        "References overlap at latent frames 5; the later reference in the chain wins there.",
    ]
    free = used_spans(plan, [9, 1], 20, RELEASES["1.3"])
    assert [(span.target, span.length) for span in free[0].spans] == [(3, 9), (4, 1)]


def test_what_a_release_cannot_do_is_refused() -> None:
    with pytest.raises(ValueError, match="one time for all frames"):
        used_spans(parse_plan("0,0,0,0,1,0.3"), [1], 9, RELEASES["2.0"])


def test_a_release_that_cannot_edit_needs_something_to_make() -> None:
    full = parse_plan("0,0,0,0,9")
    with pytest.raises(
        ValueError, match="fill all 9 latent frames, so nothing is left to make; give at most 29 frames"
    ):
        used_spans(full, [9], 9, RELEASES["2.0"])
    assert used_spans(parse_plan("0,0,0,0,8"), [9], 9, RELEASES["2.0"])[0].spans[0].length == 8
    assert used_spans(full, [9], 9, RELEASES["1.3"])[0].spans[0].length == 9
    with pytest.raises(ValueError, match="single picture from words alone"):
        used_spans(parse_plan("0"), [1], 1, RELEASES["2.0"])


def test_a_sentence_stays_short_however_much_overlaps() -> None:
    plan = parse_plan(";".join(["0,0,0,0,1000"] * 200))
    (last,) = (note for note in report(used_spans(plan, [1000], 1000, None)) if "overlap" in note)
    assert last == "References overlap at latent frames 0 to 999; the later reference in the chain wins there."


def test_segments_are_told_apart() -> None:
    plan = parse_plan("0;2,1;-1,0")
    assert segments_of(plan) == 3
    used = used_spans(plan, [1, 1], 5, None, segments=3)
    assert [each.segment for each in used] == [0, 2]
    assert report(used)[1:3] == [
        "Segment 2: Reference 1 fills latent frame 0, kept as it is.",
        "Segment 2: Reference 0 fills latent frame 0, kept as it is.",
    ]


def test_only_references_that_are_used_are_asked_for() -> None:
    plan = parse_plan("0,7;0,2;0,7,0,3")
    assert used_sources(plan, 8) == [2, 7]
    assert [group.reference for group in renumbered(plan, [2, 7])] == [1, 0, 1]
    with pytest.raises(ValueError, match="the nearest good value is 6"):
        used_sources(plan, 7)


def test_pictures_that_no_place_names_are_told() -> None:
    assert idle([]) == []
    assert idle([3]) == ["Reference 3 is connected and in no place of the plan."]
    assert idle([1, *range(4, 200), 201]) == ["References 1, 4 to 199, 201 are connected and in no place of the plan."]


def test_empty_sockets_in_front_of_a_used_one_are_told() -> None:
    """The mask strategy counts sockets, so what is read with it needs an entry for them."""
    assert empty_sockets([0, 1, 2], [0, 2]) == empty_sockets([0], [0]) == empty_sockets([], []) == []
    assert empty_sockets([0, 3], [0]) == [], "nothing behind the gap is used"
    (said,) = empty_sockets([1, 4, 5], [4])
    assert said.startswith("Nothing is connected to picture0, picture2, picture3, and mask_strategy counts sockets")


def test_the_plan_is_what_a_chain_would_write() -> None:
    plan = parse_plan('{"references": [{"at": -1, "strength": 0.5}]}')
    assert plan.strategy == format_strategy(plan.places) == "0,0,0,-1,1,0.5"


def test_small_pictures_lie_on_one_sheet() -> None:
    clip = torch.stack([torch.full((90, 160, 3), value / 16) for value in range(17)])
    gray, broken = torch.full((1, 20, 20, 1), 0.5), torch.full((1, 20, 20, 4), float("nan"))
    sheet = sheet_of({0: clip, 2: gray, 3: broken, 4: clip[:0]}, {0: 5, 2: 1, 3: 1, 4: 1}, (180, 320), "crop")
    assert sheet is not None and sheet.strips == {0: (0, 5), 2: (5, 1), 3: (6, 1)}
    assert sheet.picture.shape == (1, CELL_HEIGHT, 7 * sheet.width, 3) and torch.isfinite(sheet.picture).all()
    seen = [sheet.picture[0, 32, cell * sheet.width + 20, 0].item() for cell in range(7)]
    assert seen == pytest.approx([0, 0.25, 0.5, 0.75, 1, 0.5, 0], abs=0.01)
    assert sheet_of({}, {}, (64, 64), "crop") is None


def test_a_sheet_stays_small() -> None:
    many = {number: torch.zeros(1, 8, 8, 3) for number in range(300)}
    sheet = sheet_of(many, dict.fromkeys(many, 1), (64, 64), "pad")
    assert sheet is not None and len(sheet.strips) == MOST_CELLS == sheet.columns * sheet.rows
    long = sheet_of({0: torch.zeros(400, 8, 8, 3)}, {0: 400}, (64, 64), "stretch")
    assert long is not None and long.strips == {0: (0, MOST_CELLS)}
