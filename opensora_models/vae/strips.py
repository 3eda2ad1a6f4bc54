"""Computes wide convolution layers strip by strip, so that no more than a few strips exist beside the stored tensors.

A group norm needs its statistics over the whole clip group before the first output row can be computed. They are
measured while a layer is stored, or in a pass of their own, and merged exactly. Everything between two norms only
looks one pixel to each side. So each layer can be computed in horizontal strips of any height with the same result
as in one piece: this is what replaces spatial tiles with seams.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

Moments = tuple[Tensor, Tensor]
"""Mean and variance per sample and channel group: float32 [N, groups] each."""

# A strip must be at least as high as the rows its neighbours look back at when a layer is overwritten in place:
# two convolutions and one up-sampling.
MIN_ROWS = 4
# Bytes of a float32 copy that a strip is measured from where its type or layout is not the kernel's.
COPY_BYTES = 16 * 2**20
NO_FLOAT64 = frozenset({"mps"})
"""Kinds of devices that have no float64; what few numbers need it are merged on the CPU there."""


class Rows:
    """A layer's activations [N, C, (T,) H, W] that can be read by rows: stored, or computed when asked for."""

    def __init__(
        self,
        shape: tuple[int, ...],
        read: Callable[[int, int], Tensor],
        *,
        element_size: int,
        tensor: Tensor | None = None,
        moments: Moments | None = None,
    ) -> None:
        self.shape = shape
        self.read = read
        self.element_size = element_size
        self.tensor = tensor
        self.moments = moments
        self._through = 0  # bytes of the widest layer on the way, for each row

    @property
    def height(self) -> int:
        return self.shape[-2]

    @property
    def bytes(self) -> int:
        return self.element_size * math.prod(self.shape)

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of the widest layer that is read or computed on the way to these rows."""
        return max(self.bytes // self.height, self._through)

    @classmethod
    def of(cls, tensor: Tensor, moments: Moments | None = None) -> Rows:
        """Rows of a tensor that exists."""
        return cls(
            tuple(tensor.shape),
            lambda first, last: tensor[..., first:last, :],
            element_size=tensor.element_size(),
            tensor=tensor,
            moments=moments,
        )

    def computed(self, shape: tuple[int, ...], read: Callable[[int, int], Tensor]) -> Rows:
        """Rows of another shape that are computed from these."""
        rows = Rows(shape, read, element_size=self.element_size)
        rows._through = self.row_bytes * self.height // rows.height
        return rows


class Recent:
    """Reads rows that are computed, from the top down, and keeps those that the next strip asks for again.

    A strip of a convolution needs a row or two beyond either end, which would be computed for both neighbours.
    """

    def __init__(self, rows: Rows, overlap: int = 2) -> None:
        self.rows = rows
        # One more, because what is computed ends at even rows: doubled rows come in pairs.
        self.overlap = overlap + 1
        self.kept: Tensor | None = None
        self.end = 0

    def read(self, first: int, last: int) -> Tensor:
        """Rows first…last; best called for ascending, overlapping ranges."""
        start = self.end - (0 if self.kept is None else self.kept.shape[-2])
        end = min(self.rows.height, last + last % 2)
        if self.kept is None or not start <= first < self.end < end:
            computed = self.rows.read(first, end)
        else:
            new = self.rows.read(self.end, end)
            computed = torch.cat([self.kept[..., first - start :, :], new], dim=-2)
        self.kept, self.end = computed[..., -self.overlap :, :].clone(), end
        return computed[..., : last - first, :]


@dataclass(frozen=True)
class Strips:
    """How high the strips are and what is kept between layers.

    ``strip_bytes``: size aimed at for one strip of one layer; None computes each layer in one piece.
    ``lean``: the first convolution of a residual block is computed twice instead of being stored, so that only one
    full-size tensor exists at a time (about half again the arithmetic of the layers that are cut).
    ``images``: frames the image stage of v1.2 takes at once. ``hold``: layers of at most so many bytes are stored also
    where a lean run, or an up-sampling, would rather compute them again.
    """

    strip_bytes: int | None = None
    lean: bool = False
    images: int = 4
    hold: int = 0

    def bounds(self, rows: Rows) -> list[tuple[int, int]]:
        """First and last row of each strip of a layer."""
        height = rows.height
        step = height
        if self.strip_bytes is not None:
            # Even, so that a doubled layer is cut between the copies of two rows.
            step = min(height, max(MIN_ROWS, self.strip_bytes // max(1, rows.row_bytes) // 2 * 2))
        return [(first, min(first + step, height)) for first in range(0, height, step)]

    def store(self, rows: Rows, groups: int | None, *, into: Rows | None = None) -> Rows:
        """Compute a layer into memory and measure its statistics on the way, unless ``groups`` is None.

        ``into``: stored rows of the same shape to overwrite; ``rows`` may still read from them.
        """
        bounds = self.bounds(rows)
        if len(bounds) == 1:
            return Rows.of(rows.tensor if rows.tensor is not None else rows.read(0, rows.height))
        measured = None if groups is None else _Moments(groups)
        target = into.tensor if into is not None else None
        if target is not None and tuple(target.shape) != rows.shape:
            target = None
        for (first, last), strip in _one_behind(bounds, rows):
            if measured is not None:
                measured.add(strip)
            if target is None:
                target = _empty(strip, rows.shape)
            target[..., first:last, :] = strip
            del strip  # or it would stay until the next one is computed
        return Rows.of(target, None if measured is None else measured.result())

    def keep(self, rows: Rows, groups: int) -> Rows:
        """Store a layer, or in a lean run only measure it and compute it again when it is read."""
        return self.pass_on(rows, groups) if self.lean else self.store(rows, groups)

    def pass_on(self, rows: Rows, groups: int) -> Rows:
        """Only measure a layer that is cut into strips and compute it again when it is read."""
        bounds = self.bounds(rows)
        if len(bounds) == 1 or rows.bytes <= self.hold:
            return self.store(rows, groups)
        measured = _Moments(groups)
        for first, last in bounds:
            measured.add(rows.read(first, last))
        rows.moments = measured.result()
        return rows

    def finish(self, rows: Rows) -> Tensor:
        """The whole layer as a tensor, without statistics."""
        if rows.tensor is not None:
            return rows.tensor
        bounds = self.bounds(rows)
        if len(bounds) == 1:
            return rows.read(0, rows.height)
        target: Tensor | None = None
        for first, last in bounds:
            strip = rows.read(first, last)
            if target is None:
                target = _empty(strip, rows.shape)
            target[..., first:last, :] = strip
        assert target is not None
        return target


def _one_behind(bounds: list[tuple[int, int]], rows: Rows) -> Iterator[tuple[tuple[int, int], Tensor]]:
    """Hand out each strip only after the next one was computed, so that it may overwrite what that one had read."""
    waiting: tuple[tuple[int, int], Tensor] | None = None
    for first, last in bounds:
        strip = rows.read(first, last)
        if waiting is not None:
            yield waiting
        waiting = ((first, last), strip)
    if waiting is not None:
        yield waiting


def _empty(strip: Tensor, shape: tuple[int, ...]) -> Tensor:
    """A tensor of ``shape`` in the memory layout of the strip."""
    return torch.empty(shape, dtype=strip.dtype, device=strip.device, memory_format=memory_format(strip))


def memory_format(tensor: Tensor) -> torch.memory_format:
    """The layout a tensor or a strip of it has: channels last where the channel axis is the innermost."""
    if tensor.ndim < 4 or tensor.stride(1) != 1 or tensor.shape[1] == 1:
        return torch.contiguous_format
    return torch.channels_last_3d if tensor.ndim == 5 else torch.channels_last


def kernel_layout(tensor: Tensor) -> torch.memory_format:
    """The layout the group-norm kernel takes ``tensor`` in: off the CPU it refuses any but the plain one."""
    return memory_format(tensor) if tensor.device.type == "cpu" else torch.contiguous_format


def moments_of(tensor: Tensor, groups: int) -> Moments:
    """Statistics of a whole stored tensor."""
    measured = _Moments(groups)
    measured.add(tensor)
    return measured.result()


class _Moments:
    """Mean and variance per group of a layer, merged in float64 from those of its strips."""

    def __init__(self, groups: int) -> None:
        self.groups = groups
        self.device: torch.device | None = None
        self.counts: list[int] = []
        self.parts: list[Moments] = []

    def add(self, strip: Tensor) -> None:
        """Measure a strip; where the kernel needs a copy a few frames at a time, so that the copy stays small."""
        self.device = strip.device
        frames = strip.shape[2] if strip.ndim == 5 else 1
        copied = strip.dtype != torch.float32 or kernel_layout(strip) != memory_format(strip)
        if copied and frames > 1:
            at_once = max(1, COPY_BYTES * frames // (strip.numel() * torch.float32.itemsize))
            parts = strip.split(at_once, dim=2)
        else:
            parts = (strip,)
        for part in parts:
            self.counts.append(part[0].numel() // self.groups)
            self.parts.append(_moments(part, self.groups))

    def result(self) -> Moments:
        means, variances = (torch.stack(values) for values in zip(*self.parts, strict=True))
        shares = torch.tensor(self.counts, dtype=torch.float64, device=means.device) / sum(self.counts)
        shares = shares[:, None, None]
        mean = (means * shares).sum(0)
        variance = ((variances + (means - mean).square()) * shares).sum(0)
        return mean.float().to(self.device), variance.float().to(self.device)


def _moments(strip: Tensor, groups: int) -> tuple[Tensor, Tensor]:
    """Mean and variance [N, groups] of one strip in float64, through the fused group-norm kernel."""
    samples, channels = strip.shape[:2]
    positions = strip[0, 0].numel()
    # The tiny epsilon only keeps the reciprocal of a constant group finite; it is taken off again below.
    epsilon = 1e-12
    layout = kernel_layout(strip)
    # Type and layout in one copy; the second call is for slices, which are in no layout.
    values = strip.to(torch.float32, memory_format=layout).contiguous(memory_format=layout)
    _, mean, inverse = torch.native_group_norm(values, None, None, samples, channels, positions, groups, epsilon)
    if strip.device.type in NO_FLOAT64:
        mean, inverse = mean.cpu(), inverse.cpu()
    return mean.double(), (inverse.double().pow(-2) - epsilon).clamp_min_(0.0)
