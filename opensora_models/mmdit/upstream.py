"""The rounding of the original bfloat16 pipeline in an MMDiT."""

from __future__ import annotations

from torch import Tensor, nn

from ..transformer.arithmetic import Arithmetic, UpstreamArithmetic
from ..transformer.positions import Rotary


class UpstreamHeads(UpstreamArithmetic):
    """A rounding after every operation of a block, but norm and rotation in float32.

    Release 2.0 has both in fused kernels that compute in float32 and round once (upstream
    ``opensora/models/mmdit/layers.py`` and ``math.py``).
    """

    def norm_rotary(
        self, q: Tensor, k: Tensor, q_norm: nn.Module, k_norm: nn.Module, rotary: Rotary | None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Arithmetic.norm_rotary`."""
        return Arithmetic.norm_rotary(self, q, k, q_norm, k_norm, rotary)
