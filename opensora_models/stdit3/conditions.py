"""What a block is told besides its tokens: text, given frames, time and positions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..transformer.arithmetic import Arithmetic, Attention
from ..transformer.positions import Rotary
from ..transformer.rows import tile_rows
from .windows import Piece


@dataclass(frozen=True)
class GivenFrames:
    """Frames the model is told (Open-Sora 1.3).

    ``latents`` [B, I, T, Hx, Wx] and ``mask`` (the same shape, or anything that expands to it, 1 = given) are
    embedded and added to the tokens, even when ``indices`` is empty. The latent frames named in ``indices`` attend
    to ``null_text`` instead of the prompt: one tensor [L_b, caption channels] per row, or None for the network's own
    null text cut to the length of the row's prompt.
    """

    latents: Tensor
    mask: Tensor
    indices: Sequence[int]
    null_text: Sequence[Tensor] | Tensor | None = None


@dataclass(frozen=True)
class PackedText:
    """Texts of all rows behind one another: ``tokens`` [sum of lengths, C]."""

    tokens: Tensor
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class BlockContext:
    """Everything the blocks of one forward call share.

    ``modulation`` [B, T or 1, 6, C] is the output of ``t_block`` (per frame under a frame mask), ``given`` the
    latent frames that attend to ``null_text``, ``windows`` the pieces of Open-Sora 1.3's temporal attention with
    the rotation inside their windows, ``grid`` the token rows and columns of a frame, ``sequences`` how many sequences
    self attention has in the whole call where blocks see a share of it.
    """

    modulation: Tensor
    text: PackedText
    grid: tuple[int, int]
    arithmetic: Arithmetic
    attention: Attention
    spatial_rotary: Rotary | None = None
    temporal_rotary: Rotary | None = None
    windows: tuple[tuple[Piece, Rotary], ...] = ()
    null_text: PackedText | None = None
    given: tuple[int, ...] = ()
    sequences: int | None = None
    options: Mapping[str, Any] | None = None


def pack(rows: Sequence[Tensor] | Tensor) -> PackedText:
    """One tensor [L_b, C] per row (or [B, L, C]) to one sequence."""
    if isinstance(rows, Tensor):
        return PackedText(rows.flatten(0, 1), (rows.shape[1],) * rows.shape[0])
    return PackedText(torch.cat(list(rows)), tuple(row.shape[0] for row in rows))


def kept_tokens(text: Tensor, mask: Tensor | None) -> list[Tensor]:
    """The tokens of every row where ``mask`` is not zero; holes are allowed.

    ``text`` [B, L, C] or [B, 1, L, C]; ``mask`` [m, L], tiled as a block if m < B; None keeps everything.
    Reads the mask, so it belongs outside a compiled forward.
    """
    if text.ndim == 4:
        text = text.squeeze(1)
    if mask is None:
        return list(text)
    return [row[keep] for row, keep in zip(text, tile_rows(mask, text.shape[0]).bool(), strict=True)]
