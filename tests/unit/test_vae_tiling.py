"""Tiles against the original's way of joining them: all tiles first, then blended in place, row by row."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.vae.tiling import Axis, Cut, Layout, Piece, joined
from support.allocations import Allocations

Compute = Callable[[tuple[slice, slice, slice]], Tensor]


def released(size: int, gives: int, length: int, scale: Callable[[int], int], extra: int = 0) -> Axis:
    return Cut.overlapping(size, gives, 0.25, extra).axis(length, scale)


def enlarged(size: int, factor: int = 8) -> int:
    return factor * size


def whole(size: int) -> Axis:
    return Axis.whole(size, lambda n: n)


class Tiles:
    """Makes a tensor of its own for each piece: values that only depend on its place, with the sizes the axes say."""

    def __init__(self, dtype: torch.dtype, *scales: Callable[[int], int]) -> None:
        self.dtype, self.scales = dtype, scales

    def __call__(self, takes: tuple[slice, slice, slice]) -> Tensor:
        seed = hash(tuple((part.start, part.stop) for part in takes))
        sizes = [scale(part.stop - part.start) for scale, part in zip(self.scales, takes, strict=True)]
        return torch.randn(1, 2, *sizes, generator=torch.Generator().manual_seed(seed % 2**31)).to(self.dtype)

    def piece(self, piece: Piece) -> Tensor:
        return self(piece.takes)


# -- The original's way, position by position ------------------------------------------------------------------------


def blended(a: Tensor, b: Tensor, dim: int, extent: int) -> Tensor:
    extent = min(a.shape[dim], b.shape[dim], extent)
    for x in range(extent):
        old = a.select(dim, a.shape[dim] - extent + x)
        b.select(dim, x).copy_(old * (1 - x / extent) + b.select(dim, x) * (x / extent))
    return b


def spatially(compute: Compute, time: slice, size: tuple[int, int], tile: int, gives: int, overlap: float) -> Tensor:
    height, width = size
    stride, extent = int(tile * (1 - overlap)), int(gives * overlap)
    limit = gives - extent
    if max(height, width) <= tile:
        return compute((time, slice(0, height), slice(0, width)))
    tiles = [
        [
            compute((time, slice(i, min(i + tile, height)), slice(j, min(j + tile, width))))
            for j in range(0, width, stride)
        ]
        for i in range(0, height, stride)
    ]
    rows = []
    for i, row in enumerate(tiles):
        for j, block in enumerate(row):
            if i > 0:
                blended(tiles[i - 1][j], block, 3, extent)
            if j > 0:
                blended(row[j - 1], block, 4, extent)
        rows.append(torch.cat([block[..., :limit, :limit] for block in row], dim=4))
    return torch.cat(rows, dim=3)


def temporally(
    spatial: Callable[[slice], Tensor], frames: int, tile: int, gives: int, overlap: float, extra: int
) -> Tensor:
    stride, extent = int(tile * (1 - overlap)), int(gives * overlap)
    limit = gives - extent
    row = []
    for i in range(0, frames, stride):
        block = spatial(slice(i, min(i + tile + extra, frames)))
        row.append(block[:, :, extra:] if i > 0 else block)
    kept = []
    for i, block in enumerate(row):
        if i > 0:
            blended(row[i - 1], block, 2, extent)
        kept.append(block[:, :, : limit + (0 if i else extra)])
    return torch.cat(kept, dim=2)


# -- Equal to it -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("overlap", [0.25, 0.0, 0.3, 0.5, 0.75])
@pytest.mark.parametrize(("height", "width"), [(5, 9), (8, 4), (13, 13), (4, 5), (3, 12), (30, 7)])
def test_spatial_tiles_equal_the_original(height: int, width: int, overlap: float, dtype: torch.dtype) -> None:
    compute = Tiles(dtype, lambda n: n, enlarged, enlarged)
    cut = Cut.overlapping(4, 32, overlap)
    layout = Layout(whole(2), cut.axis(height, enlarged), cut.axis(width, enlarged))
    want = spatially(compute, slice(0, 2), (height, width), 4, 32, overlap)
    (got,) = joined(layout, compute.piece)
    assert torch.equal(got, want)
    assert layout.shape == tuple(want.shape[2:])


@pytest.mark.parametrize("overlap", [0.25, 0.0, 0.4, 0.75])
@pytest.mark.parametrize("extra", [0, 1])
@pytest.mark.parametrize("frames", [5, 6, 8, 9, 13, 25])
@pytest.mark.parametrize("side", [3, 6])
def test_temporal_tiles_equal_the_original(frames: int, extra: int, overlap: float, side: int) -> None:
    """Each range of frames tiled in space as well where it is larger than a tile."""

    def count(n: int) -> int:
        return 4 * (n - 1) + 1 if extra else 1 if n == 1 else 4 * n

    compute = Tiles(torch.float32, count, enlarged, enlarged)
    cut = Cut.overlapping(4, 32, overlap)
    sides = [cut.axis(side, enlarged) if side > 4 else Axis.whole(side, enlarged)] * 2
    layout = Layout(Cut.overlapping(4, 16, overlap, extra).axis(frames, count), *sides)
    want = temporally(
        lambda time: spatially(compute, time, (side, side), 4, 32, overlap), frames, 4, 16, overlap, extra
    )
    parts = list(joined(layout, compute.piece))
    assert torch.equal(torch.cat(parts, dim=2), want)
    assert layout.shape == tuple(want.shape[2:])
    assert [part.shape[2] for part in parts] == list(layout.time.keeps)
    assert [layout.time.kept(i) for i in range(layout.parts)][-1].stop == want.shape[2]


@pytest.mark.parametrize("overlap", [0.25, 0.0, 0.75])
def test_some_parts_alone_equal_those_of_the_whole_run(overlap: float) -> None:
    compute = Tiles(torch.float32, lambda n: 4 * n, enlarged, enlarged)
    axis = Cut.overlapping(4, 16, overlap).axis(14, lambda n: 4 * n)
    layout = Layout(axis, Axis.whole(2, enlarged), Axis.whole(2, enlarged))
    parts = list(joined(layout, compute.piece))
    cases = [(first, end) for end in (None, *range(1, layout.parts + 1)) for first in range(end or layout.parts)]
    for first, end in cases:
        asked: list[int] = []

        def noted(piece: Piece, asked: list[int] = asked) -> Tensor:
            asked.append(piece.number)
            return compute.piece(piece)

        some = list(joined(layout, noted, first_part=first, end_part=end))
        assert len(some) == (end or layout.parts) - first
        assert all(torch.equal(a, b) for a, b in zip(some, parts[first:end], strict=True))
        assert asked == [piece.number for piece in layout.needed(first, end)]
        assert asked[-1] == (end or layout.parts) - 1
        if overlap == 0.25 and 0 < first < layout.parts - 1:
            assert asked[0] == first - 1  # the part before suffices


def test_groups_that_share_a_frame_are_a_layout_too() -> None:
    """1.3: 17 frames from 5 latents, the shared frame half and half, the last group kept whole."""
    axis = Axis((slice(0, 5), slice(5, 10), slice(10, 13)), (17, 17, 9), (16, 16, 9), blend=1, weight=0.5)
    compute = Tiles(torch.float32, lambda n: 4 * n - 3, enlarged, enlarged)
    layout = Layout(axis, Axis.whole(2, enlarged), Axis.whole(2, enlarged))
    groups = [compute.piece(piece) for piece in layout.pieces]
    got = torch.cat(list(joined(layout, compute.piece)), dim=2)
    want = torch.cat(
        [
            groups[0][:, :, :16],
            0.5 * groups[0][:, :, 16:] + 0.5 * groups[1][:, :, :1],
            groups[1][:, :, 1:16],
            0.5 * groups[1][:, :, 16:] + 0.5 * groups[2][:, :, :1],
            groups[2][:, :, 1:],
        ],
        dim=2,
    )
    assert torch.equal(got, want)


# -- What is promised ------------------------------------------------------------------------------------------------


def test_released_sizes() -> None:
    """The table of tile, stride, blend and kept sizes."""
    rows = released(256, 32, 576, lambda n: -(-n // 8))
    assert [part.start for part in rows.takes] == [0, 192, 384] and rows.takes[0].stop == 256
    assert (rows.blend, rows.keeps[0], rows.total) == (8, 24, 72)
    rows = released(32, 256, 72, enlarged)
    assert ([part.start for part in rows.takes], rows.blend, rows.keeps) == ([0, 24, 48], 64, (192, 192, 192))
    time = released(64, 16, 129, lambda n: (n - 1) // 4 + 1, extra=1)
    assert ([part.start for part in time.takes], time.takes[0].stop, time.blend) == ([0, 48, 96], 65, 4)
    assert (time.keeps, time.total) == ((13, 12, 8), 33)
    time = released(16, 64, 33, lambda n: 4 * n - 3, extra=1)
    assert (time.takes[0], time.blend, time.keeps, time.total) == (slice(0, 17), 16, (49, 48, 32), 129)


def test_a_tile_that_only_repeats_a_dropped_frame_is_not_computed() -> None:
    time = released(4, 16, 4, lambda n: 4 * n - 3, extra=1)
    assert time.takes == (slice(0, 4),) and time.total == 13


def test_one_tile_and_its_neighbours_ends_live_at_once() -> None:
    """Beside the result, 49 tiles of 64 x 64 take no more than three and the ends of one row."""
    axis = Cut.overlapping(8, 64, 0.25).axis(40, enlarged)
    layout = Layout(whole(1), axis, axis)
    with Allocations(()) as counted:
        (result,) = joined(layout, lambda piece: torch.empty(1, 3, 1, 64, 64, device="meta"))
    tile, ends = 3 * 64 * 64 * 4, len(axis.takes) * 3 * 16 * 64 * 4
    assert len(layout.pieces) == 49
    assert counted.peak <= result.nbytes + 3 * tile + ends


@pytest.mark.parametrize(("size", "overlap"), [(4, 1.0), (4, 0.9), (8, -0.1), (1, 0.25)])
def test_impossible_overlaps_are_refused(size: int, overlap: float) -> None:
    with pytest.raises(ValueError, match=f"Tiles of {size} positions cannot overlap by"):
        Cut.overlapping(size, 8 * size, overlap)


def test_a_number_of_pieces_follows_their_order() -> None:
    axis = released(4, 32, 9, enlarged)
    layout = Layout(Cut.overlapping(4, 16, 0.25).axis(9, lambda n: 4 * n), axis, axis)
    assert [piece.number for piece in layout.pieces] == list(range(layout.parts * 9))
    clip = torch.arange(2 * 3 * 9 * 9 * 9.0).view(2, 3, 9, 9, 9)
    piece = layout.pieces[4 + 9]
    assert torch.equal(piece.of(clip), clip[:, :, 3:7, 3:7, 3:7])
