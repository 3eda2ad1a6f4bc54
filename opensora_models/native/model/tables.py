"""Modulation tables as ComfyUI's bypass mode wants layers to be: called with vectors, not with row numbers.

In bypass mode (its LoRA loaders and Train LoRA) an adapter stands beside a layer and adds ``up(down(x))`` to what the
layer gives for ``x``. A table read by row numbers has no such ``x``. Called with all unit vectors a linear layer gives
its weights, exactly, and the adapter's part of them.
"""

from __future__ import annotations

from types import MethodType

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def as_linear(network: nn.Module) -> None:
    """Makes every table of the network answer vectors [..., C] with [..., rows], like a linear layer without bias."""
    for module in network.modules():
        if isinstance(module, nn.Embedding):
            module.forward = MethodType(_project, module)  # type: ignore[method-assign]


def _project(table: nn.Embedding, x: Tensor) -> Tensor:
    rows = torch.arange(table.num_embeddings, device=x.device)
    return F.linear(x, type(table).forward(table, rows, out_dtype=x.dtype))  # type: ignore[call-arg]
