"""Weights of the next block on their way while this one computes, where ComfyUI streams them and can look ahead (0.30).

Not yet measured on a GPU; without one, and where nothing is streamed, ComfyUI answers that there is no queue.

Newer versions replay blocks as CUDA graphs in the same place (``core=`` and ``enable_graph=``, within a
``malloc_graph_scope``): the block is then not called again, and its inputs must lie where they lay. That is not asked
for, since nobody has seen these networks in it; the call without it stays as it was.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

try:
    import comfy.model_prefetch as core
except ImportError:  # ComfyUI before it could look ahead
    core = None


@contextmanager
def looking_ahead(
    blocks: Sequence[nn.Module], device: torch.device, options: Mapping[str, Any]
) -> Iterator[Callable[[nn.Module], None] | None]:
    """Gives a function to be called with each block, in this order, before it runs; None where nothing is streamed."""
    queue = None if core is None else core.make_prefetch_queue(list(blocks), device, options)
    if queue is None:
        yield None
        return
    yield lambda block: core.prefetch_queue_pop(queue, device, block)
    core.prefetch_queue_pop(queue, device, None)
