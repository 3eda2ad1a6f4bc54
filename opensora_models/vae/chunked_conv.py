"""Convolution of tensors with more elements than 32-bit kernels can index, and Open-Sora 2.0's padding helpers.

A convolution is a sum over input channels and independent over output channels, so both can be cut. Source:
opensora/models/vae/tensor_parallel.py's and utils.py's channel-chunk helpers of release 2.0.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CONVOLUTION_LIMIT = 2**31  # elements one convolution call may see
PADDING_LIMIT = 2**30  # elements one padding or interpolation call may see


def divisible_chunks(wanted: int, channels: int) -> int:
    """Number of chunks of floor(channels / wanted) channels that cover ``channels``: at least ``wanted``.

    Raises ZeroDivisionError when more chunks than channels are wanted, as the original does.
    """
    return math.ceil(channels / (channels // wanted))


def chunks_for(elements: int, channels: int, limit: int) -> int:
    """Channel chunks a tensor of ``elements`` elements needs for each to stay within ``limit``."""
    return divisible_chunks(math.ceil(elements / limit), channels)


def chunked_conv3d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    stride: tuple[int, int, int] = (1, 1, 1),
    padding: tuple[int, int, int] = (0, 0, 0),
    dilation: tuple[int, int, int] = (1, 1, 1),
    limit: int = CONVOLUTION_LIMIT,
) -> Tensor:
    """``F.conv3d`` in channel chunks: x [B, C, T, H, W]. Partial sums are taken in float32.

    The plain call is used where neither the input nor the output needs more than one chunk.
    """
    sizes = [
        (size + 2 * pad - spread * (kernel - 1) - 1) // step + 1
        for size, pad, kernel, step, spread in zip(
            x.shape[2:], padding, weight.shape[2:], stride, dilation, strict=True
        )
    ]
    out_elements = x.shape[0] * weight.shape[0] * math.prod(sizes)
    in_chunks = chunks_for(x.numel(), x.shape[1], limit)
    out_chunks = chunks_for(out_elements, weight.shape[0], limit)
    if in_chunks == 1 and out_chunks == 1:
        return F.conv3d(x, weight, bias, stride, padding, dilation)
    places = (stride, padding, dilation)
    parts = [_summed_over_inputs(x, part, places, in_chunks) for part in weight.split(_size(weight, 0, out_chunks))]
    out = torch.cat(parts, dim=1)
    return out if bias is None else out + bias[:, None, None, None]


def _summed_over_inputs(x: Tensor, weight: Tensor, places: tuple[Any, Any, Any], chunks: int) -> Tensor:
    size = _size(x, 1, chunks)
    total: Tensor | None = None
    for part, kernel in zip(x.split(size, dim=1), weight.split(size, dim=1), strict=True):
        partial = F.conv3d(part, kernel, None, *places).float()
        total = partial if total is None else total.add_(partial)
    assert total is not None
    return total.to(x.dtype)


def _size(tensor: Tensor, axis: int, chunks: int) -> int:
    """Channels per chunk such that ``chunks`` of them cover the axis."""
    return math.ceil(tensor.shape[axis] / chunks)


class ChannelChunkConv3d(nn.Conv3d):
    """3-D convolution that cuts its channels when one clip of the input has ``limit`` elements or more.

    As upstream, the output alone never triggers the cut; the number of chunks comes from the whole batch.
    """

    def __init__(self, *args: Any, limit: int = CONVOLUTION_LIMIT, **settings: Any) -> None:
        super().__init__(*args, **settings)
        self.limit = limit

    def forward(self, x: Tensor) -> Tensor:
        if x.numel() // x.shape[0] < self.limit:
            return super().forward(x)
        return chunked_conv3d(
            x, self.weight, self.bias, stride=self.stride, padding=self.padding, dilation=self.dilation,
            limit=self.limit,
        )  # fmt: skip


def by_channels(call: Callable[[Tensor], Tensor], x: Tensor, elements: int, limit: int = PADDING_LIMIT) -> Tensor:
    """``call`` on channel chunks of x [B, C, …] when ``elements`` exceeds ``limit``; the same values as at once."""
    if elements <= limit:
        return call(x)
    count = min(math.ceil(elements / limit) + 1, x.shape[1])
    return torch.cat([call(part) for part in x.chunk(count, dim=1)], dim=1)


def pad_clip(x: Tensor, width: int, height: int, time: int, *, limit: int = PADDING_LIMIT) -> Tensor:
    """Pad [B, C, T, H, W]: ``width`` and ``height`` zero pixels on each side, ``time`` repeated frames at each end."""

    def pad(part: Tensor) -> Tensor:
        part = F.pad(part, (width, width, height, height))
        if not time:
            return part
        first, last = part[:, :, :1], part[:, :, -1:]
        return torch.cat([*[first] * time, part, *[last] * time], dim=2)

    return by_channels(pad, x, x.numel(), limit)


def interpolate_nearest(x: Tensor, factor: float | tuple[float, ...], *, limit: int = PADDING_LIMIT) -> Tensor:
    """Nearest-neighbour resampling of [B, C, …], by channels where the result is very large."""
    factors = factor if isinstance(factor, tuple) else (factor,) * (x.ndim - 2)
    elements = int(x.numel() * math.prod(factors))
    return by_channels(lambda part: F.interpolate(part, scale_factor=factor, mode="nearest"), x, elements, limit)


def average_pool_1d(x: Tensor, kernel: int, stride: int | None = None, *, limit: int = PADDING_LIMIT) -> Tensor:
    """1-D average pooling of [N, C, L], in parts of the first axis where it is very large."""
    if x.numel() <= limit:
        return F.avg_pool1d(x, kernel, stride)
    count = min(math.ceil(x.numel() / limit) + 1, x.shape[0])
    return torch.cat([F.avg_pool1d(part, kernel, stride) for part in x.chunk(count)])


class PadConv3d(nn.Module):
    """3×3×3 convolution after :func:`pad_clip`, so that sizes stay and time is mirrored, not causal. Key ``conv``."""

    def __init__(self, channels: int, out_channels: int, kernel: int = 3, *, operations: Any = nn) -> None:
        super().__init__()
        if kernel not in (1, 3):
            raise ValueError(f"kernel {kernel} is not supported; use 1 or 3.")
        self.halo = kernel // 2
        self.conv = operations.Conv3d(channels, out_channels, kernel)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(pad_clip(x, self.halo, self.halo, self.halo) if self.halo else x)
