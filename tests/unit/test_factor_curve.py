"""Curves of factors: what is read, what they give between their points, and what is refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from opensora.opensora_models.sampling import factor_curve
from opensora.opensora_models.sampling.factor_curve import FLAT, FactorCurve, course_of, read_curve
from opensora.opensora_models.sampling.guidance import lowered


def test_every_way_of_writing_says_the_same() -> None:
    points = ((0.0, 1.0), (0.5, 0.7), (1.0, 0.2))
    written = read_curve("0:1, 0.5:0.7; 1 : 0.2\n")
    assert written == FactorCurve(points) == read_curve({"points": [[1, 0.2], [0, 1], [0.5, 0.7]],
                                                         "interpolation": "linear"})  # fmt: skip
    assert read_curve([[0, 1], [0.5, 0.7], [1, 0.2]]) == FactorCurve(points, smooth=True)
    assert read_curve("") == read_curve([]) == FLAT and FLAT.flat
    assert read_curve({"points": [[0, 1], [1, 1]], "interpolation": "monotone_cubic"}).flat


def test_straight_lines_join_the_points_and_the_ends_hold() -> None:
    curve = read_curve("0.25:1, 0.75:0.5")
    assert [curve.at(share) for share in (0, 0.25, 0.5, 0.75, 1)] == [1, 1, 0.75, 0.5, 0.5]
    assert read_curve("0:1, 0.5:1, 0.5:0.2, 1:0.2").over(5) == (1, 1, 0.2, 0.2, 0.2)
    assert read_curve("0:0.4, 1:1").over(1) == (0.4,)


def test_a_smooth_curve_goes_through_its_points_and_never_beyond_them() -> None:
    curve = read_curve([[0, 1], [0.3, 0.95], [0.4, 0.1], [0.8, 0.1], [1, 0.6]])
    assert [curve.at(share) for share, _ in curve.points] == pytest.approx([factor for _, factor in curve.points])
    seen = [curve.at(place / 1000) for place in range(1001)]
    assert min(seen) >= 0.1 - 1e-12 and max(seen) <= 1 + 1e-12
    falling, rising = seen[:401], seen[800:]
    assert falling == sorted(falling, reverse=True) and rising == sorted(rising)


def test_the_slopes_of_a_curve_are_found_once(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    own = factor_curve._slopes

    def counted(points: Any) -> Any:
        found.append(len(points))
        return own(points)

    monkeypatch.setattr(factor_curve, "_slopes", counted)
    curve = read_curve([[place / 999, place % 7 / 7] for place in range(1000)])
    curve.over(60)
    assert found == [1000]
    assert [curve.of(place, 60) for place in range(60)] == list(curve.over(60)) and found == [1000]
    assert read_curve("0:1, 1:0").slopes == read_curve([[0, 0.5]]).slopes == (), (
        "straight lines and one point have none"
    )


def test_using_a_curve_leaves_it_as_it_was() -> None:
    """Attributes tell whether a run was made before."""
    curve = read_curve([[0, 1], [0.3, 0.2], [1, 0.6]])
    before = dict(vars(curve))
    curve.over(9)
    assert vars(curve) == before


def test_shares_and_factors_go_over_the_whole_of_many_points() -> None:
    points = [[place / 999, place % 7 / 7] for place in range(1000)]
    for smooth in ("linear", "monotone_cubic"):
        curve = read_curve({"points": points, "interpolation": smooth})
        assert curve.over(1000) == pytest.approx([factor for _, factor in points])
        assert all(0 <= factor <= 1 for factor in curve.over(3001))


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("0:1, 0.5", "Point 2 of the curve is '0.5'; a point is a share and a factor"),
        ("0:1, 1:2", "The factor of point 2 is 2, but must lie between 0 and 1; the nearest good value is 1"),
        ("-1:1", "The share of point 1 is -1, .* the nearest good value is 0"),
        ("0:x", "The factor of point 1 is 'x', but must be a number"),
        ("0:nan", "must be a number between 0 and 1"),
        ([[0, True]], "The factor of point 1 is True"),
        ([[0, math.inf]], "must be a number"),
        ([1, 2], "Point 1 of the curve is '1'"),
        ({"points": None}, "A curve is made of points, got None; write for example 0:1, 0.5:0.7, 1:0.2"),
        ({"points": [], "interpolation": "steps"}, "the nearest good value is monotone_cubic"),
        (3, "A curve is made of points, got 3"),
        (",".join(["0:1"] * 1001), "has 1001 points, at most 1000 are allowed"),
    ],
)
def test_what_is_no_curve_is_refused_in_one_sentence(value: Any, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence) as caught:
        read_curve(value)
    assert "\n" not in str(caught.value)


def test_how_a_number_moves_is_said_as_it_does() -> None:
    assert course_of([7, 4, 1.5]) == "falls from 7 to 1.5"
    assert course_of([1, 1, 2]) == "rises from 1 to 2"
    assert course_of([3, 3]) == "is 3"
    assert course_of([7, 1, 5, 1]) == "goes from 7 to 1 and lies between 1 and 7"


def test_a_factor_takes_guidance_away_and_never_turns_it_round() -> None:
    assert lowered(7.5, 0.2) == 1.5
    assert lowered(7.5, 0.0) == lowered(7.5, 0.1) == lowered(1.0, 0.5) == 1.0
    assert lowered(0.5, 0.1) == 0.5
    assert lowered(7.3, 1.0) == 7.3
