"""Latents as tokens and back: patches of one frame, and where each token stands.

Tokens are ordered frame, row, column; the features of a token channel, patch row, patch column.
"""

from __future__ import annotations

import torch
from torch import Tensor

Grid = tuple[int, int, int]
"""Tokens in frames, rows and columns."""


def token_grid(latents: Tensor, patch: int) -> Grid:
    """The grid of latents [B, C, T, h, w]. Raises ValueError where h or w is not a multiple of ``patch``."""
    frames, height, width = latents.shape[-3:]
    if height % patch or width % patch or not height or not width:
        good = [max(patch, round(side / patch) * patch) for side in (height, width)]
        raise ValueError(
            f"The latent is {height}x{width} (height x width), but this model needs multiples of {patch}; the nearest "
            f"good size is {good[0]}x{good[1]}."
        )
    return frames, height // patch, width // patch


def pack(latents: Tensor, patch: int) -> Tensor:
    """[B, C, T, h, w] -> [B, T·h/patch·w/patch, C·patch²]."""
    boxes = latents.unflatten(-1, (-1, patch)).unflatten(-3, (-1, patch))  # [B, C, T, rows, patch, columns, patch]
    return boxes.permute(0, 2, 3, 5, 1, 4, 6).flatten(4).flatten(1, 3)


def unpack(tokens: Tensor, grid: Grid, patch: int) -> Tensor:
    """Undo :func:`pack`: [B, n, C·patch²] -> [B, C, T, h, w]."""
    boxes = tokens.unflatten(2, (-1, patch, patch)).unflatten(1, grid)  # [B, T, rows, columns, C, patch, patch]
    return boxes.permute(0, 4, 1, 2, 5, 3, 6).flatten(5).flatten(3, 4)


def image_ids(grid: Grid, device: torch.device | str | None = None) -> Tensor:
    """[n, 3] float32: frame, row and column of every token, counted from 0."""
    axes = [torch.arange(count, dtype=torch.float32, device=device) for count in grid]
    return torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1).flatten(0, 2)


def text_ids(count: int, device: torch.device | str | None = None) -> Tensor:
    """[count, 3] float32: text has no place, all zeros."""
    return torch.zeros(count, 3, device=device)


def reference_features(reference: Tensor, given: Tensor) -> Tensor:
    """The reference input [B, 1 + C, T, h, w]: the mask, then the latents [B, C, T, h, w] where it is 1.

    ``given`` is [T] or [B, T], 1 where a frame is given.
    """
    flags = given.to(reference).reshape(-1, 1, given.shape[-1], 1, 1)
    mask = flags.expand(reference.shape[0], 1, *reference.shape[2:])
    return torch.cat([mask, torch.where(flags != 0, reference, 0)], dim=1)
