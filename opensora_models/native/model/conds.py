"""Conditioning entries for ComfyUI's sampler that its own classes cannot carry exactly.

A COND decides whether two branches may share one forward and how their values are joined. ComfyUI casts floating and
bool tensors of a COND to the inference dtype and leaves integers alone, so exact numbers travel as integers here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy.conds import CONDRegular
from torch import Tensor

FIXED_POINT = 1_000_000
"""Integer steps per unit for ratios and frame rates: fine enough that a float32 ratio comes back unchanged."""


def to_fixed(values: Tensor) -> Tensor:
    """Numbers 0..1 -> int64 millionths, which no cast to bf16 can touch (float32 holds these integers exactly)."""
    return values.float().mul(FIXED_POINT).round().long()


def from_fixed(values: Tensor) -> Tensor:
    """int64 millionths -> float32."""
    return values.float() / FIXED_POINT


def _rows_of(rows: Sequence[Any], batch_size: int) -> list[Any]:
    """The rows repeated as a block (0, 1, 0, 1, ...) and cut to the batch, like ComfyUI repeats tensors."""
    return [rows[index % len(rows)] for index in range(batch_size)]


class TextRows(CONDRegular):
    """One text tensor [L, C] per batch row; rows of any length share a forward because nothing is padded or repeated.

    ``cond`` is a list, so the model receives a list with one tensor per row.
    """

    def __init__(self, cond: Sequence[Tensor]) -> None:
        super().__init__(list(cond))

    def process_cond(self, batch_size: int, **kwargs: Any) -> TextRows:
        """The rows for a batch of this size."""
        return self._copy_with(_rows_of(self.cond, batch_size))

    def can_concat(self, other: CONDRegular) -> bool:
        """Any two texts of the same width can be computed together."""
        return isinstance(other, TextRows) and other.cond[0].shape[1] == self.cond[0].shape[1]

    def concat(self, others: Sequence[TextRows]) -> list[Tensor]:
        """All rows in batch order; copies, since the conditioning itself is kept by its node for the next run."""
        return [row.clone() for entry in (self, *others) for row in entry.cond]

    def size(self) -> list[int]:
        """Shape for memory estimates: every token of every row."""
        return [1, sum(row.shape[0] for row in self.cond), self.cond[0].shape[1]]


class RowAlone(CONDRegular):
    """A tensor whose rows are computed in a forward of their own."""

    def can_concat(self, other: CONDRegular) -> bool:
        """Never with another conditioning's."""
        return False


class PerFrame(CONDRegular):
    """A tensor [B, C, T, h, w] or [B, 1, T, 1, 1] that follows areas and context windows along every axis it has."""

    def process_cond(self, batch_size: int, area: Sequence[int] | None = None, **kwargs: Any) -> PerFrame:
        """Cut to the area (sizes, then starts, per axis T, h, w); an axis of one value stays as it is."""
        data = self.cond
        if area is not None:
            axes = len(area) // 2
            for axis in range(axes):
                if data.shape[axis + 2] > 1:
                    data = data.narrow(axis + 2, area[axis + axes], area[axis])
        return self._copy_with(data).repeated(batch_size)

    def repeated(self, batch_size: int) -> PerFrame:
        """The rows repeated as a block and cut to the batch."""
        return self._copy_with(torch.stack(_rows_of(self.cond.unbind(0), batch_size)))


class FrameNumbers(PerFrame):
    """Which latent frames are given, as int64 0/1 [1, 1, T, 1, 1] so that context windows can cut it.

    The network takes frame numbers that hold for the whole batch; branches with other numbers run apart.
    """

    def repeated(self, batch_size: int) -> FrameNumbers:
        """One row serves the whole batch."""
        return self

    def can_concat(self, other: CONDRegular) -> bool:
        """Only the same frames can be computed together."""
        return isinstance(other, FrameNumbers) and torch.equal(self.cond, other.cond)

    def concat(self, others: Sequence[FrameNumbers]) -> tuple[int, ...]:
        """The numbers of the given frames."""
        return tuple(self.cond.flatten().nonzero().flatten().tolist())
