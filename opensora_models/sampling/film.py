"""Small pictures of references on one sheet, so that the timeline's view shows them all with one file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .fitting import Fit, fit_pictures

CELL_HEIGHT = 64
NARROWEST, BROADEST = 32, 160
"""Pixels a cell may be wide, whatever the clip's shape."""
MOST_CELLS = 120
COLUMNS = 12


@dataclass(frozen=True)
class Sheet:
    """Cells in rows of ``columns``, each ``width`` x ``height`` pixels; ``picture`` is ``[1, H, W, 3]``.

    ``strips`` holds (first cell, number of cells) by the number of a reference: its frames, evenly spread, from the
    first that is used to the last.
    """

    picture: Tensor = field(repr=False)
    columns: int
    rows: int
    width: int
    height: int
    strips: dict[int, tuple[int, int]]


def sheet_of(pictures: Mapping[int, Tensor], used: Mapping[int, int], shape: tuple[int, int], fit: Fit) -> Sheet | None:
    """The sheet of references ``[N, H, W, C]``; None without any.

    Args:
        used: how many frames of each reference, and how many moments (latent frames) they are: no more cells than that.
        shape: height and width of the clip; cells have its proportions.
    """
    shown = {number: batch for number, batch in pictures.items() if batch.ndim == 4 and batch.numel()}
    if not shown:
        return None
    numbers = list(shown)[:MOST_CELLS]
    share = MOST_CELLS // len(numbers)
    width = min(max(round(CELL_HEIGHT * shape[1] / shape[0]), NARROWEST), BROADEST)
    cells: list[Tensor] = []
    strips = {}
    for number in numbers:
        batch, count = shown[number], min(share, used[number])
        places = torch.linspace(0, batch.shape[0] - 1, count).round().long()
        strips[number] = (len(cells), count)
        cells += fit_pictures(_visible(batch[places]), CELL_HEIGHT, width, fit)[0]
    columns = min(COLUMNS, len(cells))
    rows = -(-len(cells) // columns)
    cells += [torch.zeros_like(cells[0])] * (columns * rows - len(cells))
    lines = [torch.cat(cells[row * columns : (row + 1) * columns], dim=1) for row in range(rows)]
    return Sheet(torch.cat(lines)[None], columns, rows, width, CELL_HEIGHT, strips)


def _visible(pictures: Tensor) -> Tensor:
    """Three channels within 0 and 1, whatever was connected."""
    colours = pictures[..., :3] if pictures.shape[-1] >= 3 else pictures[..., :1].expand(*pictures.shape[:-1], 3)
    return torch.nan_to_num(colours.detach().cpu().float()).clamp(0.0, 1.0)
