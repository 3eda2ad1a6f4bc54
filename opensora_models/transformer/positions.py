"""Numbers and places as vectors: sinusoids, and the rotation of pairs of a head."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

MAX_PERIOD = 10000.0
"""Base of all sinusoids (Vaswani et al. 2017, arXiv 1706.03762)."""


def sinusoid(values: Tensor, width: int) -> Tensor:
    """[N] numbers -> [N, width] float32: cosines, then sines (``timestep_embedding`` of DiT)."""
    half = width // 2
    steps = torch.arange(half, dtype=torch.float32, device=values.device)
    angles = values.float()[:, None] * torch.exp(-math.log(MAX_PERIOD) * steps / half)
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


@dataclass(frozen=True)
class Rotary:
    """Rotation of adjacent pairs (2i, 2i+1) of a head: ``cos`` and ``sin`` [..., 1, d/2] float32.

    The leading axes broadcast against those of queries and keys [..., heads, d].
    """

    cos: Tensor
    sin: Tensor

    @cached_property
    def complex(self) -> Tensor:
        """cos + i·sin: a pair times this number is the rotated pair."""
        return torch.complex(self.cos, self.sin)

    @cached_property
    def matrices(self) -> Tensor:
        """[..., 1, d/2, 2, 2], the layout fused rotary kernels take."""
        return torch.stack([self.cos, -self.sin, self.sin, self.cos], dim=-1).unflatten(-1, (2, 2))

    def per_frame(self) -> Rotary:
        """Of [T, 1, d/2]: broadcast over the positions of a frame, for queries [..., T, S, heads, d]."""
        return Rotary(self.cos[:, None], self.sin[:, None])

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate ``x`` [..., heads, d] in float32; result in the dtype of ``x``."""
        pairs = x.float().unflatten(-1, (-1, 2))
        if torch.compiler.is_compiling():  # the compiler fuses this form; complex numbers it does not
            a, b = pairs.unbind(-1)
            turned = torch.stack([a * self.cos - b * self.sin, b * self.cos + a * self.sin], dim=-1)
        else:
            turned = torch.view_as_real(torch.view_as_complex(pairs.contiguous()) * self.complex)
        return turned.flatten(-2).to(x.dtype)
