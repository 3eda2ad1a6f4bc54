"""The cache of one run: what the blocks added to a row when it was computed, and when that stands in for them.

A *row* is one conditioning's share of a call (in a batch of clips all of them together). Each row keeps one tensor, the
stack's output less its input. It is added again while the table says so **and** the row was computed in this very span;
a row that was not asked for then (oscillating guidance, a conditioning that begins later) is computed when it first
is. The same holds where a row has changed shape, dtype or device, or where other frames count as clean than before.

Source of the reuse: TeaCache (arXiv 2411.19108), MagCache (2506.09045), LeMiCa (2511.00090).
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .tables import StepTable

Run = Callable[[Tensor], Tensor]
Hook = Callable[[Tensor, Tensor, Run], Tensor]
"""``(x, modulation, run) -> tokens``: what the networks call around their blocks."""


@dataclass(frozen=True)
class _Kept:
    span: int
    residual: Tensor
    mask: Tensor | None

    def fits(self, x: Tensor, mask: Tensor | None) -> bool:
        """Whether it can be added to a row and the same frames are clean."""
        kept = self.residual
        alike = kept.shape == x.shape and kept.dtype == x.dtype and kept.device == x.device
        if not alike or (mask is None) != (self.mask is None):
            return False
        return mask is None or self.mask is None or (mask.shape == self.mask.shape and torch.equal(mask, self.mask))


class StackCache:
    """Of one run; ``table`` has levels. Threads may share it, each with rows of its own."""

    def __init__(self, table: StepTable) -> None:
        self.table = table
        self.computed_rows = self.reused_rows = 0
        self.most_rows = self.most_bytes = 0
        self._rows: dict[Hashable, _Kept] = {}
        self._lock = threading.Lock()

    def around(self, rows: Sequence[Hashable], level: float, mask: Tensor | None = None) -> Hook | None:
        """The hook of one call; None where it has nothing to do but run the blocks.

        Args:
            rows: what tells the rows of the batch apart, in their order; each has an equal share of it.
            level: the call's noise level.
            mask: [B, T] bool or None; which frames are noisy.
        """
        span = self.table.span(level)
        with self._lock:
            self._rows = {key: kept for key, kept in self._rows.items() if kept.span == span}
            if span is None:
                self.computed_rows += len(rows)
                return None
        call = self._call
        if "torch._dynamo" in sys.modules:  # somebody compiles: what is kept here is none of the graph's business
            call = torch.compiler.disable(call, recursive=False)
        return lambda x, modulation, run: call(tuple(rows), span, mask, x, run)

    def _call(self, rows: tuple[Hashable, ...], span: int, mask: Tensor | None, x: Tensor, run: Run) -> Tensor:
        shares = x.chunk(len(rows))
        masks = [None] * len(rows) if mask is None else list(mask.expand(len(x), -1).chunk(len(rows)))
        kept = [self._rows.get(row) for row in rows]
        residuals = [
            known.residual
            for known, share, here in zip(kept, shares, masks, strict=True)
            if known is not None and known.fits(share, here)
        ]
        if len(residuals) == len(rows):
            with self._lock:
                self.reused_rows += len(rows)
            return torch.cat([share + residual for share, residual in zip(shares, residuals, strict=True)])
        out = run(x.clone())  # the blocks may write into what they are handed
        # Row by row: a share of one difference would keep the whole batch alive after its neighbour has gone.
        added = [computed - share for computed, share in zip(out.chunk(len(rows)), shares, strict=True)]
        self._keep(rows, span, added, masks)
        return out

    def _keep(
        self, rows: Sequence[Hashable], span: int, residuals: Sequence[Tensor], masks: Sequence[Tensor | None]
    ) -> None:
        with self._lock:
            self.computed_rows += len(rows)
            for row, residual, mask in zip(rows, residuals, masks, strict=True):
                self._rows[row] = _Kept(span, residual, None if mask is None else mask.clone())
            self.most_rows = max(self.most_rows, len(self._rows))
            self.most_bytes = max(self.most_bytes, sum(size_of(kept.residual) for kept in self._rows.values()))

    def summary(self) -> str:
        """One sentence for the person who waits: what was left out, and what it took."""
        asked = self.computed_rows + self.reused_rows
        if not self.reused_rows:
            return (
                f"Step cache: all {asked} rows were computed; nothing was reused. A table leaves steps out where the "
                "run has about as many steps as the table, or more."
            )
        return (
            f"Step cache: {self.computed_rows} of {asked} rows were computed; kept were {self.most_rows} rows, "
            f"{self.most_bytes / 2**20:.1f} MiB."
        )


def size_of(tensor: Tensor) -> int:
    """Bytes of its numbers."""
    return tensor.numel() * tensor.element_size()
