"""One transformer block, its MLP and the last layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..transformer.arithmetic import Arithmetic
from ..transformer.gelu import gelu_tanh
from ..transformer.handing import own
from .attention import CrossAttention, SelfAttention
from .conditions import BlockContext
from .config import STDiT3Config
from .portions import in_portions

BRANCH_HOOK = "opensora_branch_hook"
"""Key in transformer_options of the hook around a residual branch; see :mod:`.network`."""

ATTENTION_OUTPUT, CROSS_OUTPUT = "attn1_output_patch", "attn2_output_patch"
"""ComfyUI's names in ``patches`` for functions on what self attention and cross attention give."""


class Mlp(nn.Module):
    """Linear to ``mlp_ratio``·C, GELU (tanh), Linear back, over the tokens in portions."""

    def __init__(self, config: STDiT3Config, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        place = {"dtype": dtype, "device": device}
        self.hidden = config.mlp_hidden
        self.fc1 = operations.Linear(config.hidden_size, self.hidden, **place)
        self.fc2 = operations.Linear(self.hidden, config.hidden_size, **place)

    def forward(self, x: Tensor) -> Tensor:
        """[..., C] -> [..., C]."""
        tokens = x.flatten(0, -2)
        return in_portions(lambda part: self.fc2(gelu_tanh(self.fc1(part))), tokens, self.hidden).view(x.shape)


class Block(nn.Module):
    """Self attention, cross attention and MLP, each a residual branch (upstream's ``STDiT3Block``).

    The table of a released checkpoint, ``scale_shift_table`` [6, C], is the weight of a leaf layer here
    (:mod:`.keys`). Its rows are shift, scale and gate of self attention, then of the MLP.
    """

    def __init__(
        self, config: STDiT3Config, attention: type[SelfAttention], operations: Any, dtype: Any, device: Any
    ) -> None:
        super().__init__()
        self.scale_shift_table = operations.Embedding(6, config.hidden_size, dtype=dtype, device=device)
        self.attn = attention(config, operations, dtype, device)
        self.cross_attn = CrossAttention(config, operations, dtype, device)
        self.mlp = Mlp(config, operations, dtype, device)

    def forward(self, x: Tensor, context: BlockContext) -> Tensor:
        """[B, T, S, C] -> [B, T, S, C]."""
        arithmetic = context.arithmetic
        table = read_table(self.scale_shift_table, x)
        values = arithmetic.modulation(context.modulation, table, x.dtype).unsqueeze(3).unbind(2)
        shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = values

        def attend() -> Tensor:
            given = self.attn(arithmetic.adaptive_norm(x, shift_1, scale_1), context)
            return patched_output(given, ATTENTION_OUTPUT, self.attn.heads, context)

        def attend_to_text() -> Tensor:
            return patched_output(self.cross_attn(x, context), CROSS_OUTPUT, self.cross_attn.heads, context)

        x = add_branch(context, "attn", x, gate_1, attend)
        x = add_branch(context, "cross", x, None, attend_to_text)
        return add_branch(context, "mlp", x, gate_2, lambda: self.mlp(arithmetic.adaptive_norm(x, shift_2, scale_2)))


def patched_output(x: Tensor, name: str, heads: int, context: BlockContext) -> Tensor:
    """What an attention gives [B, T, S, C] through ComfyUI's output patches, which see [B, tokens, C]."""
    options = dict(context.options or {})
    patches = options.get("patches", {}).get(name)
    if not patches:
        return x
    tokens = x.flatten(1, 2)
    for patch in patches:
        tokens = patch(tokens, {**own(options), "n_heads": heads, "dim_head": x.shape[-1] // heads})
    return tokens.reshape(x.shape)


def add_branch(
    context: BlockContext, kind: str, x: Tensor, gate: Tensor | None, branch: Callable[[], Tensor]
) -> Tensor:
    """x plus the (gated) branch, through the caller's hook if there is one."""
    hook = (context.options or {}).get(BRANCH_HOOK)
    if hook is None:
        return context.arithmetic.gated_add(x, gate, branch())
    return x + hook(kind, context.options, branch if gate is None else lambda: gate * branch())


class FinalLayer(nn.Module):
    """Adaptive norm with the time vector itself, then the projection to patches."""

    def __init__(self, config: STDiT3Config, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        place = {"dtype": dtype, "device": device}
        patch = config.patch_size[1] * config.patch_size[2]
        self.scale_shift_table = operations.Embedding(2, config.hidden_size, **place)
        self.linear = operations.Linear(config.hidden_size, patch * config.out_channels, **place)

    def forward(
        self,
        x: Tensor,
        time: Tensor,
        arithmetic: Arithmetic,
        frame_mask: Tensor | None = None,
        clean_time: Tensor | None = None,
    ) -> Tensor:
        """[B, T, S, C] and time vectors [B, C] -> [B, T, S, patch·out_channels].

        Where ``frame_mask`` [B, T] is False the original normalises and modulates the already modulated tokens once
        more with ``clean_time``; kept for parity, since those predictions are thrown away in sampling.
        """
        u = self._modulated(x, time, arithmetic)
        if frame_mask is not None and clean_time is not None:
            u = torch.where(frame_mask[:, :, None, None], u, self._modulated(u, clean_time, arithmetic))
        return self.linear(u)

    def _modulated(self, x: Tensor, time: Tensor, arithmetic: Arithmetic) -> Tensor:
        table = read_table(self.scale_shift_table, x)
        shift, scale = arithmetic.modulation(time[:, None], table, x.dtype)[:, :, None, None].unbind(1)
        return arithmetic.adaptive_norm(x, shift, scale)


def read_table(table: nn.Embedding, like: Tensor) -> Tensor:
    """All rows of a modulation table, in the dtype and on the device of ``like``.

    ComfyUI's layer casts (and patches) while it is read and has to be told the dtype; PyTorch's own cannot be. A table
    with a forward of its own is read as a linear layer is, see ``native.tables``.
    """
    if "forward" in vars(table):
        return table(torch.eye(table.embedding_dim, dtype=like.dtype, device=like.device)).t().contiguous()
    rows = torch.arange(table.num_embeddings, device=like.device)
    if type(table) is nn.Embedding:
        return table(rows).to(like.dtype)
    return table(rows, out_dtype=like.dtype)
