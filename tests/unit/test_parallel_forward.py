"""Calls that several processes share give what one process gives, and send what the formula says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from support.parallel_cases import CASES, SAMPLED, SIZE, VAES
from support.processes import output, python

CHILD = """
from support.parallel_cases import main
main(sys.argv[1], int(sys.argv[2]))
"""


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of the ranks found: by case."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [python(CHILD, folder, rank) for rank in range(SIZE)]
    try:
        for process in processes:
            output(process)
    finally:
        for process in processes:
            process.kill()
    return [json.loads(Path(folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(SIZE)]


@pytest.mark.parametrize("name", CASES)
def test_together_as_alone(name: str, results: list[dict[str, Any]]) -> None:
    first, *others = [result[name] for result in results[: CASES[name].ranks]]
    assert first["spread"] > 0.1 and first["difference"] == 0.0
    assert first["rounded"] < 4e-6, "only the roundings of PyTorch's kernels may differ"
    assert all(other["difference"] > 0 for other in others), "the result is sent to rank 0 alone"


def test_ranks_that_cannot_help_wait(results: list[dict[str, Any]]) -> None:
    name = "2.0, heads that three do not divide, 3 ranks"
    assert [result[name]["plan"] for result in results] == [[1, 2]] * 3
    assert [result[name]["sent"] > 0 for result in results] == [True, True, False]


@pytest.mark.parametrize("name", SAMPLED)
def test_whole_runs_whose_rows_come_and_go(name: str, results: list[dict[str, Any]]) -> None:
    ranks = [result[f"sampled {name}"] for result in results[: SAMPLED[name].ranks]]
    assert ranks[0]["spread"] > 0.1 and [rank["difference"] for rank in ranks] == [0.0] * len(ranks)
    plans = [[2, 1], [1, 2]] if SAMPLED[name].ranks == 2 else [[1, 3], [1, 3]]
    assert all(rank["plans"] == plans * 2 for rank in ranks)


@pytest.mark.parametrize("name", VAES)
def test_a_clip_decoded_by_all_is_the_same_to_the_last_bit(name: str, results: list[dict[str, Any]]) -> None:
    ranks = [result[name] for result in results if name in result]
    assert ranks[0]["equal"] and ranks[0]["spread"] > 0.01 and ranks[0]["sent"] == 0
    assert all((rank["sent"] > 0) == (number < ranks[0]["pieces"]) for number, rank in enumerate(ranks[1:], 1))


@pytest.mark.parametrize("name", CASES)
def test_every_rank_sends_what_the_formula_says(name: str, results: list[dict[str, Any]]) -> None:
    ranks = [result[name] for result in results[: CASES[name].ranks]]
    assert [rank["sent"] for rank in ranks] == [rank["formula"] for rank in ranks]
    assert sum(rank["sent"] for rank in ranks) > 0
