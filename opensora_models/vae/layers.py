"""The layers both video autoencoders are made of: convolutions, resampling, attention.

Every layer has ``forward`` for a whole tensor (plain, differentiable) and ``strip`` for output rows first…last of a
taller input, given a function that reads input rows. Layers come from ``operations``, so that ComfyUI can keep
weights elsewhere or in another type; with ``torch.nn`` they run alone.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .doubling import Doubling, doubled_convolution
from .strips import Moments, Recent, Rows, memory_format, moments_of

Read = Callable[[int, int], Tensor]

# How an up-sampling doubles the axes of single frames.
FRAME: tuple[Doubling, ...] = ("centred", "centred")
# Rows of the causal mask computed at once: bounds the mask to this many times the number of tokens.
ATTENTION_QUERIES = 1024


def _frames_folded(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a 2-D layer to each frame of [B, C, T, H, W]; 4-D input passes through."""
    if x.ndim == 4:
        return call(x)
    batch, _, frames = x.shape[:3]
    y = call(x.transpose(1, 2).flatten(0, 1))
    return y.unflatten(0, (batch, frames)).transpose(1, 2)


class CausalConv3d(nn.Module):
    """3-D convolution that sees only earlier frames: zeros in front, one zero pixel around.

    ``front``: zero frames in front; by default ``kernel - 1`` (v1.2 uses one less for its strided layers).
    Key ``conv.weight``. Source: CausalConv3d of v1.2's and CausalConv3dPlainAR of v1.3's autoencoder.
    """

    zero_columns = True

    def __init__(
        self, channels: int, out_channels: int, kernel: int = 3, *, front: int | None = None, time_stride: int = 1,
        space_stride: int = 1, bias: bool = True, operations: Any = nn,
    ) -> None:  # fmt: skip
        super().__init__()
        self.front = kernel - 1 if front is None else front
        self.halo = kernel // 2
        # Rows are padded with the frames in front, in one copy; a strip then needs no more than its rows.
        self.conv = convolution3d(operations.Conv3d)(
            channels, out_channels, kernel, stride=(time_stride, space_stride, space_stride),
            padding=(0, 0, self.halo if self.zero_columns else 0), bias=bias,
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.surrounded(x, self.halo, self.halo))

    def strip(self, read: Read, height: int, first: int, last: int) -> Tensor:
        # In one expression, so that the rows are gone once their padded copy exists.
        return self.conv(self.surrounded(*window(read, height, first - self.halo, last + self.halo)))

    def surrounded(self, x: Tensor, above: int, below: int) -> Tensor:
        """x with what lies in front of it and with so many rows above and below."""
        return zeros_around(x, self.front, above, below)


@cache
def convolution3d(base: type[nn.Module]) -> type[nn.Module]:
    """``base`` with oneDNN on the CPU: for few channels × frames × rows torch takes a kernel 3 to 10 times slower."""

    class Convolution3d(base):  # type: ignore[misc, valid-type]
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any, **more: Any) -> Tensor:
            if x.device.type == "cpu" and x.dtype == torch.float32 and torch.backends.mkldnn.is_available():
                return torch.mkldnn_convolution(x, weight, bias, self.padding, self.stride, (1, 1, 1), self.groups)
            return super()._conv_forward(x, weight, bias, *rest, **more)

    return Convolution3d


def window(read: Read, height: int, first: int, last: int) -> tuple[Tensor, int, int]:
    """Rows first…last of a layer of ``height`` rows: those it has, and how many lie above and below it."""
    return read(max(0, first), min(last, height)), max(0, -first), max(0, last - height)


def zeros_around(x: Tensor, front: int, above: int, below: int) -> Tensor:
    """[B, C, T, H, W] with frames of zeros in front and rows of zeros above and below."""
    if not (front or above or below):
        return x
    batch, channels, frames, height, width = x.shape
    shape = (batch, channels, front + frames, above + height + below, width)
    padded = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=memory_format(x))
    padded[:, :, :front] = 0
    padded[:, :, front:, :above] = 0
    padded[:, :, front:, above + height :] = 0
    padded[:, :, front:, above : above + height] = x
    return padded


def same_size_strip(
    layer: Callable[[Tensor], Tensor], halo: int, read: Read, height: int, first: int, last: int
) -> Tensor:
    """Rows of a stride-1 convolution that pads with zeros: read a halo, and cut what the padding spoiled."""
    low, high = max(0, first - halo), min(height, last + halo)
    y = layer(read(low, high))
    return y[..., first - low : y.shape[-2] - (high - last), :]


class Downsample2d(nn.Module):
    """Halves each frame: a zero row below and a zero column right, 3×3 with stride 2 (odd sizes are floored)."""

    def __init__(self, channels: int, *, operations: Any = nn) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return _frames_folded(lambda frames: self.conv(F.pad(frames, (0, 1, 0, 1))), x)

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-2], shape[-2] // 2, shape[-1] // 2)

    def strip(self, read: Read, height: int, first: int, last: int) -> Tensor:
        x, _, below = window(read, height, 2 * first, 2 * last + 1)
        return _frames_folded(lambda frames: self.conv(F.pad(frames, (0, 1, 0, below))), x)


class Downsample3d(nn.Module):
    """Halves frames, height and width: causal 3×3×3 with stride 2 in all axes (odd sizes round up)."""

    def __init__(self, channels: int, *, operations: Any = nn) -> None:
        super().__init__()
        self.conv = nn.Module()
        self.conv.conv = convolution3d(operations.Conv3d)(channels, channels, 3, stride=2, padding=0)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv.conv(F.pad(x, (1, 1, 1, 1, 2, 0)))

    def out_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        return (*shape[:-3], *((size + 1) // 2 for size in shape[-3:]))

    def strip(self, read: Read, height: int, first: int, last: int) -> Tensor:
        x, above, below = window(read, height, 2 * first - 1, 2 * last)
        return self.conv.conv(F.pad(x, (1, 1, above, below, 2, 0)))


class Upsample2d(nn.Module):
    """Nearest-neighbour doubling of height and width followed by a 3×3 convolution, in one go. Key ``conv``."""

    def __init__(self, channels: int, *, operations: Any = nn) -> None:
        super().__init__()
        self.conv = doubling_convolution(operations.Conv2d, FRAME)(channels, channels, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.doubled(x, 1, 1)

    def strip(self, read: Read, height: int, first: int, last: int) -> Tensor:
        return doubling_strip(self.doubled, read, height // 2, first, last)

    def doubled(self, x: Tensor, above: int, below: int) -> Tensor:
        """The doubling of rows with so many rows of zeros above and below."""
        return _frames_folded(lambda frames: self.conv(F.pad(frames, (1, 1, above, below))), x)


def doubling_strip(
    double: Callable[[Tensor, int, int], Tensor], read: Read, low_height: int, first: int, last: int
) -> Tensor:
    """Rows of a doubling convolution; ``double`` takes low rows and how many rows of zeros belong above and below."""
    low, high = first // 2, (last + 1) // 2
    y = double(*window(read, low_height, low - 1, high + 1))
    return y[..., first - 2 * low : last - 2 * low, :]


@cache
def doubling_convolution(base: type[nn.Module], axes: tuple[Doubling, ...]) -> type[nn.Module]:
    """A convolution class that computes ``base(nearest_upsample(x, 2))`` on the small grid.

    ``axes``: how each axis is doubled, which also says what margin the input must have. The parts are convolved by
    ``base`` as well, which may know of kernels to go round; its stride and padding are those of a plain convolution.
    """
    plain: Any = base
    if len(axes) == 3:
        plain = convolution3d(plain)

    class DoublingConvolution(plain):  # type: ignore[misc]
        def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None, *_: Any, **__: Any) -> Tensor:
            return doubled_convolution(x, weight, bias, axes, super()._conv_forward, memory_format(x))

    return DoublingConvolution


def affine(norm: nn.Module, like: Tensor) -> tuple[Tensor, Tensor]:
    """Weight and bias of a group norm in float32 on the device of ``like``.

    ``operations.GroupNorm`` may offer ``weight_and_bias(like)`` where the weights rest on another device.
    """
    weight, bias = norm.weight_and_bias(like) if hasattr(norm, "weight_and_bias") else (norm.weight, norm.bias)
    return weight.float(), bias.float()


def apply_moments(norm: nn.Module, x: Tensor, moments: Moments) -> Tensor:
    """Group norm with statistics measured elsewhere: [N, C, ...] like x.

    With given statistics a group norm is a batch norm in evaluation, which has a fused kernel for every type.
    """
    weight, bias = affine(norm, x)
    per_group = x.shape[1] // norm.num_groups
    means, variances = (values.repeat_interleave(per_group, dim=1) for values in moments)
    parts = [
        F.batch_norm(x[n : n + 1], means[n], variances[n], weight, bias, False, 0.0, norm.eps)
        for n in range(x.shape[0])
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def activated(norm: nn.Module, rows: Rows, *, silu: bool = True) -> Read:
    """Reads SiLU(norm(rows)), or the norm alone."""
    source = Recent(rows) if rows.tensor is None else rows

    def read(first: int, last: int) -> Tensor:
        if rows.moments is None and rows.tensor is not None and (first > 0 or last < rows.height):
            rows.moments = moments_of(rows.tensor, norm.num_groups)
        x = source.read(first, last)
        y = norm(x) if rows.moments is None else apply_moments(norm, x, rows.moments)
        return F.silu(y, inplace=True) if silu else y

    return read


def attention(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
    """Single-head attention over [N, L, C], scale 1/√C; ``causal`` lets position i see 0…i.

    Computed in blocks of queries, so that neither a mask nor scores of size L × L ever exist.
    """
    length = q.shape[1]
    q, k, v = (x.unsqueeze(1) for x in (q, k, v))
    if length <= ATTENTION_QUERIES:
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal).squeeze(1)
    out = torch.empty_like(v)
    for first in range(0, length, ATTENTION_QUERIES):
        last = min(first + ATTENTION_QUERIES, length)
        seen = last if causal else length
        mask = _causal_block(first, last, q.device) if causal else None
        out[:, :, first:last] = F.scaled_dot_product_attention(
            q[:, :, first:last], k[:, :, :seen], v[:, :, :seen], attn_mask=mask
        )
    return out.squeeze(1)


def _causal_block(first: int, last: int, device: torch.device) -> Tensor:
    """True where query ``first + row`` may see key ``column``: bool [last - first, last]."""
    queries = torch.arange(first, last, device=device)
    return queries[:, None] >= torch.arange(last, device=device)[None, :]
