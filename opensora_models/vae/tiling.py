"""Cuts a clip into overlapping pieces and blends what comes of them, one range of frames after the other.

A piece is what a network takes at once: a group of frames of 1.2 and 1.3, a tile of 2.0. Along each axis a piece is a
slice of the input; of its output the first ``drop`` positions go, the next ``blend`` are mixed with the end of the
piece before, and ``keeps`` of them stay. The original computes all tiles, then blends them in place; here every tile
is blended as soon as it is there, which gives the same numbers and holds one tile and some margins at a time.
Source: ``spatial_tiled_*`` and ``temporal_tiled_*`` of 2.0's autoencoders (opensora/models/hunyuan_vae, dc_ae).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

TIME, ROWS, COLUMNS = 2, 3, 4


@dataclass(frozen=True)
class Axis:
    """How one axis is cut; all tuples have one entry for each piece.

    ``takes``: input positions. ``gives``: output positions, those dropped not counted. ``keeps``: how many of those
    stay. ``drop``: output positions at the start of every piece but the first that are thrown away. ``blend``: output
    positions mixed with the piece before. ``weight``: share of the later piece there; None lets it grow from 0 to 1.
    """

    takes: tuple[slice, ...]
    gives: tuple[int, ...]
    keeps: tuple[int, ...]
    drop: int = 0
    blend: int = 0
    weight: float | None = None

    @classmethod
    def whole(cls, size: int, gives: Callable[[int], int]) -> Axis:
        """An axis in one piece; ``gives``: output positions of so many input positions."""
        return cls((slice(0, size),), (gives(size),), (gives(size),))

    @property
    def total(self) -> int:
        """Output positions of the whole axis."""
        return sum(self.keeps)

    def kept(self, index: int) -> slice:
        """Where in the output the kept part of a piece lies."""
        start = sum(self.keeps[:index])
        return slice(start, start + self.keeps[index])

    def limited(self, total: int) -> Axis:
        """The axis up to ``total`` output positions; pieces that keep none of them go."""
        starts = [sum(self.keeps[:index]) for index in range(len(self.keeps))]
        count = max(1, sum(start < total for start in starts))
        keeps = tuple(min(keep, total - start) for keep, start in zip(self.keeps[:count], starts, strict=False))
        return replace(self, takes=self.takes[:count], gives=self.gives[:count], keeps=keeps)

    def shares(self, extent: int) -> list[float]:
        """Share of the later piece at each of ``extent`` blended positions."""
        return [position / extent if self.weight is None else self.weight for position in range(extent)]


@dataclass(frozen=True)
class Cut:
    """Sizes of overlapping pieces of one axis: ``size`` and ``stride`` in input, ``blend`` and ``keep`` in output.

    ``extra``: positions a piece takes in addition; all but the first drop as many outputs, the first keeps as many
    more. (The first frame of a causal autoencoder has no partners.)
    """

    size: int
    stride: int
    blend: int
    keep: int
    extra: int = 0

    @classmethod
    def overlapping(cls, size: int, gives: int, overlap: float, extra: int = 0) -> Cut:
        """Pieces of ``size`` positions that give ``gives``, overlapping by a share ``overlap`` of both."""
        stride, blend = int(size * (1 - overlap)), int(gives * overlap)
        if stride < 1 or not 0 <= overlap < 1:
            raise ValueError(
                f"Tiles of {size} positions cannot overlap by {overlap:g}; give an overlap from 0 to {1 - 1 / size:g}, "
                "such as 0.25 for tiles of at least 2."
            )
        return cls(size, stride, blend, gives - blend, extra)

    def axis(self, length: int, gives: Callable[[int], int]) -> Axis:
        """The pieces of an axis of ``length`` positions; ``gives``: output positions of so many input positions."""
        takes = [slice(start, min(start + self.size + self.extra, length)) for start in range(0, length, self.stride)]
        given = [gives(part.stop - part.start) - (self.extra if part.start else 0) for part in takes]
        while given[-1] < 1:  # nothing but the dropped position: computed and thrown away by the original
            takes, given = takes[:-1], given[:-1]
        keeps = [min(count, self.keep + (0 if index else self.extra)) for index, count in enumerate(given)]
        return Axis(tuple(takes), tuple(given), tuple(keeps), self.extra, self.blend)


class Piece(NamedTuple):
    """One block of the input: its number in the order of computing, its place, and what it takes of T, H and W."""

    number: int
    part: int
    row: int
    column: int
    takes: tuple[slice, slice, slice]

    def of(self, clip: Tensor) -> Tensor:
        """The block of [B, C, T, H, W]."""
        place = (..., *self.takes)
        return clip[place]


Compute = Callable[[Piece], Tensor]
"""Gives the output [B, C, t, h, w] of a piece as a tensor of its own, which may be written to."""


@dataclass(frozen=True)
class Layout:
    """All pieces of a clip. Pieces of the same frames form a *part*: the range of frames that is finished together."""

    time: Axis
    rows: Axis
    columns: Axis

    @property
    def parts(self) -> int:
        """Number of ranges of frames."""
        return len(self.time.takes)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Frames, height and width of the output."""
        return self.time.total, self.rows.total, self.columns.total

    @property
    def pieces(self) -> list[Piece]:
        """Every piece in the order of computing: part by part, row by row."""
        return [piece for part in range(self.parts) for row in self.tile_rows(part) for piece in row]

    def tile_rows(self, part: int) -> list[list[Piece]]:
        """The pieces of a part, row by row."""
        height, width = len(self.rows.takes), len(self.columns.takes)
        return [
            [
                Piece((part * height + row) * width + column, part, row, column,
                      (self.time.takes[part], self.rows.takes[row], self.columns.takes[column]))
                for column in range(width)
            ]
            for row in range(height)
        ]  # fmt: skip

    def first_needed(self, part: int) -> int:
        """The part to begin with, so that ``part`` comes out as in a run from the start."""
        while part > 0 and self.time.blend:
            part -= 1
            # The end of a piece is its own where it does not reach into what was blended at its start.
            if part == 0 or self.time.gives[part] >= 2 * self.time.blend:
                break
        return part

    def needed(self, first_part: int, end_part: int | None = None) -> list[Piece]:
        """The pieces that must be computed to get all parts from ``first_part`` on; those in front of ``end_part``."""
        parts = range(self.first_needed(first_part), self.parts if end_part is None else end_part)
        return [piece for piece in self.pieces if piece.part in parts]


class RowStore(Protocol):
    """Keeps finished rows of tiles, so that a part of many tiles need not be begun anew after a run was cut off."""

    def load(self, part: int, row: int) -> tuple[Tensor, list[Tensor]] | None:
        """What was saved for a row, or None: its kept frames, and the lower end of every tile."""

    def save(self, part: int, row: int, kept: Tensor, ends: list[Tensor]) -> None:
        """Keep a row."""


def joined(
    layout: Layout, compute: Compute, *, first_part: int = 0, end_part: int | None = None, store: RowStore | None = None
) -> Iterator[Tensor]:
    """Yield the finished frames [B, C, t, H, W] part by part, from ``first_part`` on and in front of ``end_part``.

    ``store``: where rows of tiles are kept, and taken from, in parts that have several.
    """
    before: Tensor | None = None
    for part in range(layout.first_needed(first_part), layout.parts if end_part is None else end_part):
        frames = _joined_tiles(layout, part, compute, store)
        if before is not None:
            _blend(before, frames, TIME, layout.time)
        if part + 1 < layout.parts:
            before = _end(frames, TIME, layout.time.blend)
        if part >= first_part:
            yield frames[:, :, : layout.time.keeps[part]]


def _joined_tiles(layout: Layout, part: int, compute: Compute, store: RowStore | None) -> Tensor:
    """All frames of a part, the dropped ones taken off."""
    rows = layout.tile_rows(part)
    drop = layout.time.drop if part else 0
    if len(rows) == 1 and len(rows[0]) == 1:
        return compute(rows[0][0])[:, :, drop:]
    if len(rows) == 1:
        store = None
    canvas: Tensor | None = None
    ends: list[Tensor] = []
    for row, pieces in enumerate(rows):
        place = (..., layout.rows.kept(row), slice(None))
        stored = None if store is None else store.load(part, row)
        if stored is None:
            canvas = _joined_row(layout, pieces, lambda piece: compute(piece)[:, :, drop:], ends, canvas)
            if store is not None:
                store.save(part, row, canvas[place], ends)
        else:
            kept, ends = stored
            canvas = _canvas(layout, kept) if canvas is None else canvas
            canvas[place] = kept
    assert canvas is not None
    return canvas


def _canvas(layout: Layout, like: Tensor) -> Tensor:
    """Room for all frames of a part."""
    return like.new_empty((*like.shape[:3], layout.rows.total, layout.columns.total))


def _joined_row(
    layout: Layout, pieces: list[Piece], compute: Compute, ends: list[Tensor], canvas: Tensor | None
) -> Tensor:
    """The canvas with a row of tiles on it; ``ends`` are the lower ends of the row before and become this one's."""
    left: Tensor | None = None
    for column, piece in enumerate(pieces):
        tile = compute(piece)
        if piece.row:
            _blend(ends[column], tile, ROWS, layout.rows)
        if left is not None:
            _blend(left, tile, COLUMNS, layout.columns)
        if canvas is None:
            canvas = _canvas(layout, tile)
        height, width = layout.rows.keeps[piece.row], layout.columns.keeps[column]
        canvas[..., layout.rows.kept(piece.row), layout.columns.kept(column)] = tile[..., :height, :width]
        ends[column : column + 1] = [_end(tile, ROWS, layout.rows.blend)]
        left = _end(tile, COLUMNS, layout.columns.blend)
        del tile  # before the next one is made
    assert canvas is not None
    return canvas


def _end(piece: Tensor, dim: int, count: int) -> Tensor:
    """The last ``count`` positions, without the rest of the piece."""
    size = piece.shape[dim]
    count = min(count, size)
    return piece.narrow(dim, size - count, count).clone()


def _blend(before: Tensor, piece: Tensor, dim: int, axis: Axis) -> None:
    """Mix the end of the piece before into the start of ``piece``, over at most ``axis.blend`` positions."""
    extent = min(before.shape[dim], piece.shape[dim], axis.blend)
    if extent == 0:
        return
    old = before.narrow(dim, before.shape[dim] - extent, extent).to(piece.device)  # a stored one is on the CPU
    new = piece.narrow(dim, 0, extent)
    shape = [1] * piece.ndim
    shape[dim] = extent
    shares = axis.shares(extent)
    # Each product is rounded to the type of the piece, as where every position is mixed by itself with plain numbers.
    exact = {"dtype": torch.promote_types(piece.dtype, torch.float32), "device": piece.device}
    mine = torch.tensor(shares, **exact).view(shape)
    others = torch.tensor([1 - share for share in shares], **exact).view(shape)
    new.copy_((old * others).to(piece.dtype).add_((new * mine).to(piece.dtype)))
