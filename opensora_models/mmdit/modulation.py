"""From time, pooled text and guidance to shifts, scales and gates of every block.

The layers that make them are 27 % of the weights of the released network and see nothing but one vector per row. So
they can be computed once, for all times of a run together, and need not be there while the blocks run:
:class:`Modulations` is all that the blocks take.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer.positions import sinusoid
from .config import TIME_WIDTH

TIME_FACTOR = 1000.0
"""Flow times 0 … 1 and guidance scales are multiplied by this before their sinusoid."""


@dataclass(frozen=True)
class Modulations:
    """Shift, scale and gate vectors of rows: what the blocks read instead of a time.

    ``double`` holds for every double block those of image and text, each [B, 6, C] (shift, scale, gate of attention,
    then of the MLP); ``single`` [B, 3, C] for every single block; ``final`` [B, 2, C] (shift, scale).
    """

    double: tuple[tuple[Tensor, Tensor], ...]
    single: tuple[Tensor, ...]
    final: Tensor

    def map(self, change: Callable[[Tensor], Tensor]) -> Modulations:
        """The same with ``change`` applied to every tensor."""
        double = tuple((change(image), change(text)) for image, text in self.double)
        return Modulations(double, tuple(map(change, self.single)), change(self.final))

    def rows(self, numbers: Sequence[int] | Tensor) -> Modulations:
        """Those of some rows, in the order asked for; a row may be asked for more than once."""
        index = torch.as_tensor(numbers, device=self.final.device)
        return self.map(lambda values: values.index_select(0, index))

    def to(self, place: Any) -> Modulations:
        """The same on another device, in another dtype, or like a tensor."""
        return self.map(lambda values: values.to(place))


class VectorEmbedder(nn.Module):
    """Linear, SiLU, Linear: for sinusoids and for the pooled text."""

    def __init__(self, width: int, hidden_size: int, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        self.in_layer = operations.Linear(width, hidden_size, dtype=dtype, device=device)
        self.out_layer = operations.Linear(hidden_size, hidden_size, dtype=dtype, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """[B, width] -> [B, C]."""
        return self.out_layer(F.silu(self.in_layer(x)))


class Modulation(nn.Module):
    """One block's vectors for one stream."""

    def __init__(self, count: int, hidden_size: int, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        self.count = count
        self.lin = operations.Linear(hidden_size, count * hidden_size, dtype=dtype, device=device)

    def forward(self, activated: Tensor) -> Tensor:
        """SiLU of the time vector [B, C] -> [B, count, C]."""
        return self.lin(activated).unflatten(-1, (self.count, -1))


def scaled_time(values: Tensor, rounded: bool) -> Tensor:
    """[B] flow times or guidance scales times 1000, float32.

    ``rounded``: the value and its product are rounded to bfloat16 each, as everything in the original's pipeline is:
    0.6137 becomes 612.
    """
    if rounded:
        return (values.to(torch.bfloat16) * TIME_FACTOR).float()
    return values.float() * TIME_FACTOR


def embedded_time(values: Tensor, rounded: bool, dtype: torch.dtype) -> Tensor:
    """[B] -> [B, 256] in ``dtype``: cosines, then sines of :func:`scaled_time`."""
    return sinusoid(scaled_time(values, rounded), TIME_WIDTH).to(dtype)
