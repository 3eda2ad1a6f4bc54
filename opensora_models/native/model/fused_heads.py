"""Norm and rotation of MMDiT's queries and keys in ComfyUI's fused kernels, for both layouts, written in place.

What :mod:`.fused` does for STDiT3, and its adaptive norms; heads of 128 numbers fit the kernels of all backends.
"""

from __future__ import annotations

from typing import Any, cast

import comfy.ops
from torch import Tensor, nn

from ...mmdit.blocks import norm_rotary_over
from ...mmdit.positions import AnyRotary, HalfSplitRotary
from ...transformer.arithmetic import NORM_EPS, Arithmetic
from ...transformer.positions import Rotary
from .fused import TOKENS_AT_ONCE, FusedArithmetic

IN_PLACE = {True: "rms_rope_split_half_", False: "rms_rope_"}
"""The kernels of both steps, by whether a head is split into halves."""


class FusedHeads(FusedArithmetic):
    """Accurate arithmetic in fused kernels, for MMDiT; where a call has none, plain formulas."""

    def norm_rotary(
        self, q: Tensor, k: Tensor, q_norm: nn.Module, k_norm: nn.Module, rotary: Rotary | None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Arithmetic.norm_rotary`."""
        if isinstance(rotary, HalfSplitRotary):  # the kernels of the other layout would take it, and turn wrongly
            return Arithmetic.norm_rotary(self, q, k, q_norm, k_norm, cast("Any", rotary))
        return super().norm_rotary(q, k, q_norm, k_norm, rotary)

    def norm_rotary_over(
        self, q: Tensor, k: Tensor, q_norm: nn.Module, k_norm: nn.Module, rotary: AnyRotary
    ) -> tuple[Tensor, Tensor]:
        """q and k [B, L, heads, d] written over with their norm and rotation, in one pass where there is a kernel.

        Of more tokens than a kernel takes, in spans of them.
        """
        halves = isinstance(rotary, HalfSplitRotary)
        table = cast("Any", rotary).half_matrices if halves else cast("Any", rotary).matrices
        table = table[None] if table.ndim == 5 else table
        weight = q[0, 0, 0]  # a stand-in with the shape and dtype of the norms' weights once they are cast
        asked = {"q": q, "k": k, "freqs_cis": table, "q_scale": weight, "k_scale": weight, "epsilon": NORM_EPS}
        if not (isinstance(q_norm, nn.RMSNorm) and self._has(IN_PLACE[halves], asked)):
            return norm_rotary_over(self, q, k, q_norm, k_norm, rotary)
        q_weight, _, q_stream = comfy.ops.cast_bias_weight(q_norm, q, offloadable=True)
        k_weight, _, k_stream = comfy.ops.cast_bias_weight(k_norm, k, offloadable=True)
        kernel = getattr(self.kernels, IN_PLACE[halves])
        for parts in zip(*(each.split(TOKENS_AT_ONCE, dim=1) for each in (q, k, table)), strict=True):
            kernel(*parts, q_weight, k_weight, NORM_EPS)
        comfy.ops.uncast_bias_weight(q_norm, q_weight, None, q_stream)
        comfy.ops.uncast_bias_weight(k_norm, k_weight, None, k_stream)
        return q, k
