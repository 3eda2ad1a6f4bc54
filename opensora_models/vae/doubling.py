"""Nearest-neighbour doubling followed by a convolution, computed on the small grid.

A 3-tap kernel over doubled positions only meets two different positions per output, so along every doubled axis the
even and the odd outputs are 2-tap convolutions with summed weights: 8 instead of 27 multiplications per output where
three axes are doubled. The weights are summed in float32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Doubling = Literal["same", "centred", "several", "causal", "first"]
"""What happens to an axis, and which margin the input must have there.

``same``: not doubled; whatever margin the kernel needs. ``centred``: doubled; one position on either side.
``several``: like centred, but a single position stays single. ``causal``: doubled, the kernel ends at the output; one
position in front. ``first``: like causal, but the first position stays single, so that n positions become 2n - 1.
"""


class _Phase(NamedTuple):
    """Output positions of one axis that share a kernel."""

    kernel: Callable[[Tensor, int], Tensor]
    source: slice
    target: slice


def _unchanged(weight: Tensor, axis: int) -> Tensor:
    return weight


def _early(weight: Tensor, axis: int) -> Tensor:
    """The second and third tap meet the same position."""
    first, middle, last = weight.split(1, dim=axis)
    return torch.cat([first, middle + last], dim=axis)


def _late(weight: Tensor, axis: int) -> Tensor:
    """The first and second tap meet the same position."""
    first, middle, last = weight.split(1, dim=axis)
    return torch.cat([first + middle, last], dim=axis)


def _phases(kind: Doubling, size: int, taps: int) -> tuple[int, list[_Phase]]:
    """Outputs of an axis of ``size`` positions, margins included, and how they are computed."""
    even, odd = slice(0, None, 2), slice(1, None, 2)
    if kind == "same" or (kind == "several" and size == taps):
        return size - taps + 1, [_Phase(_unchanged, slice(None), slice(None))]
    if kind in ("centred", "several"):
        return 2 * (size - 2), [_Phase(_early, slice(0, size - 1), even), _Phase(_late, slice(1, size), odd)]
    if kind == "causal":
        return 2 * (size - 1), [_Phase(_late, slice(0, size), even), _Phase(_early, slice(0, size), odd)]
    phases = [_Phase(_early, slice(0, size), even)]
    return 2 * (size - 1) - 1, phases + ([_Phase(_late, slice(1, size), odd)] if size > 2 else [])


def doubled_convolution(
    x: Tensor, weight: Tensor, bias: Tensor | None, axes: Sequence[Doubling],
    convolve: Callable[[Tensor, Tensor, Tensor | None], Tensor], layout: torch.memory_format,
) -> Tensor:  # fmt: skip
    """``convolution(nearest(x))`` for [N, C, *sizes], one entry of ``axes`` per size; ``convolve`` takes no padding."""
    x = x.contiguous(memory_format=layout)
    sizes, phases = zip(
        *(_phases(kind, size, taps) for kind, size, taps in zip(axes, x.shape[2:], weight.shape[2:], strict=True)),
        strict=True,
    )
    out = torch.empty((x.shape[0], weight.shape[0], *sizes), dtype=x.dtype, device=x.device, memory_format=layout)
    exact = weight.float()
    for chosen in product(*phases):
        kernel = exact
        for axis, phase in enumerate(chosen, 2):
            kernel = phase.kernel(kernel, axis)
        source = (..., *(phase.source for phase in chosen))
        target = (..., *(phase.target for phase in chosen))
        out[target].copy_(convolve(x[source], kernel.to(weight.dtype), bias))
    return out


def nearest(x: Tensor, axes: Sequence[Doubling]) -> Tensor:
    """The doubling alone, of [N, C, *sizes] without margins."""
    for axis, kind in enumerate(axes, 2):
        if kind == "first":
            rest = x.narrow(axis, 1, x.shape[axis] - 1).repeat_interleave(2, dim=axis)
            x = torch.cat([x.narrow(axis, 0, 1), rest], dim=axis)
        elif kind != "same" and not (kind == "several" and x.shape[axis] == 1):
            x = x.repeat_interleave(2, dim=axis)
    return x
