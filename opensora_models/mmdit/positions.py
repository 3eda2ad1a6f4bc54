"""Rotary positions of MMDiT: angles by frame, row and column, in the two layouts its checkpoints come in.

Both rotate the pair (a, b) of numbers of a head to (a cos - b sin, b cos + a sin); only which dimensions make a pair
differs: 2j and 2j + 1 (Flux), or j and j + d/2 (the released Open-Sora 2.0). Interleaved angles are computed in
float64, half-split ones in float32, as the original does; both are used as float32.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..transformer.positions import Rotary
from .config import MMDiTConfig


@dataclass(frozen=True)
class HalfSplitRotary:
    """Rotation of the pairs (j, j + d/2) of a head: ``cos`` and ``sin`` [..., 1, d/2] float32.

    The leading axes broadcast against those of queries and keys [..., heads, d].
    """

    cos: Tensor
    sin: Tensor

    @cached_property
    def half_matrices(self) -> Tensor:
        """[..., 1, d/2, 2, 2], as fused kernels of this layout take them; their other layout's look just the same."""
        return torch.stack([self.cos, -self.sin, self.sin, self.cos], dim=-1).unflatten(-1, (2, 2))

    def rotate(self, x: Tensor) -> Tensor:
        """Rotate ``x`` [..., heads, d] in float32; result in the dtype of ``x``."""
        a, b = x.float().chunk(2, dim=-1)
        first = torch.addcmul(a * self.cos, b, self.sin, value=-1)
        second = torch.addcmul(b * self.cos, a, self.sin)
        return torch.cat([first, second], dim=-1).to(x.dtype)


AnyRotary = Rotary | HalfSplitRotary


def rotary(ids: Tensor, config: MMDiTConfig) -> AnyRotary:
    """The rotation of tokens that stand at ``ids`` [..., L, 3]; tables [..., L, 1, head size/2]."""
    interleaved = config.rotation == "interleaved"
    precision = torch.float64 if interleaved else torch.float32
    device = torch.device("cpu") if ids.device.type == "mps" else ids.device  # which has no float64
    parts = []
    for axis, width in enumerate(config.axes_dim):
        exponents = torch.arange(0, width, 2, dtype=precision, device=device) / max(1, width)
        parts.append(ids[..., axis, None].to(device).to(precision) * config.theta**-exponents)
    angles = torch.cat(parts, dim=-1)[..., None, :]
    tables = (table.float().to(ids.device) for table in (angles.cos(), angles.sin()))
    return (Rotary if interleaved else HalfSplitRotary)(*tables)


def part(positions: AnyRotary, start: int, stop: int | None = None) -> AnyRotary:
    """The rotation of tokens ``start`` to ``stop`` (exclusive), or to the end."""
    length = (positions.cos.shape[-3] if stop is None else stop) - start
    return replace(positions, cos=positions.cos.narrow(-3, start, length), sin=positions.sin.narrow(-3, start, length))


def interleaving(head_dim: int, device: torch.device | str | None = None) -> Tensor:
    """The order of a head's dimensions that turns half-split into interleaved.

    new[2j] = old[j], new[2j + 1] = old[j + d/2].
    Applied to the rows of query and key projections and to the norms of both, it makes an exact interleaved network of
    a half-split one.
    """
    return torch.arange(head_dim, device=device).unflatten(0, (2, -1)).T.flatten()
