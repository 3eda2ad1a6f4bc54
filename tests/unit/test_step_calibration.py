"""Measured errors of reuse on a small flow whose answers are known, and the files they are kept in."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.caching.calibration import Measured, Recorder, euler, evaluations, measure, rms, worst_of
from opensora.opensora_models.caching.choosing import best_tables, errors_of
from opensora.opensora_models.caching.stack import StackCache
from opensora.opensora_models.caching.table_file import ENDING, CalibratedTables, load_tables, save_new_tables
from opensora.opensora_models.caching.tables import StepTable

STEPS = 8
SCHEDULE = [*(1 - step / STEPS for step in range(STEPS)), 0.0]


class Flow:
    """A model of two rows: what its blocks add depends on the noise level, and for half of the run hardly."""

    def __init__(self, cache: Any) -> None:
        self.cache, self.blocks = cache, 0

    def __call__(self, x: Tensor, level: float) -> Tensor:
        velocity = torch.stack([self._row(x, level, "prompt"), self._row(x, level, "nothing")]).mean(0)
        return x - level * velocity

    def _row(self, x: Tensor, level: float, row: str) -> Tensor:
        def run(tokens: Tensor) -> Tensor:
            self.blocks += 1
            bend = 0.02 * level if level <= 0.5 else 3 * (level - 0.5) ** 2
            return tokens + bend + 0.1 * torch.tanh(x) * (1 if row == "prompt" else 0.5)

        hook = self.cache.around([row], level)
        return run(x) if hook is None else hook(x, x, run)


def measured(**options: Any) -> tuple[Measured, Flow]:
    recorder = Recorder()
    flow = Flow(recorder)
    noise = torch.randn(1, 4, generator=torch.Generator().manual_seed(1))
    return measure(flow, recorder, noise, SCHEDULE, **options), flow


def run_of(cache: StackCache, noise: Tensor) -> Tensor:
    flow, x = Flow(cache), noise
    for step in range(STEPS):
        x = euler(flow, x, SCHEDULE, step)
    return x


def test_a_reuse_is_measured_by_how_far_it_really_moves_the_result() -> None:
    found, _ = measured(longest=4, probes=STEPS)
    noise = torch.randn(1, 4, generator=torch.Generator().manual_seed(1))
    exact = run_of(StackCache(StepTable("1" * STEPS, tuple(SCHEDULE[:-1]))), noise)
    assert found.scale == pytest.approx(rms(exact))
    for start, row in enumerate(found.errors):
        assert row[0] == 0.0 and len(row) == min(4, STEPS - 1 - start) + 1
        for reused, error in enumerate(row[1:], 1):
            flags = "1" * (start + 1) + "0" * reused + "1" * (STEPS - 1 - start - reused)
            moved = rms(run_of(StackCache(StepTable(flags, tuple(SCHEDULE[:-1]))), noise) - exact)
            assert error == pytest.approx(moved, rel=0.15, abs=1e-6), flags


def test_the_chosen_table_computes_where_the_blocks_change() -> None:
    found, _ = measured(longest=4)
    tables = best_tables(found.errors)
    assert tables[STEPS] == "1" * STEPS and min(tables) == 2
    assert tables[5].index("0") >= 3, "nothing is left out at the bent beginning"
    worst = [max(errors_of(tables[count], found.errors)) for count in sorted(tables)]
    assert worst == sorted(worst, reverse=True) and worst[-1] == 0


def test_a_step_that_must_be_computed_anyway_saves_nothing() -> None:
    """Oscillating guidance: every second step asks for one row, and the next one has the other to compute."""
    recorder = Recorder()

    def denoise(x: Tensor, level: float) -> Tensor:
        names = ["a", "b"] if SCHEDULE.index(level) % 2 == 0 else ["a"]
        both = x.repeat(len(names), 1)
        out = recorder.around(names, level)(both, both, lambda given: given + level**2)
        return x - level * out.mean(0, keepdim=True)

    found = measure(denoise, recorder, torch.ones(1, 2), SCHEDULE, longest=1)
    assert [row[0] for row in found.rows] == [2, 1] * 4
    assert [row[1] for row in found.rows[:-1]] == [2, 3, 2, 3, 2, 3, 2] and found.errors[1][1] == 0.0
    tables = best_tables(found.errors, found.rows)
    assert tables[12] == "11111111" and set(tables) == {8, 9, 10, 11, 12}


def test_it_costs_what_it_says_and_keeps_one_step() -> None:
    steps: list[int] = []
    found, flow = measured(longest=3, probes=2, after_step=steps.append)
    assert steps == list(range(1, found.calls + 1)) and found.calls == evaluations(STEPS, 2)
    assert flow.blocks == 2 * found.calls, "reused steps ask the blocks for nothing"
    assert len(flow.cache._rows) == 2


def test_a_row_that_was_not_recorded_is_computed_and_kept_as_in_a_run() -> None:
    recorder, x = Recorder(), torch.zeros(1, 2)
    recorder.record()
    recorder.around(["a"], 1.0)(x, x, lambda given: given + 1)
    recorder.replay()
    both = torch.zeros(2, 2)
    assert torch.equal(recorder.around(["a", "b"], 0.5)(both, both, lambda given: given + 5), both + 5)
    assert torch.equal(recorder.around(["a"], 0.5)(x, x, lambda given: given + 9), x + 5)
    assert torch.equal(recorder.around(["b"], 0.5)(x, x, lambda given: given + 9), x + 5)
    assert recorder.computed == 3


@pytest.mark.parametrize("steps", (1, 2, 3, 30))
def test_short_runs_are_measured_too(steps: int) -> None:
    recorder = Recorder()
    schedule = [*(1 - step / steps for step in range(steps)), 0.0]
    found = measure(Flow(recorder), recorder, torch.ones(1, 2), schedule)
    assert len(found.errors) == steps and found.calls == evaluations(steps)
    assert max(best_tables(found.errors)) == steps


def test_a_run_without_numbers_is_refused() -> None:
    with pytest.raises(ValueError, match="no finite numbers"):
        measure(lambda x, level: x * float("nan"), Recorder(), torch.ones(1, 2), SCHEDULE)


def test_the_worst_prompt_counts_as_a_share_of_its_own_result() -> None:
    first = Measured([[0.0, 2.0], [0.0]], [1.0] * 3, 10.0)
    second = Measured([[0.0, 0.3], [0.0]], [1.0] * 3, 1.0)
    assert worst_of([first, second]) == [[0.0, 0.3], [0.0]]
    assert worst_of([first]) == [[0.0, 0.2], [0.0]]


TABLES = CalibratedTables("1.3", (1.0, 0.75, 0.5, 0.25), {2: "1010", 3: "1110", 4: "1111"}, {2: 0.3, 3: 0.1, 4: 0.0})


def test_tables_come_back_from_their_file(tmp_path: Path) -> None:
    path = save_new_tables(lambda: tmp_path / f"a{ENDING}", replace(TABLES, made={"prompts": 2}))
    assert load_tables(path) == replace(TABLES, made={"prompts": 2})


@pytest.mark.parametrize(("percent", "flags"), [(100, "1111"), (99, "1110"), (75, "1110"), (60, "1010"), (1, "1010")])
def test_the_largest_table_within_a_share_is_taken(percent: int, flags: str) -> None:
    assert TABLES.of_share(percent) == StepTable(flags, TABLES.levels)


@pytest.mark.parametrize(
    "change",
    [
        *({"format": "x"}, {"release": 5}, {"tables": {}}, {"tables": []}),
        *({"tables": {"x": "1010"}}, {"tables": {"2": 5}}, {"tables": {"2": "0101"}}, {"levels": [1.0]}),
        *({"levels": None}, {"levels": [0.1, 0.2, 0.3, 0.4]}, {"tables": {"²": "1010"}}, {"levels": []}),
    ],
)
def test_a_damaged_file_is_refused_in_one_sentence(tmp_path: Path, change: dict[str, Any]) -> None:
    path = save_new_tables(lambda: tmp_path / f"a{ENDING}", TABLES)
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **change}), encoding="utf-8")
    with pytest.raises(ValueError, match=r"is no file of step tables \(.+\); make a new one") as caught:
        load_tables(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b" " * 1_000_001, b"5"])
def test_a_file_of_something_else_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / f"a{ENDING}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is no file of step tables"):
        load_tables(path)
    with pytest.raises(ValueError, match="cannot be read"):
        load_tables(tmp_path / "missing.steptable.json")
