"""A small T5 v1.1 encoder in plain PyTorch, under the key names of the released encoders (arXiv 1910.10683).

It exists so that text understanding can be trained together with the diffusion model; at run time ComfyUI's own T5
classes read the file.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .refused import Refused

BUCKETS = 32  # of relative positions: half for each direction, half of those exact
MAX_DISTANCE = 128
NORM_EPS = 1e-6
END_TOKEN = 1
PADDING_TOKEN = 0


@dataclass(frozen=True)
class TextEncoderConfig:
    """Sizes; the vocabulary is that of T5's tokenizer."""

    vocabulary: int = 32128
    width: int = 64
    inner: int = 128
    heads: int = 4
    head_width: int = 16
    layers: int = 2


class _Norm(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * x * torch.rsqrt(x.square().mean(-1, keepdim=True) + NORM_EPS)


class _SelfAttention(nn.Module):
    def __init__(self, config: TextEncoderConfig, has_bias: bool) -> None:
        super().__init__()
        inner = config.heads * config.head_width
        self.heads = config.heads
        for name in ("q", "k", "v"):
            self.add_module(name, nn.Linear(config.width, inner, bias=False))
        self.o = nn.Linear(inner, config.width, bias=False)
        if has_bias:
            self.relative_attention_bias = nn.Embedding(BUCKETS, config.heads)

    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [B, L, C]; ``bias`` [B, heads, L, L] is added to the logits, which T5 does not scale."""
        q, k, v = (layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, scale=1.0)
        return self.o(out.transpose(1, 2).flatten(2))


class _FeedForward(nn.Module):
    def __init__(self, config: TextEncoderConfig) -> None:
        super().__init__()
        self.wi_0 = nn.Linear(config.width, config.inner, bias=False)
        self.wi_1 = nn.Linear(config.width, config.inner, bias=False)
        self.wo = nn.Linear(config.inner, config.width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.wo(F.gelu(self.wi_0(x), approximate="tanh") * self.wi_1(x))


def _block(config: TextEncoderConfig, first: bool) -> nn.Module:
    block = nn.Module()
    attention, feed_forward = nn.Module(), nn.Module()
    attention.SelfAttention = _SelfAttention(config, has_bias=first)
    attention.layer_norm = _Norm(config.width)
    feed_forward.DenseReluDense = _FeedForward(config)
    feed_forward.layer_norm = _Norm(config.width)
    block.layer = nn.ModuleList([attention, feed_forward])
    return block


class TextEncoder(nn.Module):
    """Token ids [B, L] to states [B, L, width]."""

    def __init__(self, config: TextEncoderConfig | None = None) -> None:
        super().__init__()
        self.config = config = config or TextEncoderConfig()
        self.shared = nn.Embedding(config.vocabulary, config.width)
        self.encoder = nn.Module()
        self.encoder.block = nn.ModuleList(_block(config, index == 0) for index in range(config.layers))
        self.encoder.final_layer_norm = _Norm(config.width)
        self._initialise()

    def _initialise(self) -> None:
        """T5's own start (Mesh TensorFlow): embeddings N(0, 1), projections by their input widths."""
        config = self.config
        nn.init.normal_(self.shared.weight, 0.0, 1.0)
        deviations = {
            "q": (config.width * config.head_width) ** -0.5, "k": config.width**-0.5, "v": config.width**-0.5,
            "o": (config.heads * config.head_width) ** -0.5, "wi_0": config.width**-0.5, "wi_1": config.width**-0.5,
            "wo": config.inner**-0.5, "relative_attention_bias": config.width**-0.5,
        }  # fmt: skip
        for name, module in self.named_modules():
            if (deviation := deviations.get(name.rsplit(".", 1)[-1])) is not None:
                nn.init.normal_(module.weight, 0.0, deviation)

    def forward(self, ids: Tensor, kept: Tensor | None = None) -> Tensor:
        """``kept`` [B, L] bool marks real tokens; padding is never attended to. None: every token is real."""
        x = self.shared(ids)
        first = self.encoder.block[0].layer[0].SelfAttention
        buckets = relative_buckets(ids.shape[1]).to(ids.device)
        bias = first.relative_attention_bias(buckets).permute(2, 0, 1)[None]
        if kept is not None:
            bias = bias.masked_fill(~kept[:, None, None, :], torch.finfo(bias.dtype).min)
        for block in self.encoder.block:
            attention, feed_forward = block.layer
            x = x + attention.SelfAttention(attention.layer_norm(x), bias)
            x = x + feed_forward.DenseReluDense(feed_forward.layer_norm(x))
        return self.encoder.final_layer_norm(x)


def relative_buckets(length: int) -> Tensor:
    """Bucket number [L, L] of key position minus query position: exact up to 7, then logarithmic to MAX_DISTANCE."""
    positions = torch.arange(length)
    relative = positions[None, :] - positions[:, None]
    distance = relative.abs()
    half, exact = BUCKETS // 2, BUCKETS // 4
    growth = torch.log(distance.clamp_min(1) / exact) / math.log(MAX_DISTANCE / exact)
    far = (exact + (growth * (half - exact)).long()).clamp_max(half - 1)
    return torch.where(relative > 0, half, 0) + torch.where(distance < exact, distance, far)


class Tokenizer:
    """T5's tokenizer from a folder holding ``tokenizer.json``, as ComfyUI brings it along."""

    def __init__(self, folder: Path) -> None:
        import tokenizers  # comes with ComfyUI; imported here so that nothing else in this module needs it

        path = folder / "tokenizer.json"
        if not path.is_file():
            raise Refused(f"There is no tokenizer.json in '{folder}'; give ComfyUI's t5_tokenizer folder.")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:  # tokenizers raises no narrower one
            raise Refused(f"'{path}' is no tokenizer ({error}); give ComfyUI's t5_tokenizer folder.") from None
        self._known: dict[str, list[int]] = {}

    def ids(self, text: str) -> list[int]:
        """Ids of ``text`` with the end token."""
        if text not in self._known:
            ids = [token for token in self._tokenizer.encode(text).ids if token not in (PADDING_TOKEN, END_TOKEN)]
            self._known[text] = [*ids, END_TOKEN]
        return self._known[text]

    def padded(self, texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        """Ids [B, length] and which of them are real [B, length] bool; longer texts lose their last words."""
        rows = [[*row[: length - 1], END_TOKEN] if len(row) > length else row for row in map(self.ids, texts)]
        ids = torch.tensor([row + [PADDING_TOKEN] * (length - len(row)) for row in rows])
        lengths = torch.tensor([len(row) for row in rows])
        return ids, torch.arange(length)[None] < lengths[:, None]
