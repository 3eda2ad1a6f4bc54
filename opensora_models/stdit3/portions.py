"""Doing token-local work in portions, so that wide intermediate tensors never exist as a whole.

A block's widest tensors (queries, keys and values; the MLP's hidden layer) are three and four times the tokens. Cut
into portions they fit into a CPU's cache, which is faster there, and they stop deciding the peak memory of long clips
on an accelerator. Weights that are streamed from another device are read once per portion, so portions are large.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

MOST_ELEMENTS = {"cpu": 2**20}
"""Most elements of an intermediate tensor at a time. CPU: 4 MiB in float32, measured best among 2^17 … 2^30."""

MOST_ELEMENTS_ELSEWHERE = 2**28
"""Half a gibibyte in 16 bits: keeps an accelerator busy, and most clips are a single portion."""


def spans(length: int, width: int, device: torch.device) -> Iterator[tuple[int, int]]:
    """Equal parts (start, stop) of ``length`` items with ``width`` elements each; at least one item per part."""
    most = MOST_ELEMENTS.get(device.type, MOST_ELEMENTS_ELSEWHERE)
    count = min(length, -(-length * width // most))
    step = -(-length // max(1, count))
    for start in range(0, length, step):
        yield start, min(start + step, length)


def in_portions(work: Callable[[Tensor], Tensor], x: Tensor, width: int, dim: int = 0) -> Tensor:
    """``work(x)``, where each item along ``dim`` is worked on by itself and needs ``width`` elements on the way."""
    parts = list(spans(x.shape[dim], width, x.device))
    if len(parts) == 1:
        return work(x)
    # A linear layer copies its weights once per row of a part that is not contiguous; the part itself is smaller.
    return torch.cat([work(x.narrow(dim, start, stop - start).contiguous()) for start, stop in parts], dim)
