"""Who holds what: consecutive runs of frames, positions, windows or tokens, one a rank, as even as they come."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate


@dataclass(frozen=True)
class Span:
    """Items ``start`` to ``stop`` (exclusive); empty where a rank gets none."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start

    @property
    def slice(self) -> slice:
        """To index a tensor with."""
        return slice(self.start, self.stop)

    def within(self, other: Span) -> Span:
        """What both share, counted from the start of ``other``; empty where nothing is."""
        start, stop = max(self.start, other.start), min(self.stop, other.stop)
        return Span(start - other.start, max(start, stop) - other.start)


def even_shares(count: int, ranks: int) -> tuple[Span, ...]:
    """``count`` equal items among ``ranks``; sizes differ by one at most, the larger ones first."""
    size, larger = divmod(count, ranks)
    edges = [0, *accumulate(size + (rank < larger) for rank in range(ranks))]
    return tuple(Span(*edge) for edge in zip(edges, edges[1:], strict=False))


def whole_shares(sizes: Sequence[int], ranks: int) -> tuple[Span, ...]:
    """Runs of units that must stay whole, given their ``sizes``: the spans count units.

    The largest share is as small as consecutive runs allow. Where units are fewer than ranks the last ranks get none.
    """
    if len(set(sizes)) <= 1:
        return even_shares(len(sizes), ranks)
    low, high = max(max(sizes), -(-sum(sizes) // ranks)), sum(sizes)
    while low < high:  # the smallest capacity with which `ranks` runs suffice
        capacity = (low + high) // 2
        low, high = (low, capacity) if len(_filled(sizes, capacity)) <= ranks else (capacity + 1, high)
    spans = _filled(sizes, low)
    return (*spans, *(Span(len(sizes), len(sizes)) for _ in range(ranks - len(spans))))


def _filled(sizes: Sequence[int], capacity: int) -> list[Span]:
    """Runs that take as many units as fit into ``capacity`` each."""
    edges, held = [0], 0
    for unit, size in enumerate(sizes):
        if held + size > capacity:
            edges.append(unit)
            held = 0
        held += size
    return [Span(*edge) for edge in zip(edges, [*edges[1:], len(sizes)], strict=True)]
