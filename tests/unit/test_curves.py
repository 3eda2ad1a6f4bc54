"""Curves of the cache benchmark: compared at equal rows, never to the disadvantage of what the pack stands beside."""

from __future__ import annotations

import pytest

from opensora.benchmarks._curves import Way, at_rows, gains, mean_with_interval, verdicts


def way(kind: str, rows: float, *psnr: float, name: str = "") -> Way:
    return Way(name or f"{kind} {rows}", kind, list(psnr), rows=[rows] * len(psnr))


def test_between_two_ways_it_is_a_straight_line_for_every_prompt() -> None:
    curve = [way("easy", 40, 60.0, 50.0), way("easy", 20, 40.0, 20.0)]
    assert at_rows(curve, 25) == pytest.approx([45.0, 27.5])
    assert at_rows(curve, 40) == [60.0, 50.0] and at_rows(curve, 20) == [40.0, 20.0]


def test_beyond_its_ends_a_curve_counts_with_more_rows_or_not_at_all() -> None:
    curve = [way("lazy", 40, 60.0), way("lazy", 20, 40.0)]
    assert at_rows(curve, 10) == [40.0] and at_rows(curve, 41) is None and at_rows([], 10) is None


def test_ways_that_are_worse_with_more_rows_are_not_held_against_a_family() -> None:
    curve = [way("easy", 26, 45.0), way("easy", 26, 48.5), way("easy", 28, 47.0), way("easy", 30, 52.5)]
    assert at_rows(curve, 20) == [48.5] and at_rows(curve, 28) == pytest.approx([50.5])


def test_the_gain_is_over_the_best_of_the_others_prompt_by_prompt() -> None:
    found = [
        *(way("full", 50, 100.0, 100.0), way("step", 30, 60.0, 66.0, name="Step Cache 60 %")),
        *(way("easy", 40, 62.0, 62.0), way("easy", 20, 42.0, 46.0), way("fewer", 32, 30.0, 30.0)),
    ]
    told = gains(found)["60"]
    assert told["best"] == "EasyCache" and told["gain"] == pytest.approx(((60 - 52) + (66 - 54)) / 2)
    assert told["half"] == pytest.approx(1.96 * (8**0.5) / 2**0.5)
    assert "+10.0" in verdicts(found)[0] and "above the bar" in verdicts(found)[0]
    assert gains(found[:2])["60"]["best"] is None and "no other way" in verdicts(found[:2])[0]


def test_one_prompt_has_no_interval() -> None:
    mean, half = mean_with_interval([3.0])
    assert mean == 3.0 and half != half
