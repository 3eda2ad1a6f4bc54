"""Residual, attention and up-sampling blocks, each in a plain form and in one that works strip by strip."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .doubling import Doubling, nearest
from .layers import CausalConv3d, activated, attention, doubling_convolution, doubling_strip, same_size_strip
from .strips import Rows, Strips


def group_norm(channels: int, groups: int, eps: float, operations: Any) -> nn.Module:
    """Group norm over (T,) H, W with affine weights."""
    return operations.GroupNorm(groups, channels, eps=eps)


class ResidualBlock(nn.Module):
    """x + conv2(SiLU(norm2(conv1(SiLU(norm1 x))))), with a 1-wide convolution on x where the widths differ.

    ``convolution(channels, out_channels, kernel)`` makes the layers; ``shortcut`` names the widening one in the
    checkpoint. Source: ResnetBlock2D (v1.2 image stage), ResBlock (v1.2 temporal), Resnet3DBlock (v1.3).
    """

    def __init__(
        self, channels: int, out_channels: int, *, convolution: Callable[[int, int, int], nn.Module],
        groups: int, eps: float, shortcut: str, operations: Any = nn,
    ) -> None:  # fmt: skip
        super().__init__()
        self.groups = groups
        self.out_channels = out_channels
        self.norm1 = group_norm(channels, groups, eps, operations)
        self.conv1 = convolution(channels, out_channels, 3)
        self.norm2 = group_norm(out_channels, groups, eps, operations)
        self.conv2 = convolution(out_channels, out_channels, 3)
        self._shortcut = shortcut if channels != out_channels else None
        if self._shortcut:
            self.add_module(self._shortcut, convolution(channels, out_channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(F.silu(self.norm2(h)))
        return h + self._skip(x)

    def strips(self, x: Rows, plan: Strips) -> Rows:
        """The block by strips; the result may take the place of x."""
        height = x.height
        shape = (x.shape[0], self.out_channels, *x.shape[2:])
        first_half = x.computed(shape, _strip_of(self.conv1, activated(self.norm1, x), height))
        # Where x is not stored, h takes the one place that the result will have anyway.
        h = plan.store(first_half, self.groups) if x.tensor is None else plan.keep(first_half, self.groups)
        second_half = _strip_of(self.conv2, activated(self.norm2, h), height)

        def read(first: int, last: int) -> Tensor:
            return second_half(first, last).add_(self._skip(x.read(first, last)))

        # Nothing needs the old values once a strip is behind the rows still to be read.
        into = next((old for old in (x, h) if old.tensor is not None and old.shape == shape), None)
        return plan.store(x.computed(shape, read), self.groups, into=into)

    @property
    def shortcut(self) -> nn.Module | None:
        """The convolution on x, where the widths differ."""
        return getattr(self, self._shortcut) if self._shortcut else None

    def _skip(self, x: Tensor) -> Tensor:
        return x if self.shortcut is None else self.shortcut(x)


def _strip_of(layer: nn.Module, read: Callable[[int, int], Tensor], height: int) -> Callable[[int, int], Tensor]:
    """Row reader of a size-keeping convolution over another reader."""
    if isinstance(layer, CausalConv3d):
        return lambda first, last: layer.strip(read, height, first, last)
    halo = layer.kernel_size[0] // 2
    return lambda first, last: same_size_strip(layer, halo, read, height, first, last)


class MidAttention(nn.Module):
    """Self-attention over all positions of a frame (v1.2) or, causally in raster order, of a chunk (v1.3).

    ``names`` are the checkpoint's names of norm, q, k, v and output layer; the layers are made by ``projection``.
    """

    def __init__(
        self, channels: int, *, names: tuple[str, str, str, str, str], projection: Callable[[int], nn.Module],
        groups: int, eps: float, causal: bool, operations: Any = nn,
    ) -> None:  # fmt: skip
        super().__init__()
        self.causal = causal
        self._names = names
        norm, *layers, out = names
        self.add_module(norm, group_norm(channels, groups, eps, operations))
        for name in layers:
            self.add_module(name, projection(channels))
        self.add_module(out, projection(channels))

    @property
    def output(self) -> nn.Module:
        """The layer whose result is added to x."""
        return getattr(self, self._names[-1])

    def forward(self, x: Tensor) -> Tensor:
        norm, query, key, value, out = (getattr(self, name) for name in self._names)
        h = norm(x)
        q, k, v = (self._project(layer, h) for layer in (query, key, value))
        return x + self._project_back(out, self.attend(q, k, v, x), x)

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        """Attention [N, positions, C] of the positions of x."""
        return attention(q, k, v, causal=self.causal)

    def _project(self, layer: nn.Module, h: Tensor) -> Tensor:
        """[N, C, ...] to [N, positions, C]; linear layers act on the last axis, convolutions on the second."""
        if isinstance(layer, (nn.Linear, nn.ModuleList)):
            return _linear(layer)(h.flatten(2).transpose(1, 2))
        return layer(h).flatten(2).transpose(1, 2)

    def _project_back(self, layer: nn.Module, y: Tensor, x: Tensor) -> Tensor:
        if isinstance(layer, (nn.Linear, nn.ModuleList)):
            return _linear(layer)(y).transpose(1, 2).reshape(x.shape)
        return layer(y.transpose(1, 2).reshape(x.shape))


def _linear(layer: nn.Module) -> nn.Module:
    return layer[0] if isinstance(layer, nn.ModuleList) else layer


# Time too, whose first three frames the decoder drops at its end.
_DOUBLED: tuple[Doubling, ...] = ("causal", "centred", "centred")


class Upsample3d(nn.Module):
    """v1.3's doubling in time, height and width.

    u = nearest ×2; r = SiLU(norm2(conv2(SiLU(norm1(conv1 u)))) + u); result u + r (u is added twice).
    Keys ``conv3d.conv1.conv``, ``conv3d.norm1``, … Source: Upsample3D of v1.3.
    """

    def __init__(self, channels: int, *, groups: int, eps: float = 1e-5, operations: Any = nn) -> None:
        super().__init__()
        self.groups = groups
        self.conv3d = nn.Module()
        self.conv3d.conv1 = nn.Module()
        self.conv3d.conv1.conv = doubling_convolution(operations.Conv3d, _DOUBLED)(channels, channels, 3)
        self.conv3d.norm1 = group_norm(channels, groups, eps, operations)
        self.conv3d.conv2 = CausalConv3d(channels, channels, operations=operations)
        self.conv3d.norm2 = group_norm(channels, groups, eps, operations)

    def forward(self, x: Tensor) -> Tensor:
        inner = self.conv3d
        h = inner.conv2(F.silu(inner.norm1(self.doubled(x, 1, 1))))
        u = nearest(x, _DOUBLED)
        return u + F.silu(inner.norm2(h) + u)

    def strips(self, x: Rows, plan: Strips) -> Rows:
        """The same by strips; the middle activation is overwritten in place."""
        inner = self.conv3d
        batch, channels, *sizes = x.shape
        shape = (batch, channels, *(2 * size for size in sizes))
        low_height, height = x.height, 2 * x.height
        first = x.computed(shape, lambda a, b: doubling_strip(self.doubled, x.read, low_height, a, b))
        h = plan.keep(first, self.groups)
        second = h.computed(shape, _strip_of(inner.conv2, activated(inner.norm1, h), height))
        c = plan.store(second, self.groups, into=h if h.tensor is not None else None)
        normed = activated(inner.norm2, c, silu=False)

        def read(a: int, b: int) -> Tensor:
            low = a // 2
            u = nearest(x.read(low, (b + 1) // 2), _DOUBLED)[..., a - 2 * low : b - 2 * low, :]
            return F.silu(normed(a, b).add_(u), inplace=True).add_(u)

        return plan.store(c.computed(shape, read), self.groups, into=c)

    def doubled(self, x: Tensor, above: int, below: int) -> Tensor:
        """The doubling convolution of rows with so many rows of zeros above and below."""
        return self.conv3d.conv1.conv(F.pad(x, (1, 1, above, below, 1, 0)))
