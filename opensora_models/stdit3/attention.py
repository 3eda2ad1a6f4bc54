"""Self attention over space, over time and inside windows, and cross attention to text.

Tokens have one layout everywhere, [B, T, S, C] (frames, positions of a frame). Spatial and temporal attention read
strided views of it; only windows are gathered, once before and once after. No mask is ever built.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..transformer.arithmetic import NORM_EPS
from ..transformer.positions import Rotary
from .conditions import BlockContext, PackedText
from .config import STDiT3Config
from .portions import in_portions
from .windows import gather, join

MOST_COPIED = 2**16
"""Most elements of a row that is copied to save an attention call; a twentieth of a training step at 10000 elements."""


class SelfAttention(nn.Module):
    """Projections and per-head norms; subclasses say which tokens see one another."""

    def __init__(self, config: STDiT3Config, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        width, place = config.hidden_size, {"dtype": dtype, "device": device}
        self.heads = config.num_heads
        self.written_out_length = config.written_out_length
        self.qkv = operations.Linear(width, 3 * width, **place)
        self.proj = operations.Linear(width, width, **place)
        self.q_norm, self.k_norm = (
            operations.RMSNorm(config.head_dim, eps=NORM_EPS, **place) if config.qk_norm else nn.Identity()
            for _ in range(2)
        )

    def heads_of(self, tokens: Tensor, rotary: Rotary | None, context: BlockContext) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values [..., heads, d] of projected tokens [..., 3·C], normalised and rotated."""
        q, k, v = tokens.unflatten(-1, (3, self.heads, -1)).unbind(-3)
        q, k = context.arithmetic.norm_rotary(q, k, self.q_norm, self.k_norm, rotary)
        return q, k, v

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, context: BlockContext, written_out: bool = False, **options: Any
    ) -> Tensor:
        """[N, L, heads, d] views -> [N, L, C]. ``written_out``: the original uses no attention kernel here."""
        attention = context.arithmetic.attention(context.attention, written_out)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return attention(q, k, v, self.heads, skip_reshape=True, transformer_options=context.options, **options)

    def written_out(self, sequences: int, length: int, context: BlockContext) -> bool:
        """Whether the original, with flash attention installed, still forms the logits of these sequences."""
        sequences = context.sequences or sequences
        return length <= (sequences if self.written_out_length is None else self.written_out_length)


class SpatialAttention(SelfAttention):
    """The tokens of a frame see one another."""

    def forward(self, x: Tensor, context: BlockContext) -> Tensor:
        """[B, T, S, C] -> [B, T, S, C]."""
        frames = x.flatten(0, 1)
        written_out = self.written_out(frames.shape[0], frames.shape[1], context)

        def work(part: Tensor) -> Tensor:
            q, k, v = self.heads_of(self.qkv(part), context.spatial_rotary, context)
            return self.proj(self.attend(q, k, v, context, written_out=written_out))

        return in_portions(work, frames, 3 * frames[0].numel()).view(x.shape)


class TemporalAttention(SelfAttention):
    """The tokens at one position of all frames see one another (Open-Sora 1.2, and 1.3 without a window)."""

    def forward(self, x: Tensor, context: BlockContext) -> Tensor:
        """[B, T, S, C] -> [B, T, S, C]."""
        written_out = self.written_out(x.shape[0] * x.shape[2], x.shape[1], context)

        def work(part: Tensor) -> Tensor:
            return self.proj(self._over_time(self.qkv(part), context, written_out))

        return in_portions(work, x, 3 * x[:, :, 0].numel(), dim=2)

    def _over_time(self, projected: Tensor, context: BlockContext, written_out: bool) -> Tensor:
        """[B, T, S, 3·C] -> [B, T, S, C]."""
        q, k, v = self.heads_of(projected, context.temporal_rotary, context)
        if q.shape[1] == 1:  # the softmax over a single key is 1
            return v.flatten(-2)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        # An 8-bit kernel that pads 15 keys and 72 dimensions to its block size would cost more than it saves.
        attend = partial(self.attend, context=context, written_out=written_out, low_precision_attention=False)
        if v[0].numel() <= MOST_COPIED:
            together = attend(*(x.flatten(0, 1) for x in (q, k, v)))
            return together.unflatten(0, v.shape[:2]).transpose(1, 2)
        # Row by row, because only one row's [T, S] can be read as S sequences without copying.
        return torch.stack([attend(*qkv).transpose(0, 1) for qkv in zip(q, k, v, strict=True)])


class WindowedAttention(SelfAttention):
    """The tokens of one window of rows, columns and frames see one another (Open-Sora 1.3)."""

    def forward(self, x: Tensor, context: BlockContext) -> Tensor:
        """[B, T, S, C] -> [B, T, S, C]."""
        size = (x.shape[1], *context.grid)
        grid = x.unflatten(2, context.grid)
        done = [self._piece(gather(grid, piece), rotary, context) for piece, rotary in context.windows]
        return join(done, [piece for piece, _ in context.windows], size).flatten(2, 3)

    def _piece(self, windows: Tensor, rotary: Rotary, context: BlockContext) -> Tensor:
        """[windows, window tokens, C] -> the same."""

        def work(part: Tensor) -> Tensor:
            q, k, v = self.heads_of(self.qkv(part), rotary, context)
            return self.proj(self.attend(q, k, v, context))

        return in_portions(work, windows, 3 * windows[0].numel())


class CrossAttention(nn.Module):
    """Every token sees the text of its row; given frames see the null text instead."""

    def __init__(self, config: STDiT3Config, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        width, place = config.hidden_size, {"dtype": dtype, "device": device}
        self.heads = config.num_heads
        self.q_linear = operations.Linear(width, width, **place)
        self.kv_linear = operations.Linear(width, 2 * width, **place)
        self.proj = operations.Linear(width, width, **place)

    def forward(self, x: Tensor, context: BlockContext) -> Tensor:
        """[B, T, S, C] -> [B, T, S, C]."""
        if context.null_text is None or not context.given:
            return self._frames(x, context.text, context)
        texts = {False: context.text, True: context.null_text}
        runs = _runs(context.given, x.shape[1])
        return torch.cat([self._frames(x[:, start:stop], texts[given], context) for start, stop, given in runs], dim=1)

    def _frames(self, x: Tensor, text: PackedText, context: BlockContext) -> Tensor:
        """Frames that all see the same text of their row."""
        kv = self.kv_linear(text.tokens)

        def work(part: Tensor) -> Tensor:
            q = self.q_linear(part)
            return self.proj(self._attend(q.flatten(1, 2), kv, text.lengths, context).view(q.shape))

        return in_portions(work, x, 2 * x[:, 0].numel(), dim=1)

    def _attend(self, q: Tensor, kv: Tensor, lengths: tuple[int, ...], context: BlockContext) -> Tensor:
        """[B, N, C]. Rows whose texts are equally long go through one call, others one by one."""
        queries = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        if len(set(lengths)) == 1:
            return self._call(queries, kv.unflatten(0, (len(lengths), -1)), context)
        rows = zip(queries.split(1), kv.split(lengths), strict=True)
        return torch.cat([self._call(query, row[None], context) for query, row in rows])

    def _call(self, q: Tensor, kv: Tensor, context: BlockContext) -> Tensor:
        """q [B, heads, N, d] and text [B, L, 2·C] -> [B, N, C]."""
        k, v = kv.unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return context.attention(q, k, v, self.heads, skip_reshape=True, transformer_options=context.options)


def _runs(given: tuple[int, ...], frames: int) -> list[tuple[int, int, bool]]:
    """Frames 0 … ``frames`` - 1 as runs (start, stop, given) of frames that are all given or all not."""
    marks = [frame in given for frame in range(frames)]
    edges = [frame for frame in range(1, frames) if marks[frame] != marks[frame - 1]]
    starts, stops = [0, *edges], [*edges, frames]
    return [(start, stop, marks[start]) for start, stop in zip(starts, stops, strict=True)]
