"""Decoding on several ranks: pieces of a clip (groups of frames, tiles) go round, rank 0 joins them.

A piece is computed as in one process, so the pictures are the same to the last bit. Ranks go in rounds: each decodes
one piece, then rank 0 gets them all; it holds as many finished pieces as there are ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from ..vae.tiling import Compute, Layout, Piece
from .ranks import SLOWER, Ranks

WRITING = 3600.0
"""Seconds rank 0 may need between two rounds, since it writes a file meanwhile; where it ends, its pipe says so."""


def rounds_of(pieces: Sequence[Piece], ranks: int) -> list[Sequence[Piece]]:
    """As many pieces at a time as there are ranks; the last round may have fewer."""
    return [pieces[start : start + ranks] for start in range(0, len(pieces), ranks)]


@dataclass(frozen=True)
class SharedDecoding:
    """A clip that ``ranks`` decode together, as one of them sees it: ``clips`` of a batch, of ``channels`` pixels."""

    ranks: Ranks
    clips: int
    channels: int = 3

    def helped(self, layout: Layout, compute: Compute, pieces: Sequence[Piece]) -> Compute:
        """For rank 0 (``helped`` of :meth:`..vae.piecewise.PiecewiseAutoencoder.decoded`)."""
        rounds = {each[0].number: each for each in rounds_of(pieces, self.ranks.size)}
        arrived: dict[int, Tensor] = {}

        def decode(piece: Piece) -> Tensor:
            if piece.number in rounds:
                others = rounds[piece.number]
                own = self._checked(layout, piece, compute(piece))
                shapes: list[tuple[int, ...]] = [self._shape(layout, each) for each in others]
                shapes += [(0,)] * (self.ranks.size - len(others))
                most = max(map(prod, shapes)) / prod(shapes[0])  # a narrow tile is done long before a whole one
                with self.ranks.patient(slower=SLOWER * most):
                    found = self.ranks.exchange([own, *self._nothing(own)], shapes)
                arrived.update({each.number: part for each, part in zip(others, found, strict=False)})
            return arrived.pop(piece.number)

        return decode

    def help(self, layout: Layout, compute: Compute, pieces: Sequence[Piece]) -> None:
        """For the other ranks: decode every piece that is theirs and send it to rank 0, which may take its time."""
        with self.ranks.patient(WRITING):
            self._help(layout, compute, pieces)

    def _help(self, layout: Layout, compute: Compute, pieces: Sequence[Piece]) -> None:
        for each in rounds_of(pieces, self.ranks.size):
            own = torch.empty(0)
            if self.ranks.rank < len(each):
                piece = each[self.ranks.rank]
                own = self._checked(layout, piece, compute(piece))
            self.ranks.exchange([own, *self._nothing(own)], [(0,)] * self.ranks.size)

    def _nothing(self, like: Tensor) -> list[Tensor]:
        return [like.new_empty(0)] * (self.ranks.size - 1)

    def _checked(self, layout: Layout, piece: Piece, own: Tensor) -> Tensor:
        wanted = self._shape(layout, piece)
        if tuple(own.shape) != wanted:
            raise ValueError(f"Piece {piece.number} was decoded to {list(own.shape)} instead of {list(wanted)}.")
        return own

    def _shape(self, layout: Layout, piece: Piece) -> tuple[int, ...]:
        """Of a decoded piece, [B, channels, t, h, w]; the frames that are dropped behind another piece count here."""
        frames = layout.time.gives[piece.part] + (layout.time.drop if piece.part else 0)
        return self.clips, self.channels, frames, layout.rows.gives[piece.row], layout.columns.gives[piece.column]
