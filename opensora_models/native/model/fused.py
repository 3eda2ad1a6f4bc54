"""The element-wise steps of a block through ComfyUI's fused kernels, where it has them for the tensors at hand.

The kernels come with ComfyUI as ``comfy_kitchen``, which chooses a backend for every call: "cuda" (NVIDIA, PyTorch
built for CUDA 13 or newer), "hip" (AMD), "triton" (``--enable-triton-backend``) or "eager", which is PyTorch step by
step. Adaptive norm becomes one pass over the tokens instead of two. The norm and rotation of queries and keys become
one pass, or two where only the rotation is fused (the CUDA kernel of both takes heads of a multiple of 32 numbers,
and Open-Sora's have 72), instead of four.

Looked at in versions up to 0.2.40 and of no use here: ``rms_gated_residual`` (residual + gate * RMSNorm(branch)) and
``rms_adaln``, since no branch of these networks ends in a norm and none begins with an RMS norm;
``na3d``, whose windows slide; ``group_norm_silu_pad3d``, whose statistics are those of single frames, where the video
autoencoders' span all frames of a piece (it would fit the image stage of 1.2, where nobody has measured it).
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

import comfy.ops
import comfy.quant_ops
import torch
from torch import Tensor, nn

from ...transformer.arithmetic import NORM_EPS, Arithmetic
from ...transformer.positions import Rotary

FUSED = frozenset({"cuda", "hip", "triton"})
"""The backends that do a step in one pass."""

STRIDED = "rms_rope_"
"""A function of every version of comfy_kitchen whose rotary kernels read views of packed projections (0.2.21)."""


TOKENS_AT_ONCE = 65535
"""Most tokens of one call of the kernels for both steps: Triton's counts them by the third axis of CUDA's grid."""


class FusedArithmetic(Arithmetic):
    """Accurate arithmetic in fused kernels of the given ``backends``; where a call has none, plain formulas."""

    def __init__(self, backends: Collection[str] = FUSED) -> None:
        self.backends = backends

    @property
    def kernels(self) -> Any:
        """ComfyUI's module of kernels. None if there is none, or where they do not belong.

        That is where gradients are wanted, which they do not give, and for a compiler, which fuses by itself. Not
        kept, because models are copied and modules cannot be.
        """
        if torch.compiler.is_compiling() or torch.is_grad_enabled():
            return None
        return getattr(comfy.quant_ops, "ck", None)

    def adaptive_norm(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """See :meth:`Arithmetic.adaptive_norm`; the kernel rounds once, at the end."""
        arguments = {"x": x, "scale": scale, "shift": shift, "eps": NORM_EPS}
        if self._has("adaln", arguments):
            return self.kernels.adaln(**arguments)
        return super().adaptive_norm(x, shift, scale)

    def norm_rotary(
        self, q: Tensor, k: Tensor, q_norm: nn.Module, k_norm: nn.Module, rotary: Rotary | None
    ) -> tuple[Tensor, Tensor]:
        """See :meth:`Arithmetic.norm_rotary`; rounded after the norm and after the rotation, as there."""
        if rotary is None or not hasattr(self.kernels, STRIDED):
            return super().norm_rotary(q, k, q_norm, k_norm, rotary)
        shape, table = q.shape, _table(rotary, q)
        q, k = q.flatten(0, -4), k.flatten(0, -4)  # the kernels take [batch, any, any, d]
        weighted = isinstance(q_norm, nn.RMSNorm) and q.shape[1] <= TOKENS_AT_ONCE
        if weighted and self._has("rms_rope", {"q": q, "k": k, "freqs_cis": table, **_like_weights(q)}):
            q, k = self._norm_and_rotate(q, k, q_norm, k_norm, table)
            return q.view(shape), k.view(shape)
        if self._has("apply_rope", {"xq": q, "xk": k, "freqs_cis": table}):
            q, k = self.kernels.apply_rope(q_norm(q), k_norm(k), table)
            return q.view(shape), k.view(shape)
        return super().norm_rotary(q.view(shape), k.view(shape), q_norm, k_norm, rotary)

    def _norm_and_rotate(
        self, q: Tensor, k: Tensor, q_norm: nn.Module, k_norm: nn.Module, table: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Both steps in one kernel; the weights are fetched, cast and patched as ComfyUI's own layer would."""
        q_weight, _, q_stream = comfy.ops.cast_bias_weight(q_norm, q, offloadable=True)
        k_weight, _, k_stream = comfy.ops.cast_bias_weight(k_norm, k, offloadable=True)
        q, k = self.kernels.rms_rope(q, k, table, q_weight, k_weight, NORM_EPS)
        comfy.ops.uncast_bias_weight(q_norm, q_weight, None, q_stream)
        comfy.ops.uncast_bias_weight(k_norm, k_weight, None, k_stream)
        return q, k

    def _has(self, function: str, arguments: dict[str, Any]) -> bool:
        """Whether an accepted backend would take this call."""
        if not hasattr(self.kernels, function):
            return False
        try:
            return self.kernels.registry.get_capable_backend(function, arguments) in self.backends
        except self.kernels.NoCapableBackendError:
            return False


def _table(rotary: Rotary, x: Tensor) -> Tensor:
    """The rotation matrices for ``x`` [..., frames or batch, positions, heads, d] with all leading axes flattened.

    One row of matrices per flattened row where the rotation differs between them (by frame), else [1, ...].
    """
    matrices = rotary.matrices
    if matrices.ndim == 5:  # [positions, 1, d/2, 2, 2]: every row alike
        return matrices[None]
    repeats = x.shape[:-3].numel() // matrices.shape[0]
    return matrices.repeat(repeats, 1, 1, 1, 1, 1)


def _like_weights(q: Tensor) -> dict[str, Tensor]:
    """Stand-ins with the shape and dtype of the norms' weights once they are cast, for asking about a call."""
    weight = q[0, 0, 0]
    return {"q_scale": weight, "k_scale": weight}
