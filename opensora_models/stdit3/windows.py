"""Cutting the token grid of a clip into the attention windows of Open-Sora 1.3, without padding.

The original pads the grid to a multiple of the window and masks the padding out. Here the grid is cut into pieces
whose windows are all whole: the inner part with full windows, then border strips whose windows are as short as the
border. The windows, their positions and their softmax are the same; nothing is padded and no mask is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

Extent = tuple[int, int, int]


@dataclass(frozen=True)
class Piece:
    """A box of the grid that a window size divides: ``start``, ``size`` and ``window`` in frames, rows, columns."""

    start: Extent
    size: Extent
    window: Extent

    @property
    def window_tokens(self) -> int:
        frames, rows, columns = self.window
        return frames * rows * columns

    def of(self, grid: Tensor) -> Tensor:
        """The view of ``grid`` [B, T, H, W, C] this piece covers."""
        (t, h, w), (frames, rows, columns) = self.start, self.size
        return grid[:, t : t + frames, h : h + rows, w : w + columns]


def cut(size: Extent, kernel_size: Extent) -> list[Piece]:
    """Pieces of a grid of ``size`` (frames, rows, columns); ``kernel_size`` is (rows, columns, frames or -1)."""
    rows, columns, frames = kernel_size
    window = (size[0] if frames == -1 else frames, rows, columns)
    spans = [_spans(length, step) for length, step in zip(size, window, strict=True)]
    return [Piece(*(tuple(part) for part in zip(*box, strict=True))) for box in product(*spans)]


def _spans(length: int, window: int) -> list[tuple[int, int, int]]:
    """(start, size, window) of the part with whole windows and of the rest, whichever exist."""
    whole = length // window * window
    spans = [(0, whole, window)] if whole else []
    return spans + ([(whole, length - whole, length - whole)] if length > whole else [])


def gather(grid: Tensor, piece: Piece) -> Tensor:
    """The windows of a piece: [windows, window tokens, C], tokens ordered frame, row, column."""
    (nt, nh, nw), (kt, kh, kw) = _counts(piece), piece.window
    boxes = piece.of(grid).unflatten(3, (nw, kw)).unflatten(2, (nh, kh)).unflatten(1, (nt, kt))
    return boxes.permute(0, 1, 3, 5, 2, 4, 6, 7).reshape(-1, piece.window_tokens, grid.shape[-1])


def join(tokens: Sequence[Tensor], pieces: Sequence[Piece], size: Extent) -> Tensor:
    """Undo :func:`gather` for all pieces: [B, T, H, W, C]."""
    boxes = [_as_box(part, piece) for part, piece in zip(tokens, pieces, strict=True)]
    if len(boxes) == 1:
        return boxes[0].reshape(-1, *size, boxes[0].shape[-1])
    grid = torch.empty((boxes[0].shape[0], *size, boxes[0].shape[-1]), dtype=boxes[0].dtype, device=boxes[0].device)
    for box, piece in zip(boxes, pieces, strict=True):
        target = piece.of(grid)
        target.copy_(box.reshape(target.shape))
    return grid


def _as_box(tokens: Tensor, piece: Piece) -> Tensor:
    """[windows, window tokens, C] -> the view [B, nt, kt, nh, kh, nw, kw, C]."""
    (nt, nh, nw), (kt, kh, kw) = _counts(piece), piece.window
    return tokens.unflatten(1, (kt, kh, kw)).unflatten(0, (-1, nt, nh, nw)).permute(0, 1, 4, 2, 5, 3, 6, 7)


def _counts(piece: Piece) -> Extent:
    (t, h, w), (kt, kh, kw) = piece.size, piece.window
    return t // kt, h // kh, w // kw
