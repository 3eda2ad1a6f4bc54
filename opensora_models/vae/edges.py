"""What convolutions see outside the clip: the border again, causal in time (Hunyuan), or zeros all around (DC-AE)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from .doubling import Doubling
from .layers import CausalConv3d, Read, convolution3d, doubling_convolution, doubling_strip, window, zeros_around
from .strips import memory_format

Factors = tuple[int, int, int]
"""Steps in T, H and W."""


def border_around(x: Tensor, front: int, above: int, below: int, side: int) -> Tensor:
    """[B, C, T, H, W] with the first frame, the outer rows and the outer columns repeated outwards."""
    batch, channels, frames, height, width = x.shape
    shape = (batch, channels, front + frames, above + height + below, width + 2 * side)
    padded = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    later = padded[:, :, front:]
    later[..., above : above + height, side : side + width] = x
    if side:
        later[..., above : above + height, :side] = x[..., :1]
        later[..., above : above + height, side + width :] = x[..., -1:]
    if above:
        later[..., :above, :] = later[..., above : above + 1, :]
    if below:
        later[..., above + height :, :] = later[..., above + height - 1 : above + height, :]
    if front:
        padded[:, :, :front] = padded[:, :, front : front + 1]
    return padded


class BorderConv3d(CausalConv3d):
    """3-D convolution that sees only earlier frames; outside the clip it sees the nearest position.

    Key ``conv``. Source: CausalConv3d of 2.0 (opensora/models/hunyuan_vae/unet_causal_3d_blocks.py).
    """

    zero_columns = False

    def surrounded(self, x: Tensor, above: int, below: int) -> Tensor:
        return border_around(x, self.front, above, below, self.halo) if self.front else x

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """[N, C, T, H, W] after the convolution; partial steps count as whole ones."""
        sizes = (-(-size // step) for size, step in zip(shape[-3:], self.conv.stride, strict=True))
        return (shape[0], self.conv.out_channels, *sizes)

    def strip(self, read: Read, height: int, first: int, last: int) -> Tensor:
        step = self.conv.stride[1]
        low, high = step * first - self.halo, step * (last - 1) + 1 + self.halo
        return self.conv(self.surrounded(*window(read, height, low, high)))


class BorderDownsample(nn.Module):
    """Convolution that takes every second position of the axes with factor 2. Key ``conv.conv``."""

    def __init__(self, channels: int, factors: Factors, *, operations: Any = nn) -> None:
        super().__init__()
        time, space, _ = factors
        self.conv = BorderConv3d(channels, channels, time_stride=time, space_stride=space, operations=operations)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """[N, C, T, H, W] after the convolution."""
        return self.conv.out_shape(shape)

    def strip(self, read: Read, height: int, first: int, last: int) -> Tensor:
        return self.conv.strip(read, height, first, last)


class BorderUpsample(nn.Module):
    """Nearest-neighbour enlargement by ``factors`` of T, H and W and a causal 3×3×3 convolution, in one go.

    The first frame is never doubled. Key ``conv.conv``. Source: UpsampleCausal3D of the Hunyuan autoencoder.
    """

    def __init__(self, channels: int, factors: Factors, *, operations: Any = nn) -> None:
        super().__init__()
        self.factors = factors
        time: Doubling = "first" if factors[0] == 2 else "same"
        self.axes: tuple[Doubling, ...] = (time, *("centred" if factor == 2 else "same" for factor in factors[1:]))
        self.conv = nn.Module()
        self.conv.conv = doubling_convolution(operations.Conv3d, self.axes)(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.doubled(x, 1, 1)

    def doubled(self, x: Tensor, above: int, below: int) -> Tensor:
        """The result for rows with so many repeated rows above and below."""
        return self.conv.conv(border_around(x, 1 if self.factors[0] == 2 else 2, above, below, 1))

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """[N, C, T, H, W] after the enlargement."""
        frames, height, width = shape[-3:]
        time, rows, columns = self.factors
        return (*shape[:2], time * (frames - 1) + 1, rows * height, columns * width)

    def strip(self, read: Read, height: int, first: int, last: int) -> Tensor:
        if self.factors[1] == 1:
            return self.doubled(*window(read, height, first - 1, last + 1))
        return doubling_strip(self.doubled, read, height, first, last)


class CentredConv3d(nn.Module):
    """3-D convolution that sees as many earlier as later frames and zeros outside the clip. Key ``conv``."""

    def __init__(
        self, channels: int, out_channels: int, kernel: int = 3, *, stride: Factors = (1, 1, 1), groups: int = 1,
        bias: bool = True, operations: Any = nn,
    ) -> None:  # fmt: skip
        super().__init__()
        self.conv = centred_convolution(
            channels, out_channels, kernel, stride=stride, groups=groups, bias=bias, operations=operations
        )

    def forward(self, x: Tensor) -> Tensor:
        return centred(self.conv, x)

    def strip(self, read: Read, height: int, first: int, last: int) -> Tensor:
        return centred_strip(self.conv, read, height, first, last)


def centred_convolution(
    channels: int, out_channels: int, kernel: int, *, stride: Factors = (1, 1, 1), groups: int = 1, bias: bool = True,
    operations: Any = nn,
) -> nn.Module:  # fmt: skip
    """The bare layer of :class:`CentredConv3d`; rows of zeros must be added before it is called."""
    half = kernel // 2
    return convolution3d(operations.Conv3d)(
        channels, out_channels, kernel, stride=stride, padding=(half, 0, half), groups=groups, bias=bias
    )


def centred(conv: nn.Module, x: Tensor) -> Tensor:
    """A bare centred convolution of a whole tensor."""
    half = conv.kernel_size[1] // 2
    return conv(zeros_around(x, 0, half, half))


def centred_strip(conv: nn.Module, read: Read, height: int, first: int, last: int) -> Tensor:
    """Rows of a bare centred convolution."""
    half, step = conv.kernel_size[1] // 2, conv.stride[1]
    return conv(zeros_around(*_shifted(window(read, height, step * first - half, step * (last - 1) + 1 + half))))


def _shifted(rows: tuple[Tensor, int, int]) -> tuple[Tensor, int, int, int]:
    x, above, below = rows
    return x, 0, above, below
