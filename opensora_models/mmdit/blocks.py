"""Double-stream and single-stream blocks (Flux), their attention and MLPs, and the last layer.

Where neither gradients are wanted nor a compiler looks on, a single block works inside the tensor its projection made,
[values | MLP]: GELU is written over the MLP's part and the result of attention over the values, which is then the
second layer's input. So the widest tensors exist once and nothing is joined. Tokens that came from outside are never
written to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from ..transformer.arithmetic import NORM_EPS, Arithmetic, Attention
from ..transformer.gelu import GELU_PIECE, gelu_tanh
from ..transformer.handing import own
from .config import MMDiTConfig
from .modulation import Modulation
from .portions import rotated_spans
from .positions import AnyRotary, part

ATTENTION_OUTPUT = "attn1_output_patch"
"""ComfyUI's name in ``patches`` for functions on what attention gives."""


@dataclass(frozen=True)
class BlockContext:
    """Everything the blocks of one forward call share. ``rotary`` covers text tokens, then image tokens."""

    rotary: AnyRotary
    arithmetic: Arithmetic
    attention: Attention
    options: dict[str, Any]

    def attend(self, q: Tensor, k: Tensor, v: Tensor, text: int) -> Tensor:
        """[B, L, heads, d] -> [B, L, C]; every token sees every other. ``text`` tokens come first, which patches of
        what attention gives are told."""
        heads = q.shape[2]
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        seen = self.attention(q, k, v, heads, skip_reshape=True, transformer_options=self.options)
        for patch in self.options.get("patches", {}).get(ATTENTION_OUTPUT, ()):
            seen = patch(seen, {**own(self.options), "img_slice": [text, seen.shape[1]]})
        return seen


class HeadNorms(nn.Module):
    """RMS norms over each head's queries and keys, and the rotation that follows."""

    def __init__(self, config: MMDiTConfig, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        place = {"eps": NORM_EPS, "dtype": dtype, "device": device}
        self.query_norm = operations.RMSNorm(config.head_dim, **place)
        self.key_norm = operations.RMSNorm(config.head_dim, **place)

    def forward(self, q: Tensor, k: Tensor, rotary: AnyRotary, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
        """[B, L, heads, d] -> the same; written over its inputs where that may be."""
        norms: tuple[Any, Any] = (self.query_norm, self.key_norm)
        if not may_overwrite():
            return arithmetic.norm_rotary(q, k, *norms, cast("Any", rotary))
        if isinstance(arithmetic, OnePass):
            return arithmetic.norm_rotary_over(q, k, *norms, rotary)
        return norm_rotary_over(arithmetic, q, k, *norms, rotary)


@runtime_checkable
class OnePass(Protocol):
    """An arithmetic with a kernel for norm and rotation that writes over what it reads."""

    def norm_rotary_over(
        self, q: Tensor, k: Tensor, q_norm: nn.Module, k_norm: nn.Module, rotary: AnyRotary
    ) -> tuple[Tensor, Tensor]:
        """See :func:`norm_rotary_over`."""


def norm_rotary_over(
    arithmetic: Arithmetic, q: Tensor, k: Tensor, q_norm: nn.Module, k_norm: nn.Module, rotary: AnyRotary
) -> tuple[Tensor, Tensor]:
    """``arithmetic.norm_rotary`` of q and k [B, L, heads, d], written over them portion by portion."""
    for start, stop in rotated_spans(q):
        pieces = q[:, start:stop], k[:, start:stop]
        turned = arithmetic.norm_rotary(*pieces, q_norm, k_norm, cast("Any", part(rotary, start, stop)))
        for piece, values in zip(pieces, turned, strict=True):
            piece.copy_(values)
    return q, k


def may_overwrite() -> bool:
    """Whether intermediate tensors may be written over: not where gradients are wanted, nor for a compiler."""
    return not (torch.is_grad_enabled() or torch.compiler.is_compiling())


class StreamAttention(nn.Module):
    """Projections of one stream of a double block; released files have three layers for them, Flux has one."""

    def __init__(self, config: MMDiTConfig, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        width, place = config.hidden_size, {"dtype": dtype, "device": device}
        self.heads, self.fused = config.num_heads, config.fused_qkv
        if self.fused:
            self.qkv = operations.Linear(width, 3 * width, bias=config.qkv_bias, **place)
        else:
            self.q_proj, self.k_proj, self.v_proj = (
                operations.Linear(width, width, bias=config.qkv_bias, **place) for _ in range(3)
            )
        self.norm = HeadNorms(config, operations, dtype, device)
        self.proj = operations.Linear(width, width, **place)

    def forward(self, x: Tensor, rotary: AnyRotary, arithmetic: Arithmetic) -> tuple[Tensor, Tensor, Tensor]:
        """Modulated tokens [B, L, C] -> queries, keys and values [B, L, heads, d], normalised and rotated."""
        if self.fused:
            q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).unbind(-3)
        else:
            q, k, v = (layer(x).unflatten(-1, (self.heads, -1)) for layer in (self.q_proj, self.k_proj, self.v_proj))
        return *self.norm(q, k, rotary, arithmetic), v


class Mlp(nn.Sequential):
    """Linear to ``mlp_ratio``·C, GELU (tanh), Linear back."""

    def __init__(self, config: MMDiTConfig, operations: Any, dtype: Any, device: Any) -> None:
        place = {"dtype": dtype, "device": device}
        super().__init__(
            operations.Linear(config.hidden_size, config.mlp_hidden, **place),
            nn.GELU(approximate="tanh"),
            operations.Linear(config.mlp_hidden, config.hidden_size, **place),
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, L, C] -> [B, L, C]."""
        first, _, second = self
        return second(gelu_over(first(x)))


class DoubleBlock(nn.Module):
    """Image and text have their own weights and meet in one attention (upstream's ``DoubleStreamBlock``)."""

    def __init__(self, config: MMDiTConfig, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        layers = (operations, dtype, device)
        self.img_mod = Modulation(6, config.hidden_size, *layers)
        self.img_attn = StreamAttention(config, *layers)
        self.img_mlp = Mlp(config, *layers)
        self.txt_mod = Modulation(6, config.hidden_size, *layers)
        self.txt_attn = StreamAttention(config, *layers)
        self.txt_mlp = Mlp(config, *layers)

    def modulation(self, activated: Tensor) -> tuple[Tensor, Tensor]:
        """SiLU of the time vector [B, C] -> vectors of image and text, [B, 6, C] each."""
        return self.img_mod(activated), self.txt_mod(activated)

    def forward(
        self, img: Tensor, txt: Tensor, modulation: tuple[Tensor, Tensor], context: BlockContext
    ) -> tuple[Tensor, Tensor]:
        """Tokens of image [B, n, C] and text [B, l, C] -> the same."""
        of_img, of_txt = (vectors.unsqueeze(2).unbind(1) for vectors in modulation)
        seen = self._attention(img, txt, of_img, of_txt, context)
        attended = seen[:, txt.shape[1] :], seen[:, : txt.shape[1]]
        del seen
        img = self._finish(img, attended[0], of_img, self.img_attn, self.img_mlp, context)
        txt = self._finish(txt, attended[1], of_txt, self.txt_attn, self.txt_mlp, context)
        return img, txt

    def _attention(self, img: Tensor, txt: Tensor, of_img: Any, of_txt: Any, context: BlockContext) -> Tensor:
        """Joint attention of all tokens [B, l + n, C], text first."""
        length = txt.shape[1]
        streams = [
            _project(self.txt_attn, txt, of_txt, part(context.rotary, 0, length), context.arithmetic),
            _project(self.img_attn, img, of_img, part(context.rotary, length), context.arithmetic),
        ]
        q, k, v = (torch.cat(pieces, dim=1) for pieces in zip(*streams, strict=True))
        streams.clear()
        return context.attend(q, k, v, length)

    @staticmethod
    def _finish(
        x: Tensor, attended: Tensor, vectors: Any, attention: StreamAttention, mlp: Mlp, context: BlockContext
    ) -> Tensor:
        """The two residual branches of one stream."""
        _, _, gate_1, shift_2, scale_2, gate_2 = vectors
        arithmetic = context.arithmetic
        x = arithmetic.gated_add(x, gate_1, attention.proj(attended.contiguous()))
        return arithmetic.gated_add(x, gate_2, mlp(arithmetic.adaptive_norm(x, shift_2, scale_2)))


def _project(
    attention: StreamAttention, x: Tensor, vectors: Any, rotary: AnyRotary, arithmetic: Arithmetic
) -> tuple[Tensor, Tensor, Tensor]:
    shift, scale = vectors[:2]
    return attention(arithmetic.adaptive_norm(x, shift, scale), rotary, arithmetic)


class SingleBlock(nn.Module):
    """Attention and MLP side by side over text and image tokens (upstream's ``SingleStreamBlock``)."""

    def __init__(self, config: MMDiTConfig, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        width, hidden, place = config.hidden_size, config.mlp_hidden, {"dtype": dtype, "device": device}
        self.heads, self.width, self.fused = config.num_heads, width, config.fused_qkv
        self.projected = 3 * width + hidden
        if self.fused:
            self.linear1 = operations.Linear(width, self.projected, **place)
        else:
            self.q_proj = operations.Linear(width, width, **place)
            self.k_proj = operations.Linear(width, width, **place)
            self.v_mlp = operations.Linear(width, width + hidden, **place)
        self.linear2 = operations.Linear(width + hidden, width, **place)
        self.norm = HeadNorms(config, operations, dtype, device)
        self.modulation = Modulation(3, width, operations, dtype, device)

    def forward(self, x: Tensor, modulation: Tensor, context: BlockContext) -> Tensor:
        """[B, l + n, C], text first -> the same."""
        arithmetic = context.arithmetic
        shift, scale, gate = modulation.unsqueeze(2).unbind(1)
        made = self._projections(arithmetic.adaptive_norm(x, shift, scale), context.rotary, arithmetic)
        # Rows of tokens, because a linear layer copies a batch that is not contiguous.
        branch = self.linear2(self._attended(*made, context).flatten(0, 1))
        del made
        return arithmetic.gated_add(x, gate, branch.view(x.shape))

    def _projections(self, x: Tensor, rotary: AnyRotary, arithmetic: Arithmetic) -> tuple[Tensor, Tensor, Tensor]:
        """Queries and keys [B, L, heads, d], normalised and rotated, and [values | MLP] [B, L, C + hidden]."""
        if self.fused:
            together = self.linear1(x)
            queries, keys, mixed = together.split([self.width, self.width, self.projected - 2 * self.width], dim=-1)
        else:
            queries, keys, mixed = self.q_proj(x), self.k_proj(x), None
        q, k = (values.unflatten(-1, (self.heads, -1)) for values in (queries, keys))
        q, k = self.norm(q, k, rotary, arithmetic)
        if mixed is None:
            mixed = self.v_mlp(x)
        if may_overwrite():
            gelu_over(mixed[..., self.width :])
        return q, k, mixed

    def _attended(self, q: Tensor, k: Tensor, mixed: Tensor, context: BlockContext) -> Tensor:
        """[values | MLP] -> [attention | GELU of the MLP], the input of the second layer."""
        values = mixed[..., : self.width]
        text, _ = context.options.get("img_slice", (0, 0))
        seen = context.attend(q, k, values.unflatten(-1, (self.heads, -1)), text)
        if not may_overwrite():
            return torch.cat([seen, gelu_tanh(mixed[..., self.width :])], dim=-1)
        values.copy_(seen)
        return mixed


class FinalLayer(nn.Module):
    """Adaptive norm and the projection to the features of a token."""

    def __init__(self, config: MMDiTConfig, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        width, place = config.hidden_size, {"dtype": dtype, "device": device}
        self.linear = operations.Linear(width, config.in_channels, **place)
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), operations.Linear(width, 2 * width, **place))

    def modulation(self, activated: Tensor) -> Tensor:
        """SiLU of the time vector [B, C] -> [B, 2, C]."""
        return self.adaLN_modulation[1](activated).unflatten(-1, (2, -1))

    def forward(self, x: Tensor, modulation: Tensor, arithmetic: Arithmetic) -> Tensor:
        """[B, n, C] -> [B, n, in_channels]."""
        shift, scale = modulation.unsqueeze(2).unbind(1)
        return self.linear(arithmetic.adaptive_norm(x, shift, scale))


def gelu_over(x: Tensor) -> Tensor:
    """GELU (tanh) of ``x`` [B, L, width], written over it where that may be."""
    if not may_overwrite() or (x.device.type == "cpu" and x.is_contiguous()):
        return gelu_tanh(x)
    if x.device.type != "cpu":
        return torch.ops.aten.gelu_(x, approximate="tanh")
    for piece in x.view(-1, x.shape[-1]).split(max(1, GELU_PIECE // x.shape[-1])):
        piece.copy_(gelu_tanh(piece.clone(memory_format=torch.contiguous_format)))
    return x
