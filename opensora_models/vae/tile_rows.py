"""Rows of tiles on disk: what is finished of a part while the part is not."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from ..storage.pieces import Pieces
from ..storage.tensors import from_bytes, to_bytes


class TileRows:
    """A :class:`.tiling.RowStore` among the pieces of an unfinished video; every row is kept bit for bit.

    ``found``: called when the first row is taken from the store.
    """

    def __init__(self, pieces: Pieces, found: Callable[[], None] = lambda: None) -> None:
        self._pieces, self._found, self._told = pieces, found, False

    def load(self, part: int, row: int) -> tuple[Tensor, list[Tensor]] | None:
        """A row that is there and whole, on the CPU."""
        content = self._pieces.content(_name(part, row))
        if content is None:
            return None
        tensors = from_bytes(content[1])
        if not self._told:
            self._told = True
            self._found()
        return tensors["kept"], [tensors[f"end {column}"] for column in range(len(tensors) - 1)]

    def save(self, part: int, row: int, kept: Tensor, ends: list[Tensor]) -> None:
        """Keep a row. Raises CannotStore."""
        tensors = {"kept": kept, **{f"end {column}": end for column, end in enumerate(ends)}}
        self._pieces.write_bytes_of(_name(part, row), to_bytes(tensors), {})

    def forget(self, part: int, rows: int) -> None:
        """Remove the rows of a part that is finished."""
        for row in range(rows):
            self._pieces.remove(_name(part, row))


def _name(part: int, row: int) -> str:
    return f"row-{part:05d}-{row:03d}.safetensors"
