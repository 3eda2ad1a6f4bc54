"""Attention whose weights are products of positive features, and the gated layer beside it, as the DC-AE has them.

With weights q·k instead of a softmax, all keys and values enter through two sums: k vᵀ and k over every position. They
are small, so the positions can be gone through strip by strip, once for the sums and once for the result.
Source: LiteMLA and GLUMBConv (opensora/models/dc_ae/models/nn/ops.py of release 2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .edges import CentredConv3d, centred_convolution, centred_strip
from .layers import Read, affine
from .strips import Recent, Rows, Strips

NORM_EPSILON = 1e-5
# Keeps the quotient finite where a query meets no key.
SUM_EPSILON = 1e-15


class NormedConv3d(CentredConv3d):
    """A centred convolution without bias, then the root-mean-square norm over channels. Keys ``conv``, ``norm``."""

    def __init__(self, channels: int, out_channels: int, kernel: int, *, operations: Any = nn) -> None:
        super().__init__(channels, out_channels, kernel, bias=False, operations=operations)
        self.norm = channel_norm(out_channels, operations)

    def forward(self, x: Tensor) -> Tensor:
        return channel_normed(self.norm, super().forward(x), in_place=True)

    def strip(self, read: Read, height: int, first: int, last: int) -> Tensor:
        return channel_normed(self.norm, super().strip(read, height, first, last), in_place=True)


def channel_norm(channels: int, operations: Any) -> nn.Module:
    """Weight and bias of a root-mean-square norm over channels, for :func:`channel_normed`.

    A group norm only by name: it is the layer of ``operations`` that lends its weights to arithmetic of our own.
    """
    return operations.GroupNorm(1, channels, eps=NORM_EPSILON)


def channel_normed(norm: nn.Module, x: Tensor, *, in_place: bool = False) -> Tensor:
    """x / sqrt(mean of x² over channels + eps) · weight + bias of [B, C, T, H, W], computed in float32."""
    weight, bias = (values.view(-1, 1, 1) for values in affine(norm, x))
    if x.requires_grad:
        mean = x.float().square().mean(dim=1, keepdim=True)
        unit = x.float() * torch.rsqrt(mean + norm.eps)
        return (unit * weight.unsqueeze(1) + bias.unsqueeze(1)).to(x.dtype)
    out = x if in_place else torch.empty_like(x)
    for frame in range(x.shape[2]):  # so that there is one small float32 copy
        values = x[:, :, frame].to(torch.float32, copy=True)
        mean = torch.linalg.vector_norm(values, dim=1, keepdim=True).square_().div_(x.shape[1])
        out[:, :, frame] = values.mul_(mean.add_(norm.eps).rsqrt_()).mul_(weight).add_(bias)
    return out


def activated_in_place(x: Tensor) -> Tensor:
    """SiLU of a tensor nobody else needs."""
    return F.silu(x, inplace=not x.requires_grad)


class LinearAttention(nn.Module):
    """ReLU attention over all positions: heads of the projections, and as many of a 5×5×5 mixture of them.

    ``mixed``: channels of q, k and v together; ``head``: channels of each in one head. Keys ``qkv``, ``aggreg.0``,
    ``proj``.
    """

    def __init__(self, channels: int, mixed: int, head: int, window: int, *, operations: Any = nn) -> None:
        super().__init__()
        self.head = head
        self.qkv = CentredConv3d(channels, mixed, 1, bias=False, operations=operations)
        per_channel = centred_convolution(mixed, mixed, window, groups=mixed, bias=False, operations=operations)
        per_head = centred_convolution(mixed, mixed, 1, groups=mixed // head, bias=False, operations=operations)
        self.aggreg = nn.ModuleList([nn.ModuleList([per_channel, per_head])])
        self.proj = NormedConv3d(2 * mixed // 3, channels, 1, operations=operations)

    def forward(self, x: Tensor) -> Tensor:
        parts = self._features(lambda first, last: x[..., first:last, :], x.shape[-2], 0, x.shape[-2])
        return self._answer(parts, [self._sums(part) for part in parts])

    def strips(self, x: Rows, plan: Strips) -> Rows:
        """x + attention(x) by strips; the result may take the place of x."""
        wide = (x.shape[0], 2 * self.qkv.conv.out_channels, *x.shape[2:])
        features = x.computed(wide, lambda a, b: torch.cat(self._features(x.read, x.height, a, b), dim=1))
        sums: list[Tensor] | None = None
        for first, last in plan.bounds(features):
            more = [self._sums(part) for part in self._features(x.read, x.height, first, last)]
            sums = more if sums is None else [old.add_(new) for old, new in zip(sums, more, strict=True)]
        assert sums is not None
        known = sums

        def read(first: int, last: int) -> Tensor:
            answer = self._answer(self._features(x.read, x.height, first, last), known)
            return answer.add_(x.read(first, last))

        return plan.store(features.computed(x.shape, read), None, into=x)

    def _features(self, read: Read, height: int, first: int, last: int) -> tuple[Tensor, Tensor]:
        """q, k and v of some rows [B, mixed, T, rows, W], and their mixture with what lies around them."""
        per_channel, per_head = self.aggreg[0]
        half = per_channel.kernel_size[1] // 2
        low, high = max(0, first - half), min(height, last + half)
        qkv = self.qkv.conv(read(low, high))
        mixture = centred_strip(per_channel, lambda a, b: qkv[..., a - low : b - low, :], height, first, last)
        return qkv[..., first - low : last - low, :], per_head(mixture)

    def _heads(self, part: Tensor) -> Tensor:
        """[B, heads, 3 · head, positions] in float32: consecutive channels are q, k and v of a head."""
        return part.reshape(part.shape[0], -1, 3 * self.head, part[0, 0].numel()).float()

    def _sums(self, part: Tensor) -> Tensor:
        """Σ v kᵀ and, in the last row, Σ k over these positions: float32 [B, heads, head + 1, head]."""
        _, k, v = self._heads(part).split(self.head, dim=2)
        return F.pad(v, (0, 0, 0, 1), value=1.0) @ F.relu(k).transpose(2, 3)

    def _answer(self, parts: Sequence[Tensor], sums: Sequence[Tensor]) -> Tensor:
        """The projected result for these positions."""
        answers = []
        for part, total in zip(parts, sums, strict=True):
            y = total @ F.relu(self._heads(part)[:, :, : self.head])
            y = y[:, :, : self.head] / (y[:, :, self.head :] + SUM_EPSILON)
            answers.append(y.flatten(1, 2).unflatten(2, part.shape[2:]).to(part.dtype))
        return self.proj(torch.cat(answers, dim=1))


class GatedLayer(nn.Module):
    """Widening, a 3×3×3 convolution per channel, one half gating the other. Keys ``inverted_conv`` and so on."""

    def __init__(self, channels: int, hidden: int, *, operations: Any = nn) -> None:
        super().__init__()
        self.inverted_conv = CentredConv3d(channels, 2 * hidden, 1, operations=operations)
        self.depth_conv = CentredConv3d(2 * hidden, 2 * hidden, groups=2 * hidden, operations=operations)
        self.point_conv = NormedConv3d(hidden, channels, 1, operations=operations)

    def forward(self, x: Tensor) -> Tensor:
        return self._gated(self.depth_conv(activated_in_place(self.inverted_conv(x))))

    def strips(self, x: Rows, plan: Strips) -> Rows:
        """x + the layer by strips; the result may take the place of x."""
        wide = (x.shape[0], self.inverted_conv.conv.out_channels, *x.shape[2:])
        inner = x.computed(wide, lambda a, b: activated_in_place(self.inverted_conv(x.read(a, b))))
        recent = Recent(inner)

        def read(first: int, last: int) -> Tensor:
            return self._gated(self.depth_conv.strip(recent.read, x.height, first, last)).add_(x.read(first, last))

        return plan.store(inner.computed(x.shape, read), None, into=x)

    def _gated(self, y: Tensor) -> Tensor:
        values, gate = y.chunk(2, dim=1)
        return self.point_conv(values * F.silu(gate))
