"""The hook around the blocks of a network that shares its tokens among ranks: in front of the blocks every rank takes
its part, behind them all parts meet on rank 0.

Whatever a call needs besides the tokens (embedded text, modulations, positions) every rank computes for itself, since
all are handed the same inputs. The result is that of rank 0: behind the blocks the others go on with the tokens they
were given, which nobody looks at.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..mmdit.config import MMDiTConfig
from ..stdit3.config import STDiT3Config
from .choice import plan_of_call, sentence_of_call
from .clips import Clip, MMDiTClip, STDiT3Clip
from .frames_positions import FramesAndPositions
from .heads import SharedTokens
from .plan import Plan
from .ranks import Ranks, alone
from .shares import Span
from .traffic import Link

Run = Callable[..., Tensor]
IDLE = 3600.0
"""Seconds a rank without rows waits for the end of a call; where rank 0 ends, its pipe says so."""

Hook = Callable[[Tensor, Tensor, Run], Tensor]
"""``(x, modulation, run) -> tokens``: what the networks call around their blocks."""


class Crew:
    """All ranks as one of them sees them, and the groups in which some of them share rows.

    ``open_group(name, rank, size)`` makes the group of the peers of one plan; it is called by all members of that
    group, and once a plan. ``link`` is what is known of the way between them, the same on all ranks; None: all take
    part wherever they can.
    """

    def __init__(
        self, everybody: Ranks, open_group: Callable[[str, int, int], Ranks], link: Link | None = None
    ) -> None:
        self.everybody, self._open_group, self.link = everybody, open_group, link
        self._peers: dict[Plan, Ranks] = {}
        self.plan: Plan | None = None
        self.begin()

    def begin(self) -> None:
        """Another run, whose calls ``said`` is about."""
        self._most = 0
        self.said = ""

    def of_call(self, batch: int, clip: Clip) -> Team:
        """The ranks as they stand to one another in a call of ``batch`` rows; its plan is kept in ``plan``.

        ``said`` is the sentence about the run's call with most rows so far.
        """
        size = self.everybody.size
        self.plan = plan = plan_of_call(batch, clip, size, self.link)
        if batch > self._most:
            self._most, self.said = batch, sentence_of_call(plan, batch, clip, size, self.link)
        if plan not in self._peers:
            group, place = plan.place(self.everybody.rank)
            idle = plan.sequence == 1 or self.everybody.rank >= plan.ranks
            name = f"{plan.rows}x{plan.sequence}.{group}"
            self._peers[plan] = alone() if idle else self._open_group(name, place, plan.sequence)
        return Team(plan, self.everybody, self._peers[plan], plan.spans(batch, self.everybody.size))

    def leave(self) -> None:
        """Close all connections; from any thread."""
        for ranks in (self.everybody, *list(self._peers.values())):
            ranks.leave()

    @property
    def sent(self) -> int:
        """Bytes this rank has sent so far."""
        return self.everybody.sent + sum(peers.sent for peers in self._peers.values())


@dataclass(frozen=True)
class Team:
    """The ranks of one call: ``everybody``, the ``peers`` that share this rank's rows, and the ``rows`` of each rank.

    Ranks that the plan has no use for have no rows.
    """

    plan: Plan
    everybody: Ranks
    peers: Ranks
    rows: tuple[Span, ...]

    @property
    def mine(self) -> Span:
        """The rows of this rank."""
        return self.rows[self.everybody.rank]

    @property
    def places(self) -> tuple[int, ...]:
        """The number of every rank among its peers."""
        return tuple(self.plan.place(rank)[1] for rank in range(self.everybody.size))

    def gather(self, own: Tensor, held: Sequence[int]) -> list[Tensor] | None:
        """Tokens [rows, held, C] of all ranks, on rank 0; None on the others."""
        size, first = self.everybody.size, self.everybody.rank == 0
        shapes: list[tuple[int, ...]] = [(0,)] * size
        if first:
            shapes = [(len(rows), count, own.shape[-1]) for rows, count in zip(self.rows, held, strict=True)]
        patience = self.everybody.patience if len(self.mine) else IDLE  # the others may need long for a call
        with self.everybody.patient(patience):
            arrived = self.everybody.exchange([own, *[own.new_empty(0)] * (size - 1)], shapes)
        return arrived if first else None


def shared_stdit3(crew: Crew, config: STDiT3Config, frames: int, grid: tuple[int, int]) -> Hook:
    """The hook for clips of ``frames`` frames with ``grid`` rows and columns of tokens."""
    clip = STDiT3Clip(config, frames, grid)

    def hook(x: Tensor, modulation: Tensor, run: Run) -> Tensor:
        team = crew.of_call(x.shape[0], clip)
        tokens = x.unflatten(1, (frames, -1))
        enter = FramesAndPositions(clip.shares(team.plan.sequence), team.peers, team.mine)
        out = x.new_empty(0, 0, x.shape[2])
        if len(team.mine):
            out = run(tokens[team.mine.slice, enter.frames.slice].flatten(1, 2).contiguous(), enter)
        parts = team.gather(out, [enter.held(place) for place in team.places])
        if parts is None:
            return x
        whole = torch.empty_like(tokens)
        for rows, place, part in zip(team.rows, team.places, parts, strict=True):
            if len(rows):
                enter.put_back(part, place, whole[rows.slice])
        return whole.flatten(1, 2)

    return hook


def shared_mmdit(crew: Crew, config: MMDiTConfig, text_tokens: int) -> Hook:
    """The hook for clips of any number of image tokens, with so many of text."""

    def hook(x: Tensor, modulation: Tensor, run: Run) -> Tensor:
        clip = MMDiTClip(config, x.shape[1], text_tokens)
        team = crew.of_call(x.shape[0], clip)
        shares = clip.shares(team.plan.sequence)
        out = x.new_empty(0, 0, x.shape[2])
        if len(team.mine):
            own = shares.of_image[team.peers.rank]
            out = run(x[team.mine.slice, own.slice].contiguous(), SharedTokens(shares, team.peers, team.mine))
        places = [shares.of_image[place] for place in team.places]
        parts = team.gather(out, list(map(len, places)))
        if parts is None:
            return x
        whole = torch.empty_like(x)
        for rows, place, part in zip(team.rows, places, parts, strict=True):
            if len(rows):
                whole[rows.slice, place.slice] = part
        return whole

    return hook


def inside(outer: Hook | None, inner: Hook) -> Hook:
    """``inner`` where ``outer`` (a cache, say) runs the blocks."""
    if outer is None:
        return inner

    def hook(x: Tensor, modulation: Tensor, run: Run) -> Tensor:
        def shared(tokens: Tensor, *told: Any) -> Tensor:
            return inner(tokens, modulation, run)

        return outer(x, modulation, shared)

    return hook
