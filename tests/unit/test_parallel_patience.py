"""How long an exchange waits for the others: by what this rank has worked, and by what the others were given."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from opensora.opensora_models.parallel.pieces import SharedDecoding, rounds_of
from opensora.opensora_models.parallel.ranks import PATIENCE, SLOWER, Clock, Ranks
from support.parallel_cases import tiny20

WORKED = 10.0


class Heard:
    """A group in which the others send whatever stands in memory; notes how long they were waited for."""

    def __init__(self) -> None:
        self.waits: list[float] = []

    def alltoall_base(self, received: Any, sending: Any, to_me: Any, from_me: Any, options: Any) -> Any:
        self.waits.append(options.timeout.total_seconds())
        return SimpleNamespace(wait=lambda: None)


class Worked(Clock):
    """Always as long."""

    def since(self) -> float:
        return WORKED


def test_rank_0_waits_as_long_as_the_largest_piece_of_a_round_may_take() -> None:
    """A clip that ends in narrow tiles: some rounds begin with one, and the others have whole ones."""
    group = Heard()
    sharing = SharedDecoding(Ranks(group, 0, 3, clock=Worked()), 1)
    layout = tiny20().decode_layout((1, 3, 7, 12, 9))
    made = {piece.number: torch.zeros(sharing._shape(layout, piece)) for piece in layout.pieces}
    helped = sharing.helped(layout, lambda piece: made[piece.number], layout.pieces)
    for piece in layout.pieces:
        helped(piece)
    rounds = [[made[piece.number].numel() for piece in each] for each in rounds_of(layout.pieces, 3)]
    wanted = [PATIENCE + SLOWER * WORKED * max(each) / each[0] for each in rounds]
    assert group.waits == pytest.approx(wanted, abs=1e-3) and max(wanted) > PATIENCE + 2 * SLOWER * WORKED
    assert sharing.ranks.exchange([torch.zeros(1)] * 3, [(1,)] * 3) and group.waits[-1] == PATIENCE + SLOWER * WORKED


@pytest.mark.parametrize("place", ["cuda", "cpu"])
def test_what_a_gpu_still_has_to_do_counts_as_work(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its process has only handed the work over when it comes to an exchange."""
    asked: list[torch.device] = []

    def stream(device: torch.device) -> Any:
        asked.append(device)
        return SimpleNamespace(synchronize=lambda: time.sleep(0.5))

    monkeypatch.setattr(torch.cuda, "current_stream", stream)
    group, bytes_sent = Heard(), torch.zeros(2, dtype=torch.uint8)
    ranks = Ranks(group, 0, 2, place=torch.device(place))
    ranks._all_to_all(bytes_sent.clone(), bytes_sent, [0, 2], [0, 2])
    if place == "cpu":
        assert asked == [] and group.waits[0] < PATIENCE + SLOWER * 0.5
    else:
        assert asked == [torch.device("cuda")] and group.waits[0] >= PATIENCE + SLOWER * 0.5
