"""GELU in its tanh form, in pieces that stay in a processor's cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

GELU_PIECE = 2**17
"""Elements at a time: two float32 tensors of half a mebibyte each, which the second-level cache of a core holds."""


def gelu_tanh(x: Tensor) -> Tensor:
    """GELU in its tanh form (Hendrycks & Gimpel 2016, arXiv 1606.08415), equal to ``F.gelu(x, approximate="tanh")``.

    PyTorch's CPU kernel spends most of its time in tanh. ½(1 + tanh(u)) is sigmoid(2u), which is several times faster
    there. It is computed in float32 and rounded once, in pieces that stay in the cache, and written over ``x``; so
    only where no gradient is needed.
    """
    plain = x.device.type != "cpu" or x.dtype == torch.float64
    if plain or torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.gelu(x, approximate="tanh")
    slope = 2 * (2 / torch.pi) ** 0.5
    flat = x.reshape(-1)
    for piece in flat.split(GELU_PIECE):
        wide = piece.float()
        gate = wide.square().mul_(0.044715 * slope).add_(slope).mul_(wide).sigmoid_()
        torch.mul(wide, gate, out=wide)
        if wide is not piece:
            piece.copy_(wide)
    return flat.view(x.shape)
