"""Ulysses for MMDiT: every rank has a share of the tokens everywhere and a share of the heads in attention.

Source: DeepSpeed Ulysses (arXiv 2309.14509). Text and image tokens are both shared, so that no rank computes the text
of another. In front of attention queries, keys and values change hands in one all-to-all, behind it its result does in
another; tokens stand in their usual order meanwhile, text first, so that sums are the same as in one process.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from ..mmdit.blocks import BlockContext
from ..mmdit.modulation import Modulations
from ..mmdit.positions import AnyRotary, part
from ..transformer.arithmetic import Attention
from .ranks import Ranks
from .shares import Span, even_shares


@dataclass(frozen=True)
class TokenShares:
    """What each of ``ranks`` holds of ``image`` and ``text`` tokens; ``heads`` is a multiple of ``ranks``."""

    image: int
    text: int
    ranks: int

    @cached_property
    def of_image(self) -> tuple[Span, ...]:
        """Image tokens, one span a rank."""
        return even_shares(self.image, self.ranks)

    @cached_property
    def of_text(self) -> tuple[Span, ...]:
        """Text tokens, one span a rank: where the image's shares are the smaller ones, the text's are the larger."""
        sizes = [len(span) for span in reversed(even_shares(self.text, self.ranks))]
        edges = [sum(sizes[:rank]) for rank in range(self.ranks + 1)]
        return tuple(Span(*edge) for edge in zip(edges, edges[1:], strict=False))

    @cached_property
    def tokens(self) -> tuple[int, ...]:
        """All tokens of each rank."""
        return tuple(len(text) + len(image) for text, image in zip(self.of_text, self.of_image, strict=True))

    @property
    def busiest(self) -> float:
        """The largest share of the tokens that a rank holds."""
        return max(self.tokens) / sum(self.tokens)

    @property
    def largest(self) -> float:
        """The same, always."""
        return self.busiest


class HeadsApart:
    """An attention that is called with a rank's tokens of all heads and computes all tokens of a rank's heads."""

    def __init__(self, attention: Attention, shares: TokenShares, ranks: Ranks) -> None:
        self.attention, self.shares, self.ranks = attention, shares, ranks

    def __call__(self, q: Tensor, k: Tensor, v: Tensor, heads: int, **options: Any) -> Tensor:
        """q, k, v [B, heads, own tokens, d] -> [B, own tokens, heads·d]; options as of the attention itself."""
        own = heads // self.ranks.size
        seen = self.attention(*self._all_tokens(q, k, v, own), own, **options)
        return self._all_heads(seen)

    def _all_tokens(self, q: Tensor, k: Tensor, v: Tensor, own: int) -> tuple[Tensor, Tensor, Tensor]:
        """[B, own heads, tokens, d] of all three."""
        parts = [
            torch.stack([each[:, rank * own : (rank + 1) * own] for each in (q, k, v)])
            for rank in range(self.ranks.size)
        ]
        shapes = [(3, q.shape[0], own, count, q.shape[3]) for count in self.shares.tokens]
        arrived = self.ranks.exchange(parts, shapes)
        del parts
        lengths = [len(span) for span in self.shares.of_text]
        text = [part[..., :length, :] for part, length in zip(arrived, lengths, strict=True)]
        image = [part[..., length:, :] for part, length in zip(arrived, lengths, strict=True)]
        whole = torch.cat([*text, *image], dim=3)
        return whole[0], whole[1], whole[2]

    def _all_heads(self, seen: Tensor) -> Tensor:
        """[B, tokens, own heads·d] -> [B, own tokens, heads·d]."""
        text, image = seen.split([self.shares.text, self.shares.image], dim=1)
        spans = zip(self.shares.of_text, self.shares.of_image, strict=True)
        parts = [torch.cat([text[:, here.slice], image[:, there.slice]], dim=1) for here, there in spans]
        shape = (seen.shape[0], self.shares.tokens[self.ranks.rank], seen.shape[2])
        return torch.cat(self.ranks.exchange(parts, [shape] * self.ranks.size), dim=-1)


@dataclass(frozen=True)
class SharedTokens:
    """What one rank's blocks are told in a call; ``rows`` are those of the batch this rank computes."""

    shares: TokenShares
    ranks: Ranks
    rows: Span

    def __call__(
        self, text: Tensor, modulations: Modulations, context: BlockContext
    ) -> tuple[Tensor, Modulations, BlockContext]:
        """Own text tokens, modulations of own rows, and the context for both (``enter`` of :mod:`..mmdit.network`)."""
        rotary, whole = context.rotary, len(self.rows) == text.shape[0]
        if not whole:
            modulations = modulations.rows(range(self.rows.start, self.rows.stop))
            rotary = _rotary_of_rows(rotary, self.rows)
        if self.ranks.size == 1:
            return text[self.rows.slice], modulations, replace(context, rotary=rotary)
        here, there = self.shares.of_text[self.ranks.rank], self.shares.of_image[self.ranks.rank]
        image = Span(self.shares.text + there.start, self.shares.text + there.stop)
        context = replace(
            context,
            rotary=_joined(part(rotary, *_ends(here)), part(rotary, *_ends(image))),
            attention=HeadsApart(context.attention, self.shares, self.ranks),
        )
        return text[self.rows.slice, here.slice].contiguous(), modulations, context


def _ends(span: Span) -> tuple[int, int]:
    return span.start, span.stop


def _joined(*rotaries: AnyRotary) -> AnyRotary:
    first: AnyRotary = rotaries[0]
    tables: list[Sequence[Tensor]] = [[each.cos for each in rotaries], [each.sin for each in rotaries]]
    cos, sin = (torch.cat(list(table), dim=-3) for table in tables)
    return replace(first, cos=cos, sin=sin)


def _rotary_of_rows(rotary: AnyRotary, rows: Span) -> AnyRotary:
    """Of tables [B, L, 1, d/2]; tables without a batch serve every row."""
    if rotary.cos.ndim < 4 or rotary.cos.shape[0] == 1:
        return rotary
    return replace(rotary, cos=rotary.cos[rows.slice], sin=rotary.sin[rows.slice])
