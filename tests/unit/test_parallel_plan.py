"""How work is dealt among ranks: even shares, whole windows, the plan, its sentence, and what it sends."""

from __future__ import annotations

import re
import sys
from dataclasses import replace
from functools import cache
from itertools import pairwise

import pytest
import torch

from opensora.benchmarks import parallel
from opensora.opensora_models.mmdit.config import RELEASED as V20
from opensora.opensora_models.parallel.choice import choose_plan, plan_of_call, predicted_seconds, sentence_of_call
from opensora.opensora_models.parallel.clips import Clip, MMDiTClip, STDiT3Clip
from opensora.opensora_models.parallel.frames_positions import ClipShares
from opensora.opensora_models.parallel.plan import Plan, plans_of
from opensora.opensora_models.parallel.shares import Span, even_shares, whole_shares
from opensora.opensora_models.parallel.traffic import (
    LINKS,
    MEMORY,
    NETWORK,
    NVLINK,
    PCIE,
    Link,
    busiest_sender,
    link_between,
    seconds_of_call,
    sent_in_call,
)
from opensora.opensora_models.stdit3.config import XL_V12, XL_V13
from support.pack import PACK_ROOT

V12_480P = STDiT3Clip(XL_V12, 15, (30, 53))
V13_720P = STDiT3Clip(XL_V13, 35, (45, 80))
V20_768P = MMDiTClip(V20, 76032, 512)
EVERY = [V12_480P, V13_720P, V20_768P]


@pytest.mark.parametrize("count", [0, 1, 2, 7, 15, 16])
@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_even_shares_follow_one_another_and_differ_by_one(count: int, ranks: int) -> None:
    spans = even_shares(count, ranks)
    assert len(spans) == ranks and spans[0].start == 0 and spans[-1].stop == count
    assert all(left.stop == right.start for left, right in pairwise(spans))
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 9])
@pytest.mark.parametrize("sizes", [[4] * 7, [64] * 10 + [40] * 5, [1, 9, 1, 1], [5]])
def test_whole_units_are_dealt_as_evenly_as_runs_allow(sizes: list[int], ranks: int) -> None:
    spans = whole_shares(sizes, ranks)
    assert len(spans) == ranks and spans[-1].stop == len(sizes)
    assert all(left.stop == right.start for left, right in pairwise((Span(0, 0), *spans)))
    largest = max(sum(sizes[span.slice]) for span in spans)

    @cache
    def least(start: int, left: int) -> int:  # all ways to cut, tried
        if left == 1:
            return sum(sizes[start:])
        ends = range(start, len(sizes) + 1)
        return min(max(sum(sizes[start:end]), least(end, left - 1)) for end in ends)

    assert largest == least(0, ranks)


def test_what_spans_share_is_counted_from_the_other_one() -> None:
    assert Span(3, 8).within(Span(5, 9)) == Span(0, 3) and Span(6, 7).within(Span(5, 9)) == Span(1, 2)
    assert len(Span(0, 2).within(Span(4, 6))) == 0 and len(Span(7, 9).within(Span(4, 6))) == 0


@pytest.mark.parametrize("grid", [(16, 24), (23, 40), (11, 21), (4, 5)])
@pytest.mark.parametrize("ranks", [2, 3, 7])
def test_a_window_is_never_cut(grid: tuple[int, int], ranks: int) -> None:
    shares = ClipShares(XL_V13, 5, grid, ranks)
    order = list(range(grid[0] * grid[1])) if shares.order is None else shares.order.tolist()
    assert sorted(order) == list(range(grid[0] * grid[1]))
    owner = torch.empty(grid, dtype=torch.long)
    for rank, span in enumerate(shares.of_positions):
        for position in order[span.slice]:
            owner[divmod(position, grid[1])] = rank
    windows = [part for band in owner.split(8) for part in band.split(8, dim=1)]
    assert all(window.unique().numel() == 1 for window in windows)
    assert 1 < owner.unique().numel() <= min(ranks, len(windows)) or len(windows) == 1


def test_rows_go_first_and_the_rest_shares_tokens() -> None:
    assert choose_plan(2, V12_480P, 2) == Plan(2, 1)
    assert choose_plan(2, V20_768P, 8) == Plan(2, 4)
    assert choose_plan(3, V20_768P, 8) == Plan(1, 8)
    assert choose_plan(3, V20_768P, 6) == Plan(3, 2)
    assert choose_plan(1, V13_720P, 5) == Plan(1, 5)
    few_frames = replace(V12_480P, frames=2)
    assert choose_plan(4, few_frames, 4) == Plan(4, 1), "ranks without a frame would wait"


def test_a_plan_is_said_in_one_sentence() -> None:
    assert choose_plan(2, V12_480P, 4).sentence(2, V12_480P) == (
        "4 ranks as 2 x 2 (rows x sequence): each computes 1 of 2 rows and 7 to 8 of 15 frames, then 795 of 1590 "
        "positions; the busiest has 25.8% of the work, at best 25.0%."
    )
    assert choose_plan(1, V20_768P, 8).sentence(1, V20_768P) == (
        "8 ranks as 1 x 8 (rows x sequence): each computes 1 of 1 row and 9568 of 76544 tokens, 3 of 24 heads in "
        "attention; the busiest has 12.5% of the work, at best 12.5%."
    )
    assert "1 of 2 rows; the busiest has 50.0%" in choose_plan(2, V13_720P, 2).sentence(2, V13_720P)


STILL = Link("a link that never begins", 1e9, 1e9)
ENDLESS = Link("a link that costs nothing", 1e30, 0.0)
WAYS = [*LINKS, MEMORY, STILL, ENDLESS]


@pytest.mark.parametrize("link", WAYS, ids=lambda link: link.name)
@pytest.mark.parametrize("clip", EVERY, ids=["1.2", "1.3", "2.0"])
@pytest.mark.parametrize("ranks", [*range(1, 10), 16, 24])
def test_no_legal_plan_is_predicted_to_be_faster(clip: Clip, ranks: int, link: Link) -> None:
    """Of all that any number of the ranks could follow, one rank alone among them; every rank finds the same."""
    for rows in (1, 2, 3, 4, 5):
        plan = plan_of_call(rows, clip, ranks, link)
        legal = [
            Plan(across, along)
            for across in range(1, rows + 1)
            for along in range(1, ranks // across + 1)
            if clip.fits(along)
        ]
        seconds = [predicted_seconds(other, rows, clip, link) for other in legal]
        assert plan in legal and predicted_seconds(plan, rows, clip, link) == min(seconds)
        plan_of_call.cache_clear()
        assert plan_of_call(rows, replace(clip), ranks, replace(link)) == plan  # type: ignore[type-var]
        if plans_of(rows, clip, ranks):
            all_of_them = choose_plan(rows, clip, ranks, link)
            assert all_of_them.ranks == ranks
            assert predicted_seconds(all_of_them, rows, clip, link) >= min(seconds)


def test_what_is_known_of_the_link_decides() -> None:
    """Rows where traffic is dear, tokens where it is cheap, nobody where it never arrives."""
    assert plan_of_call(2, V20_768P, 4, PCIE) == Plan(2, 2)
    assert plan_of_call(2, V20_768P, 4, NETWORK) == Plan(2, 1) == plan_of_call(2, V20_768P, 4, MEMORY)
    assert plan_of_call(3, V12_480P, 2, NVLINK) == Plan(1, 2) and plan_of_call(3, V12_480P, 2, NETWORK) == Plan(2, 1)
    assert plan_of_call(2, V20_768P, 8, STILL) == Plan(1, 1)
    assert plan_of_call(1, V20_768P, 8, ENDLESS) == Plan(1, 8)
    assert link_between(direct=True, one_machine=True) == PCIE
    assert link_between(direct=False, one_machine=True) == MEMORY
    assert link_between(direct=True, one_machine=False) == link_between(direct=False, one_machine=False) == NETWORK


def test_the_choice_is_said_with_its_reason() -> None:
    plan = plan_of_call(2, V20_768P, 4, PCIE)
    assert sentence_of_call(plan, 2, V20_768P, 4, PCIE).removeprefix(plan.sentence(2, V20_768P)) == (
        " Chosen for 6.9 s a call by published rates, 1.4 s of it over PCIe 4.0 x16; 1 x 4 would take 7.6 s."
    )
    slow = plan_of_call(2, V20_768P, 4, NETWORK)
    assert sentence_of_call(slow, 2, V20_768P, 4, NETWORK).endswith(
        " a call by published rates, 0.42 s of it over a network of 10 Gbit/s; 1 x 1 would take 22 s. 2 more wait, "
        "since sharing more would take longer."
    )
    assert sentence_of_call(Plan(1, 12), 1, V20_768P, 16).endswith(" 4 more wait, since no plan has a use for more.")
    alone = plan_of_call(1, V20_768P, 1, PCIE)
    assert sentence_of_call(alone, 1, V20_768P, 1, PCIE).endswith(" by published rates, 0 s of it over PCIe 4.0 x16.")


@pytest.mark.parametrize(("rows", "ranks", "good"), [(1, 5, [4, 6]), (1, 7, [6, 8]), (2, 10, [8, 12]), (1, 49, [24])])
def test_ranks_that_do_not_divide_the_heads_are_refused_with_the_nearest(
    rows: int, ranks: int, good: list[int]
) -> None:
    with pytest.raises(ValueError, match=f"^{ranks} ranks cannot share {rows} row") as refused:
        choose_plan(rows, V20_768P, ranks)
    assert [int(number) for number in re.findall(r"\d+", str(refused.value).split("use")[1])] == good
    for number in good:
        assert choose_plan(rows, V20_768P, number).ranks == number


def test_a_call_with_fewer_rows_leaves_ranks_idle_where_it_must() -> None:
    assert choose_plan(2, V20_768P, 16) == Plan(2, 8)
    plan = plan_of_call(1, V20_768P, 16)
    assert plan == Plan(1, 12)
    assert [len(span) for span in plan.spans(1, 16)] == [1] * 12 + [0] * 4


@pytest.mark.parametrize("clip", EVERY, ids=["1.2", "1.3", "2.0"])
@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 6, 8])
def test_plans_use_all_ranks_and_deal_all_work(clip: Clip, ranks: int) -> None:
    for rows in (1, 2, 3):
        plan = choose_plan(rows, clip, ranks)
        assert plan.ranks == ranks and plan.work(rows, clip) * ranks >= rows * 0.999
        assert sum(len(span) for span in plan.spans(rows, ranks)) == rows * plan.sequence
        sent = [sent_in_call(plan, rows, clip, rank, 2) for rank in range(ranks)]
        assert max(sent) == busiest_sender(plan, rows, clip, 2) and (max(sent) > 0) == (ranks > 1)
        assert min(sent[1:], default=1) > 0 and (sent[0] > 0) == (plan.sequence > 1), "rank 0 has the result"


def test_traffic_is_what_a_prototype_measured() -> None:
    """Gigabytes a rank and row with two ranks in 16 bits, without the gathering at the end."""
    v12_720p, long = STDiT3Clip(XL_V12, 15, (45, 80)), STDiT3Clip(XL_V12, 120, (45, 80))
    for clip, wanted in ((V12_480P, 0.77), (v12_720p, 1.74), (long, 13.9), (replace(V13_720P, frames=30), 3.4)):
        assert 2 * clip.sent_inside(2, 1) / 1e9 == pytest.approx(wanted, rel=0.1)


def test_seconds_need_a_link_and_somebody_to_talk_to() -> None:
    fast, slow = (seconds_of_call(Plan(1, 2), 1, V12_480P, 2, link) for link in (NVLINK, PCIE))
    assert 0 < fast < slow and seconds_of_call(Plan(1, 1), 1, V12_480P, 2, NVLINK) == 0
    assert seconds_of_call(Plan(2, 1), 2, V12_480P, 2, NVLINK) < fast / 20, "rows need no exchange but the last"


def test_the_table_tells_every_clip_number_of_devices_and_link() -> None:
    table = list(parallel.lines())
    page = (PACK_ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    shown = page.split("## Several devices")[1].split("\n\n")[2].splitlines()
    assert len(shown) > 10 and set(shown) <= set(table), "the page shows what the program prints"
    assert list(parallel.DEVICES) == list(range(1, 9)) and {NVLINK, PCIE} <= set(LINKS)
    assert len(table) == 2 + len(parallel.JOBS) * len(parallel.DEVICES) * len(LINKS)
    assert {row.count("|") for row in table} == {len(parallel.COLUMNS) + 1}
    cells = [[cell.strip() for cell in row.split("|")[1:-1]] for row in table[2:]]
    for _, devices, link, *_, faster in cells:
        assert 1 <= float(faster) <= int(devices) and (link != NVLINK.name or int(devices) == 1 or float(faster) > 1.2)
    faster = [[float(row[-1]) for row in cells if row[2] == link.name] for link in LINKS]
    assert all(nvlink >= pcie >= network for nvlink, pcie, network in zip(*faster, strict=True))


@pytest.mark.parametrize(
    ("asked", "good"), [("7", ["6", "12"]), ("8", ["6", "12"]), ("1000000", ["12"]), ("1", ["2"]), ("0", ["2"])]
)
def test_devices_that_cannot_share_the_timed_step_are_refused_with_the_nearest(
    asked: str, good: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before a process is started; the tiny network of a dry run has six heads, that of GPUs twenty-four."""
    started: list[int] = []
    monkeypatch.setattr(parallel, "timed", lambda ranks: started.append(ranks) or [])
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    monkeypatch.setattr(sys, "argv", ["parallel.py", "--time", asked])
    with pytest.raises(SystemExit):
        parallel.main()
    assert not started and re.findall(r"\d+", re.split("; ", capsys.readouterr().err)[-1]) == good
    for number in good:
        monkeypatch.setattr(sys, "argv", ["parallel.py", "--time", number])
        parallel.main()
    assert started == list(map(int, good))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 64)
    parallel.check_devices(8)
    with pytest.raises(ValueError, match="use 8 or 12"):
        parallel.check_devices(10)


def test_the_line_of_several_gpus_is_a_dry_run_without_them(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES"):
        monkeypatch.setenv(name, "")
    head, _, line = parallel.timed(2)
    page = (PACK_ROOT / "benchmarks" / "README.md").read_text(encoding="utf-8")
    assert head in page, "the page has the table that the line belongs to"
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells[0] == "2 × CPU process" and cells[2:5] == ["a tiny 2.0, a dry run, 2", "2 x 1", "gloo"]
    assert line.count("|") == head.count("|") and all(float(cell) > 0 for cell in cells[5:7])
    difference, largest = map(float, re.findall(r"\d\.\de[+-]\d+", cells[7]))
    assert difference < 1e-5 * largest
