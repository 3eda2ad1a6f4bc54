"""References: where they go, what is told, what is refused."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.sampling.masks import format_strategy, parse_strategy
from opensora.opensora_models.sampling.references import (
    Reference,
    append_generated,
    apply_strategy,
    given_spans,
    lay_out,
    strategy_text,
)


def clip(frames: int = 15) -> Tensor:
    return torch.zeros(4, frames, 2, 3)


def picture(value: float, frames: int = 1) -> Tensor:
    return torch.full((4, frames, 2, 3), value)


def test_references_are_written_with_their_strength() -> None:
    placed = lay_out([Reference(picture(1.0)), Reference(picture(2.0, 3), target_start=-3, edit_ratio=0.5)], clip())
    assert placed.mask.tolist() == [0.0] + [1.0] * 11 + [0.5] * 3
    assert placed.frames == (0, 12, 13, 14)
    assert placed.latent[0, :, 0, 0].tolist() == [1.0] + [0.0] * 11 + [2.0] * 3


def test_the_later_reference_wins_and_that_is_told() -> None:
    placed = lay_out([Reference(picture(1.0, 3)), Reference(picture(2.0, 3), target_start=2)], clip())
    assert placed.latent[0, :5, 0, 0].tolist() == [1.0, 1.0, 2.0, 2.0, 2.0]
    assert any("overlap at latent frames 2" in note for note in placed.notes)


def test_a_cut_is_told() -> None:
    placed = lay_out([Reference(picture(1.0, 5), target_start=13)], clip())
    assert any("cut from 5 to 2" in note for note in placed.notes)


def test_the_last_segment_is_number_minus_one() -> None:
    closing = Reference(picture(1.0), target_start=-1, segment=-1)
    assert lay_out([closing], clip(), segment=0, segments=3).frames == ()
    assert lay_out([closing], clip(), segment=2, segments=3).frames == (14,)


def test_a_reference_of_a_segment_that_a_single_clip_has_not_is_told() -> None:
    later = Reference(picture(1.0), segment=1)
    placed = lay_out([Reference(picture(2.0)), later], clip())
    assert placed.frames == (0,)
    assert any("Reference 1 belongs to segment 1" in note for note in placed.notes)
    assert not any("belongs" in note for note in lay_out([later], clip(), segment=0, segments=2).notes)
    last = lay_out([Reference(picture(1.0), segment=-1)], clip())
    assert last.frames == (0,) and not any("belongs" in note for note in last.notes)


def test_strategy_text_and_placements_say_the_same() -> None:
    references = [Reference(picture(1.0)), Reference(picture(2.0, 8), -8, 0, 8, 0.25, 1)]
    again = apply_strategy(references, parse_strategy(strategy_text(references, 15)))
    assert format_strategy(parse_strategy(strategy_text(references, 15))) == "0,0,0,0,1,0.0;1,1,0,-8,8,0.25"
    for segment in (0, 1):
        direct, by_text = (lay_out(each, clip(), segment=segment) for each in (references, again))
        assert torch.equal(direct.latent, by_text.latent)
        assert torch.equal(direct.mask, by_text.mask)


def test_a_loop_appends_the_end_of_the_clip_before() -> None:
    assert append_generated("0", 1, 1, 5, 0.0) == "0;1,1,-5,0,5,0.0"


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: lay_out([Reference(torch.zeros(16, 1, 2, 3))], clip()), "different Open-Sora versions"),
        (lambda: lay_out([Reference(torch.zeros(4, 1, 2, 4))], clip()), "nearest good size is 16x24"),
        (lambda: lay_out([Reference(picture(1.0), target_start=15)], clip()), "nearest good value is 14"),
        (lambda: lay_out([Reference(picture(1.0), target_start=-16)], clip()), "nearest good value is 0"),
        (
            lambda: apply_strategy([Reference(picture(1.0))], parse_strategy("0,2")),
            "connected; the nearest good value is 0",
        ),
        (lambda: parse_strategy("0,0,0,0,1,1.5"), "nearest good value is 1"),
        (lambda: parse_strategy("0,x"), "whole number"),
        (lambda: given_spans("v2v_tail", [1], 8, 5, close=True), "i2v_head, i2v_tail, i2v_loop, v2v_head"),
        (lambda: given_spans("i2v_head", [], 8, 5, close=True), "at least 1"),
    ],
)
def test_what_cannot_work_is_refused_with_the_nearest_good_value(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
