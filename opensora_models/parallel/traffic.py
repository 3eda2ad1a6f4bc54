"""What a plan costs in bytes and, on a link of a known rate, in seconds."""

from __future__ import annotations

from dataclasses import dataclass

from .clips import Clip
from .plan import Plan


@dataclass(frozen=True)
class Link:
    """Between two devices: bytes per second a device sends while it receives as many, seconds an exchange begins with.

    The rates are what all-to-alls of several megabytes are known to reach, not what the standards promise.
    """

    name: str
    rate: float
    start: float


NVLINK = Link("NVLink", 300e9, 30e-6)
"""NVLink 4 of an H100 or H200: 450 GB/s each way."""
PCIE = Link("PCIe 4.0 x16", 20e9, 60e-6)
"""16 lanes have 32 GB/s each way."""
MEMORY = Link("the computer's memory", 1e9, 200e-6)
"""gloo over the loopback. Between two processes of two busy cores it had 0.5 GB/s and 160 µs; computers with several
cards have more cores, so that this is an assumption."""
NETWORK = Link("a network of 10 Gbit/s", 1.1e9, 300e-6)
"""An assumption: which network it is nobody says."""

LINKS = (NVLINK, PCIE, NETWORK)
"""For tables."""


def link_between(direct: bool, one_machine: bool) -> Link:
    """What is known of the link of ranks; ``direct``: cards talk to one another.

    Whether two cards have NVLink cannot be asked of PyTorch, so the slower of the two is taken.
    """
    return NETWORK if not one_machine else PCIE if direct else MEMORY


def sent_in_call(plan: Plan, batch: int, clip: Clip, rank: int, element_size: int, ranks: int | None = None) -> int:
    """Bytes that ``rank`` of ``ranks`` (as many as the plan has) sends in one call of the network."""
    rows, place = len(plan.spans(batch, ranks or plan.ranks)[rank]), plan.place(rank)[1]
    if not rows:
        return 0
    behind = clip.held_behind(plan.sequence, place) if rank else 0  # rank 0 has the result
    return rows * element_size * (clip.sent_inside(plan.sequence, place) + behind)


def busiest_sender(plan: Plan, batch: int, clip: Clip, element_size: int) -> int:
    """The most bytes that one rank sends in one call."""
    return max(sent_in_call(plan, batch, clip, rank, element_size) for rank in range(plan.ranks))


def seconds_of_call(plan: Plan, batch: int, clip: Clip, element_size: int, link: Link) -> float:
    """Seconds of one call that go by with nothing but exchanges, if none is hidden behind arithmetic.

    Inside the blocks the busiest sender counts, behind them what arrives at rank 0.
    """
    if plan.ranks == 1:
        return 0.0
    spans, places = plan.spans(batch, plan.ranks), [plan.place(rank)[1] for rank in range(plan.ranks)]
    inside = max(len(rows) * clip.sent_inside(plan.sequence, n) for rows, n in zip(spans, places, strict=True))
    behind = [len(rows) * clip.held_behind(plan.sequence, n) for rows, n in zip(spans, places, strict=True)]
    exchanges = 1 + (clip.exchanges if plan.sequence > 1 else 0)
    return (inside + sum(behind[1:])) * element_size / link.rate + exchanges * link.start
