"""The unguided rows of a run: after a share of it they are computed in every n-th step only.

In between a row stands as far from the prompt's row as it last did, measured as velocity: what guidance adds changes
slowly late in a run. Source: the CFG cache of FasterCache (arXiv 2410.19355) without its weights per frequency.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

from torch import Tensor

from .stack import size_of
from .tables import StepTable

Compute = Callable[[Sequence[int]], Sequence[Tensor]]
"""Numbers of rows -> their predictions of the clean latents."""


@dataclass(frozen=True)
class GuidanceReuse:
    """``every``: how many steps one computed unguided row serves, 1 is off; ``after``: share of the run before that."""

    every: int = 1
    after: float = 1 / 3

    def __post_init__(self) -> None:
        if self.every < 1:
            raise ValueError(f"Unguided rows cannot be computed every {self.every} steps; the nearest good value is 1.")
        if not 0.0 <= self.after <= 1.0:
            nearest = min(max(self.after, 0.0), 1.0) if math.isfinite(self.after) else 1 / 3
            raise ValueError(
                f"Guidance cannot be reused after {self.after:g} of the run; the nearest good value is {nearest:g}."
            )

    def table(self, schedule: Sequence[float]) -> StepTable:
        """Which steps of a run compute all rows."""
        steps = len(schedule) - 1
        start = max(1, math.ceil(self.after * steps))
        flags = "".join("1" if step < start or (step - start) % self.every == 0 else "0" for step in range(steps))
        return StepTable(flags, tuple(schedule[:-1]))


@dataclass(frozen=True)
class _Kept:
    span: int
    difference: Tensor


class GuidanceCache:
    """Of one run. The first row of a call is the one the others are measured from."""

    def __init__(self, table: StepTable) -> None:
        self.table = table
        self.computed_rows = self.reused_rows = 0
        self.most_bytes = 0
        self._rows: dict[Hashable, _Kept] = {}

    def predict(self, rows: Sequence[Hashable], level: float, compute: Compute, x: Tensor) -> list[Tensor]:
        """Predictions of all rows of one call at a noise level for the latents ``x``."""
        span = self.table.span(level)
        self._rows = {key: kept for key, kept in self._rows.items() if kept.span == span}
        keys = [(rows[0], row, tuple(x.shape)) for row in rows[1:]]
        if span is None or not keys or level <= 0:
            self.computed_rows += len(rows)
            return list(compute(range(len(rows))))
        if all(key in self._rows for key in keys):
            self.computed_rows += 1
            self.reused_rows += len(keys)
            first = compute([0])[0]
            return [first, *(first + self._rows[key].difference.to(first) * level for key in keys)]
        self.computed_rows += len(rows)
        predicted = list(compute(range(len(rows))))
        for key, row in zip(keys, predicted[1:], strict=True):
            self._rows[key] = _Kept(span, (row - predicted[0]) / level)
        self.most_bytes = max(self.most_bytes, sum(size_of(kept.difference) for kept in self._rows.values()))
        return predicted

    def summary(self) -> str:
        """One sentence for the person who waits."""
        asked = self.computed_rows + self.reused_rows
        return (
            f"Guidance cache: {self.reused_rows} of {asked} rows were made of earlier ones; "
            f"{self.most_bytes / 2**20:.1f} MiB were kept."
        )
