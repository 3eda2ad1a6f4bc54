"""Strength along the clip: the numbers frames get, what a mask strategy says of them, what is told and refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.releases.known import RELEASES
from opensora.opensora_models.sampling.factor_curve import FLAT, FactorCurve, read_curve, together
from opensora.opensora_models.sampling.masks import moved, parse_strategy
from opensora.opensora_models.sampling.references import (
    Reference,
    apply_strategy,
    lay_out,
    strategy_text,
    without_curves,
)
from opensora.opensora_models.sampling.strength_over_clip import UNCHANGED, with_strength_curve

RISING = read_curve("0:0, 1:1")
LATE = read_curve("0:0, 0.5:0, 1:1")


def clip(frames: int = 15) -> Tensor:
    return torch.zeros(4, frames, 2, 3)


def film(frames: int, **more: object) -> Reference:
    numbers = torch.arange(1.0, frames + 1).reshape(1, -1, 1, 1).expand(4, -1, 2, 3)
    return Reference(numbers, **more)  # type: ignore[arg-type]


def test_the_axis_is_the_references_own_frames_as_they_are_placed() -> None:
    whole = film(5, target_start=2, edit_ratio=1.0, curves=(RISING,))
    placed = lay_out([whole], clip())
    assert placed.mask.tolist() == [1.0, 1.0, 0.0, 0.25, 0.5, 0.75, 1.0, *[1.0] * 8]
    assert placed.latent[0, :, 0, 0].tolist() == [0.0, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0, *[0.0] * 8]
    cut = lay_out([replace(whole, target_start=12)], clip())
    assert cut.mask[12:].tolist() == [0.0, 0.5, 1.0], "the curve ends where the reference ends in the clip"
    part = lay_out([replace(whole, source_start=-3, length=2)], clip())
    assert part.mask[2:4].tolist() == [0.0, 1.0]
    assert lay_out([film(1, edit_ratio=0.5, curves=(read_curve("0:0.5, 1:1"),))], clip()).mask[0] == 0.25


def test_it_stays_the_same_under_what_a_later_reference_writes_over_it() -> None:
    over = film(2, target_start=3, edit_ratio=0.5)
    placed = lay_out([film(5, edit_ratio=1.0, curves=(RISING,)), over], clip())
    assert placed.mask[:6].tolist() == [0.0, 0.25, 0.5, 0.5, 0.5, 1.0]


def test_groups_of_the_release_move_the_reference_and_its_curve() -> None:
    placed = lay_out([film(5, target_start=4, edit_ratio=1.0, curves=(RISING,))], clip(), align=5)
    assert placed.mask[5:10].tolist() == [0.0, 0.25, 0.5, 0.75, 1.0]


def test_a_segment_of_a_long_video_has_the_curve_over_its_own_frames() -> None:
    later = film(3, segment=-1, target_start=-3, edit_ratio=0.8, curves=(RISING,))
    assert lay_out([later], clip(), segment=0, segments=3).mask.tolist() == [1.0] * 15
    last = lay_out([later], clip(), segment=2, segments=3)
    assert last.mask[12:].tolist() == torch.tensor([0.0, 0.4, 0.8]).tolist()


@pytest.mark.parametrize("strength", [0.0, 0.1, 0.3, 0.7, 1.0])
def test_flat_curves_are_no_curve_bit_for_bit(strength: float) -> None:
    plain = film(7, target_start=3, edit_ratio=strength)
    for curves in ((FLAT,), (FactorCurve(((0.2, 1.0), (0.4, 1.0)), smooth=True), FLAT)):
        flat, none = (lay_out([each], clip()) for each in (replace(plain, curves=curves), plain))
        assert torch.equal(flat.mask, none.mask) and torch.equal(flat.latent, none.latent) and flat.notes == none.notes
    made = with_strength_curve([plain], 0, FLAT)
    assert made.references == (plain,) and made.references[0] is plain and made.said == UNCHANGED and not made.works


def test_curves_multiply_and_stay_within_the_limits() -> None:
    assert together([], 3) == (1.0, 1.0, 1.0)
    twice = with_strength_curve([film(3, edit_ratio=1.0)], 0, RISING)
    twice = with_strength_curve(twice.references, -1, RISING)
    assert lay_out(twice.references, clip()).mask[:3].tolist() == [0.0, 0.25, 1.0]
    smooth = read_curve([[0, 1], [0.31, 0], [0.62, 1], [1, 0]])
    ratios = film(997, edit_ratio=1.0, curves=(smooth,)).ratios
    assert min(ratios) >= 0.0 and max(ratios) <= 1.0


def test_only_the_chosen_reference_gets_it() -> None:
    chain = [film(3, edit_ratio=0.5), film(3, edit_ratio=0.5), film(3, edit_ratio=0.5)]
    for number, place in ((0, 0), (1, 1), (-1, 2), (-3, 0)):
        made = with_strength_curve(chain, number, RISING).references
        assert [bool(each.curves) for each in made] == [each == place for each in range(3)]


def test_it_is_told_how_the_strength_moves() -> None:
    made = with_strength_curve([film(1), film(5, edit_ratio=0.8)], 1, LATE)
    assert made.works and made.said == "Reference 1: its strength rises from 0 to 0.8 over its 5 latent frames."
    placed = lay_out(made.references, clip())
    assert placed.notes[1] == "Reference 1 fills latent frames 0 to 4, edited with a strength that rises from 0 to 0.8."
    kept = with_strength_curve([film(5, edit_ratio=0.8)], 0, read_curve("0:0, 1:0"))
    assert lay_out(kept.references, clip()).notes == ("Reference 0 fills latent frames 0 to 4, kept as it is.",)
    half = with_strength_curve([film(5, edit_ratio=0.8)], 0, read_curve("0:0.5"))
    assert lay_out(half.references, clip()).notes[0].endswith("edited with strength 0.4.")
    one = with_strength_curve([film(1, edit_ratio=0.8)], 0, read_curve("0:0.5, 1:1"))
    assert one.works and one.said.endswith("the curve's first factor counts: its strength 0.8 becomes 0.4.")
    assert with_strength_curve([film(1, edit_ratio=0.8)], 0, read_curve("0:1, 1:0")).said.endswith(
        "strength 0.8 stays."
    )


def test_a_factor_on_nothing_is_told_and_leaves_the_reference() -> None:
    for release, said in (
        (None, "give it strength 1 and let the curve rise from 0 to 1"),
        ("1.3", "give it strength 1"),
        ("2.0", "Open-Sora 2.0 can only keep the frames of reference 0 as they are"),
    ):
        kept = film(5, release=release)
        made = with_strength_curve([kept], 0, RISING)
        assert made.references[0] is kept and not made.works and said in made.said


def test_a_strength_that_curves_made_nothing_is_not_blamed_on_the_reference() -> None:
    early, late = read_curve("0:1, 0.5:1, 0.5:0, 1:0"), read_curve("0:0, 0.5:0, 0.5:1, 1:1")
    for curves in ((read_curve("0:0"),), (read_curve("0:0.5, 1:0.5"), read_curve("0:0")), (early, late)):
        gone = film(4, edit_ratio=0.5, curves=curves)
        made = with_strength_curve([gone], 0, RISING)
        assert made.references[0] is gone and not made.works
        assert made.said == (
            "The curve changes nothing: the curves before it bring the strength of reference 0 from 0.5 to 0, and a "
            "factor on it leaves it there; raise one of them or take it away."
        )


def test_aligning_moves_only_groups_that_begin_elsewhere() -> None:
    half = film(10, edit_ratio=1.0, curves=(read_curve("0:0.5"),))
    steps = film(10, edit_ratio=1.0, curves=(read_curve("0:0, 0.5:0, 0.5:1, 1:1"),))
    for chain, expected in (([half], []), ([steps], []), ([half, film(10, edit_ratio=1.0, curves=(RISING,))], [1])):
        groups = parse_strategy(strategy_text(chain, 15, 5))
        assert moved(groups, [each.frames for each in chain], 15, 5) == expected
        again = apply_strategy(chain, groups)
        if not expected:
            assert lay_out(again, clip(), align=5).mask.tolist() == lay_out(chain, clip(), align=5).mask.tolist()


@pytest.mark.parametrize(
    ("count", "number", "said"),
    [
        (0, -1, "holds no reference .* connect at least 1"),
        (2, 2, "no reference 2 in a chain of 2, counted from 0; the nearest good value is 1"),
        (2, -3, "no reference -3 in a chain of 2, counted from 0; the nearest good value is -2"),
    ],
)
def test_a_number_that_no_reference_has_is_refused(count: int, number: int, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        with_strength_curve([film(1)] * count, number, RISING)


@pytest.mark.parametrize("release", [release for release in RELEASES.values() if not release.given.frame_mask])
def test_where_a_frame_is_given_or_made_every_strength_is_looked_at(release) -> None:
    frames = torch.zeros(release.latents.channels, 1, 2, 3)
    target = torch.zeros(release.latents.channels, 9, 2, 3)
    fading = Reference(frames.expand(-1, 3, -1, -1), edit_ratio=1.0, curves=(read_curve("0:0, 0.5:0, 1:0.4"),))
    with pytest.raises(ValueError, match=r"the strength 0.4 was asked for, the nearest good value is 0\."):
        lay_out([fading], target, release=release)
    kept = lay_out([replace(fading, curves=(read_curve("0:0"),))], target, release=release)
    assert kept.mask[:3].tolist() == [0.0] * 3


@pytest.mark.parametrize("align", [None, 5])
def test_a_mask_strategy_says_curves_by_several_groups(align: int | None) -> None:
    curved = film(10, target_start=4, edit_ratio=0.5, curves=(read_curve("0:0, 0.5:0, 1:1"),))
    chain = [film(1, target_start=-1), curved, film(2, segment=-1, target_start=1, edit_ratio=0.3, curves=(RISING,))]
    text = strategy_text(chain, 15, align)
    groups = parse_strategy(text)
    assert [group.length for group in groups if group.reference == 1][0] == 5, "equal strengths stay one group"
    again = apply_strategy(chain, groups)
    assert not any(each.curves for each in again)
    for segment in (0, 2):
        wanted = lay_out(chain, clip(), segment=segment, segments=3, align=align)
        got = lay_out(again, clip(), segment=segment, segments=3)
        assert torch.equal(got.mask, wanted.mask) and torch.equal(got.latent, wanted.latent)


def test_a_strategy_replaces_curves_and_that_is_told() -> None:
    chain = [film(3, edit_ratio=1.0, curves=(RISING,)), film(3), film(3, edit_ratio=1.0, curves=(RISING,))]
    assert "curve on the strength of references 0, 2 is not used" in without_curves(chain, parse_strategy("0,0;0,2"))[0]
    assert "strength of reference 2 is not" in without_curves(chain, parse_strategy("0,2;0,1"))[0]
    assert without_curves(chain, parse_strategy("0,1")) == without_curves(chain, []) == []
