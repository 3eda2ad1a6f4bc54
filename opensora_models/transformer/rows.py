"""Rows of a batch."""

from __future__ import annotations

from torch import Tensor


def tile_rows(values: Tensor, rows: int) -> Tensor:
    """Repeat ``values`` [m, ...] as a block to ``rows`` rows (0, 1, 0, 1 for two rows and four), as the original does.

    Raises ValueError if ``rows`` is not a multiple of m.
    """
    if rows % values.shape[0]:
        raise ValueError(f"{values.shape[0]} row(s) cannot be tiled to {rows}; give 1, {rows} or a divisor of {rows}.")
    return values if values.shape[0] == rows else values.repeat(rows // values.shape[0], *(1,) * (values.ndim - 1))
