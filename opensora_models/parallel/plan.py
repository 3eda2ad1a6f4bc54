"""How many ranks compute rows and how many share a row; which of the plans is best stands in :mod:`.choice`."""

from __future__ import annotations

from dataclasses import dataclass

from .clips import Clip
from .shares import Span, even_shares


@dataclass(frozen=True)
class Plan:
    """``rows`` groups of ``sequence`` ranks; ranks of a group stand behind one another."""

    rows: int
    sequence: int

    @property
    def ranks(self) -> int:
        """All of them."""
        return self.rows * self.sequence

    def place(self, rank: int) -> tuple[int, int]:
        """The group of a rank and its number in the group."""
        return divmod(rank, self.sequence)

    def spans(self, batch: int, ranks: int) -> tuple[Span, ...]:
        """The rows of a batch that each of ``ranks`` ranks computes; those beyond the plan have none."""
        groups = even_shares(batch, self.rows)
        busy = [groups[self.place(rank)[0]] for rank in range(self.ranks)]
        return (*busy, *(Span(0, 0) for _ in range(ranks - self.ranks)))

    def sentence(self, batch: int, clip: Clip) -> str:
        """For the person who waits."""
        rows = max(len(span) for span in even_shares(batch, self.rows))
        each = f"{rows} of {batch} row{'s' if batch > 1 else ''}"
        if self.sequence > 1:
            each += f" and {clip.parts(self.sequence)}"
        work, ranks = self.work(batch, clip) / batch, f"{self.ranks} rank{'s' if self.ranks > 1 else ''}"
        return (
            f"{ranks} as {self.rows} x {self.sequence} (rows x sequence): each computes {each}; the busiest has "
            f"{work:.1%} of the work, at best {1 / self.ranks:.1%}."
        )

    def work(self, batch: int, clip: Clip) -> float:
        """What the busiest rank computes, in rows."""
        return max(len(span) for span in even_shares(batch, self.rows)) * clip.shares(self.sequence).busiest


def plans_of(batch: int, clip: Clip, ranks: int) -> list[Plan]:
    """All plans that use exactly so many ranks; none where they cannot share such a batch."""
    divisors = [rows for rows in range(1, min(batch, ranks) + 1) if ranks % rows == 0]
    return [Plan(rows, ranks // rows) for rows in divisors if clip.fits(ranks // rows)]


def divides(batch: int, clip: Clip, ranks: int) -> bool:
    """Whether there is a plan that uses all ranks."""
    return bool(plans_of(batch, clip, ranks))
