"""The element-wise steps of a block, as one exchangeable object: accurate, as upstream in bfloat16, or fused kernels.

This is the one place that decides how numbers are rounded.

* :class:`Arithmetic` (default) computes tables in float32, keeps the timestep in float32, and rounds once per step.
* :class:`UpstreamArithmetic` repeats the rounding of the released bfloat16 pipeline, for comparing with published
  samples: frequencies, positions, pixel sizes and frame rate in bfloat16, version 1.2's timestep too, a rounding
  after every single operation, softmaxes written out where the original has no kernel. (One rounding is left out:
  the weight of the q and k norms is applied before it.) In float32 both classes give the same numbers.

Choose with ``STDiT3(..., arithmetic=UpstreamArithmetic())`` or per call with
``transformer_options[ARITHMETIC]``. A subclass may replace any step by a fused kernel.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .positions import Rotary

Attention = Callable[..., Tensor]
"""ComfyUI's ``optimized_attention`` or anything called like it: see :func:`.attention.plain_attention`."""

ARITHMETIC = "opensora_arithmetic"
"""Key in transformer_options of the object to use in one call."""

NORM_EPS = 1e-6
"""Epsilon of every layer norm and RMS norm."""


class Arithmetic:
    """Accurate element-wise steps in plain PyTorch. Holds no state, so one object may serve all threads."""

    def precision(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype position tables, rotary angles, pixel sizes and frame rates are rounded to."""
        return torch.float32

    def modulation(self, vector: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum of a time vector and a block's table, both broadcastable, in ``dtype``."""
        return (vector.float() + table.float()).to(dtype)

    def adaptive_norm(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """LayerNorm(x)·(1 + scale) + shift; shift and scale [B, T or 1, 1, C] broadcast over x [B, T, S, C]."""
        width = x.shape[-1:]
        if shift.numel() == x.shape[-1]:
            return F.layer_norm(x, width, (1 + scale).flatten(), shift.flatten(), NORM_EPS)
        return torch.addcmul(shift, F.layer_norm(x, width, eps=NORM_EPS), 1 + scale)

    def norm_rotary(
        self, q: Tensor, k: Tensor, q_norm: nn.Module, k_norm: nn.Module, rotary: Rotary | None
    ) -> tuple[Tensor, Tensor]:
        """RMS norm over each head, then the rotation if any. q, k: [..., heads, d]."""
        q, k = q_norm(q), k_norm(k)
        return (q, k) if rotary is None else (rotary.rotate(q), rotary.rotate(k))

    def attention(self, attention: Attention, written_out: bool) -> Attention:
        """The attention to use for self attention; ``written_out`` where the original has no kernel for it."""
        return attention

    def gated_add(self, x: Tensor, gate: Tensor | None, branch: Tensor) -> Tensor:
        """x + gate·branch, or x + branch without a gate."""
        return x + branch if gate is None else torch.addcmul(x, gate, branch)


class UpstreamArithmetic(Arithmetic):
    """The rounding of the original when its whole module runs in bfloat16 (``pipeline dtype bf16``)."""

    def precision(self, dtype: torch.dtype) -> torch.dtype:
        return dtype

    def modulation(self, vector: Tensor, table: Tensor, dtype: torch.dtype) -> Tensor:
        return vector.to(dtype) + table.to(dtype)

    def adaptive_norm(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=NORM_EPS) * (scale + 1) + shift

    def norm_rotary(
        self, q: Tensor, k: Tensor, q_norm: nn.Module, k_norm: nn.Module, rotary: Rotary | None
    ) -> tuple[Tensor, Tensor]:
        q, k = q_norm(q), k_norm(k)
        return (q, k) if rotary is None else (_rotate_rounded(q, rotary), _rotate_rounded(k, rotary))

    def attention(self, attention: Attention, written_out: bool) -> Attention:
        return _written_out_attention if written_out else attention

    def gated_add(self, x: Tensor, gate: Tensor | None, branch: Tensor) -> Tensor:
        return x + branch if gate is None else x + gate * branch


def _written_out_attention(q: Tensor, k: Tensor, v: Tensor, heads: int, **_: Any) -> Tensor:
    """Scaled queries and logits in the model's dtype, softmax in float32, its result rounded. Result [N, L, C]."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
    return (logits.float().softmax(-1).to(v.dtype) @ v).transpose(1, 2).flatten(2)


def _rotate_rounded(x: Tensor, rotary: Rotary) -> Tensor:
    """Each product and each sum rounded to the dtype of ``x``."""
    cos, sin = rotary.cos.to(x.dtype), rotary.sin.to(x.dtype)
    a, b = x.unflatten(-1, (-1, 2)).unbind(-1)
    return torch.stack([a * cos - b * sin, b * cos + a * sin], dim=-1).flatten(-2)
