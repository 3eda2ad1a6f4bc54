"""Step tables: read from text, laid over other runs, and the best of every size against all there are."""

from __future__ import annotations

import itertools
import random
import re

import pytest

from opensora.opensora_models.caching.choosing import best_tables, errors_of, worst_first
from opensora.opensora_models.caching.published import PUBLISHED, RATIOS, magnitude_flags
from opensora.opensora_models.caching.tables import StepTable, read_table, spread

EVEN = [1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0]
TABLES = ("1111111111", "1010101010", "1110100100", "1000000000", "1100000001")


def levels_of(steps: int, shift: float = 1.0) -> list[float]:
    times = [1 - step / steps for step in range(steps + 1)]
    return [shift * time / (1 + (shift - 1) * time) for time in times]


@pytest.mark.parametrize("flags", TABLES)
@pytest.mark.parametrize("shift", (0.3, 1.0, 6.0))
def test_the_same_schedule_gives_the_same_steps(flags: str, shift: float) -> None:
    schedule = levels_of(10, shift)
    assert StepTable(flags).for_run(schedule) == flags
    assert StepTable(flags, tuple(schedule[:-1])).for_run(schedule) == flags


@pytest.mark.parametrize("flags", TABLES)
@pytest.mark.parametrize("steps", (3, 7, 20, 30, 101))
def test_another_number_of_steps_computes_every_span_it_enters_once(flags: str, steps: int) -> None:
    table, schedule = StepTable(flags, tuple(EVEN[:-1])), levels_of(steps, 2.0)
    spans = [table.span(level) for level in schedule[:-1]]
    mapped = table.for_run(schedule)
    assert mapped[0] == "1" and len(mapped) == steps
    for span in {span for span in spans if span is not None}:
        assert "".join(flag for flag, own in zip(mapped, spans, strict=True) if own == span).count("1") == 1
    assert all(flag == "1" for flag, own in zip(mapped, spans, strict=True) if own is None)


def test_levels_decide_and_not_the_number_of_the_step() -> None:
    late = StepTable("11110000", (1.0, 0.95, 0.9, 0.85, 0.4, 0.3, 0.2, 0.1))
    assert late.for_run(levels_of(10)) == "1110000000"  # 0.8 to 0.1 lie in the span of 0.85
    assert late.for_run([0.5, 0.4, 0.0]) == "10", "a run that begins late has nothing to reuse at first"


def test_levels_between_steps_and_rounded_ones() -> None:
    table = StepTable("1010", (1.0, 0.75, 0.5, 0.25))
    assert [table.span(level) for level in (1.0, 0.9, 0.75, 0.6, 0.5000001, 0.5, 0.499999, 0.1, 0.0)] == [
        *(0, 0, 0, 0, 2, 2, 2, 2, 2)
    ]
    assert table.span(1.7) == 0


def test_flags_without_levels_are_spread_over_the_run() -> None:
    assert spread([1.0, 0.5, 0.0], 4) == (1.0, 0.75, 0.5, 0.25)
    assert spread([1.0, 0.9, 0.3, 0.0], 3) == (1.0, 0.9, 0.3)
    assert StepTable("10").for_run(levels_of(6)) == "100000", "one span over the whole run"
    assert StepTable("1011").for_run(levels_of(8)) == "10001111"


@pytest.mark.parametrize(
    ("text", "flags", "levels"),
    [
        (" 1110 10\n10 ", "11101010", ()),
        ("1,0,1", "101", ()),
        ('"110"', "110", ()),
        ("[1, 0, true]", "101", ()),
        ('{"steps": "110"}', "110", ()),
        ('{"computed": [0, 2], "of": 4}', "1010", ()),
        ('{"steps": "10", "levels": [1, 0.25]}', "10", (1.0, 0.25)),
    ],
)
def test_tables_are_read_from_text(text: str, flags: str, levels: tuple[float, ...]) -> None:
    assert read_table(text) == StepTable(flags, levels)


@pytest.mark.parametrize(
    "text",
    [
        *("", "  ", "0110", "1102", "eins", "{", "[]", "[1, 2]", "[[1]]", "{}", '"', "[" * 100_000),
        *('{"steps": 5}', '{"steps": ""}', '{"computed": [0], "of": 0}', '{"computed": [9], "of": 4}'),
        *('{"computed": 1, "of": 4}', '{"computed": [true], "of": 4}', '{"computed": [1], "of": 4}', "1" * 1001),
        *('{"steps": "10", "levels": [1]}', '{"steps": "10", "levels": [0.5, 0.6]}'),
        *('{"steps": "10", "levels": [1, 1]}', '{"steps": "10", "levels": [1, NaN]}'),
        *('{"steps": "10", "levels": "no"}', '{"steps": "10", "levels": [1, 0]}', '{"steps": "10", "levels": [1, ""]}'),
    ],
)
def test_a_wrong_table_is_refused_in_one_sentence(text: str) -> None:
    with pytest.raises(ValueError, match=r"(step|Step)") as caught:
        read_table(text)
    assert str(caught.value).rstrip().endswith(".") and "\n" not in str(caught.value)


@pytest.mark.parametrize("flags", ["0", "01", "0" * 100, "0" * 101])
def test_a_suggested_table_passes(flags: str) -> None:
    with pytest.raises(ValueError, match="begins with 1") as caught:
        read_table(flags)
    suggested = re.search(r"nearest good value is '(.+)'", str(caught.value))
    assert (suggested is not None) == (len(flags) <= 100)
    assert suggested is None or read_table(suggested[1]).flags == "1" + flags[1:]


def test_published_magnitudes_give_the_published_counts() -> None:
    counts = {name: (len(flags), flags.count("1")) for name, flags in PUBLISHED.items()}
    assert counts == {"1.2 published, 18 of 30": (30, 18), "1.2 published, 12 of 30": (30, 12)}
    assert magnitude_flags(RATIOS, most=0.24, longest=5).count("1") == 10
    assert all(flags.startswith("111111") for flags in PUBLISHED.values())


def random_errors(steps: int, longest: int, seed: int) -> list[list[float]]:
    """With ties, and not always growing with length."""
    numbers = random.Random(seed)
    return [
        [0.0, *(float(numbers.randint(1, 9)) for _ in range(min(longest, steps - 1 - step)))] for step in range(steps)
    ]


@pytest.mark.parametrize("steps", (1, 2, 5, 9))
@pytest.mark.parametrize("longest", (0, 1, 3, 8))
@pytest.mark.parametrize("seed", range(4))
def test_no_table_is_better_than_the_chosen_one(steps: int, longest: int, seed: int) -> None:
    errors = random_errors(steps, longest, seed)
    best: dict[int, tuple[float, ...]] = {}
    for rest in itertools.product("01", repeat=steps - 1):
        flags = "1" + "".join(rest)
        if "0" * (longest + 1) in flags:
            continue
        found, count = worst_first(errors_of(flags, errors)), flags.count("1")
        best[count] = min(best.get(count, found), found)
    chosen = best_tables(errors)
    assert {count: worst_first(errors_of(flags, errors)) for count, flags in chosen.items()} == best
    assert all(flags.count("1") == count and len(flags) == steps for count, flags in chosen.items())


def test_errors_that_are_no_numbers_are_refused() -> None:
    for wrong in ([], [[0.0], []], [[0.0, float("nan")]], [[-1.0]]):
        with pytest.raises(ValueError, match="error"):
            best_tables(wrong)
