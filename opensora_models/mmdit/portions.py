"""How much of the element-wise work on queries and keys is done at a time.

Layers see all tokens at once: streamed weights are then read once, and the widest tensor of a block is needed whole for
attention anyway. Norm and rotation compute in float32, so they go in portions: no float32 copy of all queries ever
exists, and on a CPU a portion stays in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor

MOST_ELEMENTS = {"cpu": 2**18}
"""Elements of queries at a time: a mebibyte in float32, which the second-level cache of a core holds."""

MOST_ELEMENTS_ELSEWHERE = 2**23
"""32 MiB in float32: keeps an accelerator busy, and is little beside the clips that need care."""


def rotated_spans(x: Tensor) -> Iterator[tuple[int, int]]:
    """Parts (start, stop) of queries [B, L, heads, d] along their tokens."""
    width = x.shape[0] * x.shape[2] * x.shape[3]
    step = max(1, MOST_ELEMENTS.get(x.device.type, MOST_ELEMENTS_ELSEWHERE) // max(1, width))
    for start in range(0, x.shape[1], step):
        yield start, min(start + step, x.shape[1])
