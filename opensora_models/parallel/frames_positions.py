"""Dynamic sequence parallelism of STDiT3: frames are shared in spatial blocks, positions in temporal ones.

A spatial block needs whole frames, a temporal block whole positions (of Open-Sora 1.3: whole windows), so between two
blocks the tokens change hands once, in one all-to-all, and every block runs as it is on the tokens a rank holds.
Source: Dynamic Sequence Parallelism (arXiv 2403.10266).

Positions are shared in runs of an order in which every window's positions stand together; for the blocks a window is
then a column of tokens, in the order of frames, rows and columns that it had in the grid.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

from ..stdit3.conditions import BlockContext, PackedText
from ..stdit3.config import STDiT3Config
from ..stdit3.windows import Piece, cut
from .ranks import Ranks
from .shares import Span, even_shares, whole_shares

Layout = Literal["frames", "positions"]


@dataclass(frozen=True)
class ClipShares:
    """What each of ``ranks`` holds of a clip of ``frames`` frames with ``grid`` rows and columns of tokens."""

    config: STDiT3Config
    frames: int
    grid: tuple[int, int]
    ranks: int

    @property
    def positions(self) -> int:
        """Positions of a frame."""
        return self.grid[0] * self.grid[1]

    @cached_property
    def of_frames(self) -> tuple[Span, ...]:
        """In spatial blocks, one span a rank."""
        return even_shares(self.frames, self.ranks)

    @cached_property
    def of_positions(self) -> tuple[Span, ...]:
        """In temporal blocks, one span a rank, in the order of :attr:`order`."""
        sizes = [len(unit) for unit in self.units]
        edges = [0]
        for size in sizes:
            edges.append(edges[-1] + size)
        return tuple(Span(edges[span.start], edges[span.stop]) for span in whole_shares(sizes, self.ranks))

    @cached_property
    def units(self) -> tuple[tuple[int, ...], ...]:
        """Positions of a frame that must stay together, unit after unit: windows, or single positions."""
        rows, columns = self.grid
        if self.config.kernel_size is None:
            return tuple((position,) for position in range(rows * columns))
        return tuple(unit for piece in self.flat_pieces for unit in _windows(piece, columns))

    @cached_property
    def flat_pieces(self) -> tuple[Piece, ...]:
        """The pieces the grid of one frame is cut into."""
        rows, columns = self.config.kernel_size[:2] if self.config.kernel_size else self.grid
        return tuple(cut((1, *self.grid), (rows, columns, -1)))

    @cached_property
    def order(self) -> Tensor | None:
        """[S] the positions unit after unit; None where that is the order they stand in."""
        order = [position for unit in self.units for position in unit]
        return None if order == list(range(len(order))) else torch.tensor(order)

    def held_by(self, piece: Piece) -> Span:
        """The positions of a piece of the clip in the order of :attr:`order`."""
        start = 0
        for flat in self.flat_pieces:
            if flat.start[1:] == piece.start[1:]:
                break
            start += flat.size[1] * flat.size[2]
        return Span(start, start + piece.size[1] * piece.size[2])

    @property
    def busiest(self) -> float:
        """The largest share of the tokens that a rank holds, averaged over spatial and temporal blocks."""
        return sum(self._largest) / len(self._largest)

    @property
    def largest(self) -> float:
        """The larger one of the two."""
        return max(self._largest)

    @property
    def _largest(self) -> list[float]:
        both = (self.of_frames, self.frames), (self.of_positions, self.positions)
        return [max(map(len, spans)) / total for spans, total in both[: 1 if self.config.skip_temporal else 2]]


def _windows(piece: Piece, columns: int) -> list[tuple[int, ...]]:
    """Positions of each window of a piece of one frame, windows and positions row by row."""
    (_, top, left), (_, rows, width), (_, high, wide) = piece.start, piece.size, piece.window
    return [
        tuple(row * columns + column for row in range(y, y + high) for column in range(x, x + wide))
        for y in range(top, top + rows, high)
        for x in range(left, left + width, wide)
    ]


class FramesAndPositions:
    """The tokens of one rank on their way through the blocks of one call.

    ``rows`` are those of the batch this rank computes. Called before every block (``opensora_stack_hook`` of
    :mod:`..stdit3.network`), it hands out the tokens and the context for the block.
    """

    def __init__(self, shares: ClipShares, ranks: Ranks, rows: Span) -> None:
        self.shares, self.ranks, self.rows = shares, ranks, rows
        self.layout: Layout = "frames"
        self._contexts: dict[Layout, BlockContext] = {}
        order = shares.order
        self._order = None if order is None or ranks.size == 1 else order

    @property
    def frames(self) -> Span:
        """The frames of this rank in spatial blocks."""
        return self.shares.of_frames[self.ranks.rank]

    @property
    def positions(self) -> Span:
        """The positions of this rank in temporal blocks."""
        return self.shares.of_positions[self.ranks.rank]

    def __call__(self, index: int, tokens: Tensor, context: BlockContext) -> tuple[Tensor, BlockContext]:
        """Tokens [B, frames, S, C] or [B, T, positions, C], as block ``index`` wants them, and its context."""
        spatial = self.shares.config.skip_temporal or index % 2 == 0
        wanted: Layout = "frames" if spatial else "positions"
        if wanted != self.layout and self.ranks.size > 1:
            tokens = self._to_positions(tokens) if wanted == "positions" else self._to_frames(tokens)
        self.layout = wanted
        if wanted not in self._contexts:
            make, each = (self._of_frames, 0) if wanted == "frames" else (self._of_positions, 1)
            sequences = context.modulation.shape[0] * (self.shares.frames, self.shares.positions)[each]
            self._contexts[wanted] = replace(make(context_of_rows(context, self.rows)), sequences=sequences)
        return tokens, self._contexts[wanted]

    def put_back(self, tokens: Tensor, rank: int, whole: Tensor) -> None:
        """Write what a rank holds after the last block, [B, tokens, C], into ``whole`` [B, T, S, C]."""
        if self.shares.config.skip_temporal:
            part = whole[:, self.shares.of_frames[rank].slice]
            part.copy_(tokens.view(part.shape))
            return
        span = self.shares.of_positions[rank]
        self._put(whole, span, tokens.view(*whole.shape[:2], len(span), whole.shape[3]))

    def held(self, rank: int) -> int:
        """Tokens that a rank holds after the last block."""
        if self.shares.config.skip_temporal:
            return len(self.shares.of_frames[rank]) * self.shares.positions
        return self.shares.frames * len(self.shares.of_positions[rank])

    def _to_positions(self, tokens: Tensor) -> Tensor:
        """[B, own frames, S, C] -> [B, T, own positions, C]."""
        rows, width = tokens.shape[0], tokens.shape[-1]
        parts = [self._take(tokens, span) for span in self.shares.of_positions]
        shapes = [(rows, len(span), len(self.positions), width) for span in self.shares.of_frames]
        return torch.cat(self.ranks.exchange(parts, shapes), dim=1)

    def _to_frames(self, tokens: Tensor) -> Tensor:
        """[B, T, own positions, C] -> [B, own frames, S, C]."""
        rows, width = tokens.shape[0], tokens.shape[-1]
        parts = [tokens[:, span.slice] for span in self.shares.of_frames]
        shapes = [(rows, len(self.frames), len(span), width) for span in self.shares.of_positions]
        whole = tokens.new_empty(rows, len(self.frames), self.shares.positions, width)
        for span, part in zip(self.shares.of_positions, self.ranks.exchange(parts, shapes), strict=True):
            self._put(whole, span, part)
        return whole

    def _take(self, tokens: Tensor, span: Span) -> Tensor:
        """The positions of a span out of [B, frames, S, C]."""
        if self._order is None:
            return tokens[:, :, span.slice]
        return tokens.index_select(2, self._order[span.slice].to(tokens.device))

    def _put(self, whole: Tensor, span: Span, part: Tensor) -> None:
        """The positions of a span into [B, frames, S, C]."""
        if self._order is None:
            whole[:, :, span.slice] = part
        else:
            whole.index_copy_(2, self._order[span.slice].to(whole.device), part)

    def _of_frames(self, context: BlockContext) -> BlockContext:
        """What blocks are told that see the frames of this rank alone."""
        own, modulation = self.frames, context.modulation
        if modulation.shape[1] > 1:
            modulation = modulation[:, own.slice]
        given = tuple(frame - own.start for frame in context.given if own.start <= frame < own.stop)
        return replace(context, modulation=modulation, given=given)

    def _of_positions(self, context: BlockContext) -> BlockContext:
        """What blocks are told that see the positions of this rank alone."""
        if self.ranks.size == 1:
            return context
        pieces = [(self._column(piece), rotary) for piece, rotary in context.windows]
        windows = tuple((piece, rotary) for piece, rotary in pieces if piece.size[1])
        grid = context.grid if self.shares.config.kernel_size is None else (len(self.positions), 1)
        return replace(context, windows=windows, grid=grid)

    def _column(self, piece: Piece) -> Piece:
        """What this rank holds of a piece: its windows below one another, each a column of tokens."""
        depth, high, wide = piece.window
        held = self.shares.held_by(piece)
        own = held.within(self.positions)
        return Piece((piece.start[0], own.start, 0), (piece.size[0], len(own), 1), (depth, high * wide, 1))


def context_of_rows(context: BlockContext, rows: Span) -> BlockContext:
    """The context of some rows of the batch."""
    if len(rows) == context.modulation.shape[0]:
        return context
    null = context.null_text
    return replace(
        context,
        modulation=context.modulation[rows.slice],
        text=text_of_rows(context.text, rows),
        null_text=None if null is None else text_of_rows(null, rows),
    )


def text_of_rows(text: PackedText, rows: Span) -> PackedText:
    """The texts of some rows."""
    before, own = sum(text.lengths[: rows.start]), text.lengths[rows.slice]
    return PackedText(text.tokens[before : before + sum(own)], own)
