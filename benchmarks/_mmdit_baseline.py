"""MMDiT the straightforward way: what the original computes, the way it computes it, with the same weights.

The yardstick of ``mmdit.py`` and an independent check in the tests. It shares nothing with the network but the weights,
under the keys of the released checkpoints. Kept on purpose: norms and modulation as separate steps, RMS norms and
rotation of whole tensors with their float32 copies, queries, keys and values of both streams joined by ``cat``, the
second layer's input of a single block joined once more, modulations computed in every call, three rows in every step.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


class Baseline:
    """Forward of one network. ``config`` is an MMDiTConfig, ``weights`` a state dict with checkpoint keys."""

    def __init__(self, config: Any, weights: Mapping[str, Tensor]) -> None:
        self.config, self.weights = config, weights
        self.dtype = weights["img_in.weight"].dtype

    def __call__(
        self,
        x: Tensor,
        time: Tensor,
        text: Tensor,
        pooled: Tensor,
        *,
        reference: Tensor | None = None,
        guidance: Tensor | None = None,
    ) -> Tensor:
        """Arguments and result as :meth:`MMDiT.forward`, one time per row."""
        patch = self.config.patch_size
        pattern = "b c t (h p) (w q) -> b (t h w) (c p q)"
        img = self._linear("img_in", rearrange(x, pattern, p=patch, q=patch))
        if self.config.cond_embed:
            if reference is None:
                reference = x.new_zeros(x.shape[0], x.shape[1] + 1, *x.shape[2:])
            img = img + self._linear("cond_in", rearrange(reference, pattern, p=patch, q=patch))
        vector = self._two_layers("time_in", self._waves(time)) + self._two_layers("vector_in", pooled)
        if self.config.guidance_embed and guidance is not None:
            vector = vector + self._two_layers("guidance_in", self._waves(guidance))
        txt = self._linear("txt_in", text)
        size = {"t": x.shape[2], "h": x.shape[3] // patch, "w": x.shape[4] // patch}
        turn = self._turn(list(size.values()), txt.shape[1], x.device)
        for index in range(self.config.depth):
            img, txt = self._double(f"double_blocks.{index}", img, txt, vector, turn)
        joint = torch.cat([txt, img], dim=1)
        for index in range(self.config.depth_single_blocks):
            joint = self._single(f"single_blocks.{index}", joint, vector, turn)
        shift, scale = self._linear("final_layer.adaLN_modulation.1", F.silu(vector))[:, None].chunk(2, dim=-1)
        out = self._linear("final_layer.linear", (1 + scale) * _norm(joint[:, txt.shape[1] :]) + shift)
        return rearrange(out, "b (t h w) (c p q) -> b c t (h p) (w q)", p=patch, q=patch, **size)

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights.get(f"{name}.bias"))

    def _two_layers(self, name: str, x: Tensor) -> Tensor:
        return self._linear(f"{name}.out_layer", F.silu(self._linear(f"{name}.in_layer", x)))

    def _waves(self, values: Tensor) -> Tensor:
        scaled = values.bfloat16() * 1000 if self.config.round_time else values * 1000
        steps = torch.arange(128, dtype=torch.float32, device=values.device)
        angles = scaled.float()[:, None] * torch.exp(-math.log(10000) * steps / 128)[None]
        return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).to(self.dtype)

    def _turn(self, size: Sequence[int], words: int, device: torch.device) -> Tensor:
        """Angles [words + tokens, head size/2]; words stand at 0."""
        grid = torch.stack(torch.meshgrid(*[torch.arange(n, device=device).float() for n in size], indexing="ij"), -1)
        places = torch.cat([torch.zeros(words, 3, device=device), grid.reshape(-1, 3)])
        angles = []
        for axis, width in enumerate(self.config.axes_dim):
            frequencies = 1.0 / self.config.theta ** (torch.arange(0, width, 2, device=device) / max(1, width))
            angles.append(places[:, axis, None] * frequencies)
        return torch.cat(angles, dim=-1)

    def _heads(self, name: str, x: Tensor, layers: Sequence[str]) -> list[Tensor]:
        """Queries, keys and values [b, heads, n, d] of one stream, before norm and rotation."""
        if self.config.fused_qkv:
            parts = self._linear(f"{name}.{layers[0]}", x).chunk(3, dim=-1)
        else:
            parts = tuple(self._linear(f"{name}.{layer}", x) for layer in layers[1:])
        return [rearrange(part, "b n (h d) -> b h n d", h=self.config.num_heads) for part in parts]

    def _normed(self, name: str, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        return (
            _rms(q, self.weights[f"{name}.norm.query_norm.scale"]),
            _rms(k, self.weights[f"{name}.norm.key_norm.scale"]),
        )

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, turn: Tensor) -> Tensor:
        halves = self.config.rotation == "half-split"
        q, k = _rotate(q, turn, halves), _rotate(k, turn, halves)
        return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")

    def _double(self, name: str, img: Tensor, txt: Tensor, vector: Tensor, turn: Tensor) -> tuple[Tensor, Tensor]:
        streams, six = {"txt": txt, "img": img}, {}
        parts: list[tuple[Tensor, Tensor, Tensor]] = []
        for stream, x in streams.items():
            six[stream] = self._linear(f"{name}.{stream}_mod.lin", F.silu(vector))[:, None].chunk(6, dim=-1)
            tokens = (1 + six[stream][1]) * _norm(x) + six[stream][0]
            q, k, v = self._heads(f"{name}.{stream}_attn", tokens, ("qkv", "q_proj", "k_proj", "v_proj"))
            parts.append((*self._normed(f"{name}.{stream}_attn", q, k), v))
        q, k, v = (torch.cat(pieces, dim=2) for pieces in zip(*parts, strict=True))
        seen = self._attention(q, k, v, turn).split([txt.shape[1], img.shape[1]], dim=1)
        done = {}
        for (stream, x), attended in zip(streams.items(), seen, strict=True):
            _, _, gate_1, shift, scale, gate_2 = six[stream]
            x = x + gate_1 * self._linear(f"{name}.{stream}_attn.proj", attended)
            hidden = self._linear(f"{name}.{stream}_mlp.0", (1 + scale) * _norm(x) + shift)
            done[stream] = x + gate_2 * self._linear(f"{name}.{stream}_mlp.2", F.gelu(hidden, approximate="tanh"))
        return done["img"], done["txt"]

    def _single(self, name: str, x: Tensor, vector: Tensor, turn: Tensor) -> Tensor:
        width = self.config.hidden_size
        shift, scale, gate = self._linear(f"{name}.modulation.lin", F.silu(vector))[:, None].chunk(3, dim=-1)
        tokens = (1 + scale) * _norm(x) + shift
        if self.config.fused_qkv:
            q, k, v, hidden = self._linear(f"{name}.linear1", tokens).split(
                [width, width, width, self.config.mlp_hidden], dim=-1
            )
        else:
            q, k = self._linear(f"{name}.q_proj", tokens), self._linear(f"{name}.k_proj", tokens)
            v, hidden = self._linear(f"{name}.v_mlp", tokens).split([width, self.config.mlp_hidden], dim=-1)
        q, k, v = (rearrange(part, "b n (h d) -> b h n d", h=self.config.num_heads) for part in (q, k, v))
        q, k = self._normed(name, q, k)
        both = torch.cat([self._attention(q, k, v, turn), F.gelu(hidden, approximate="tanh")], dim=-1)
        return x + gate * self._linear(f"{name}.linear2", both)


def sample(
    network: Any, noise: Tensor, times: Sequence[float], rows: Mapping[str, Tensor], scales: Sequence[tuple[float, Any]]
) -> Tensor:
    """The original's loop: three rows (prompt, negative, negative without reference) in every step.

    ``scales`` are the text's and the image's (a number or [T]) of every step; ``rows`` hold text, pooled and reference.
    """
    z = noise
    for step, (text, image) in enumerate(scales):
        time = torch.full((3,), times[step], device=z.device)
        prompt, negative, nothing = network(z.repeat(3, 1, 1, 1, 1), time, **rows).chunk(3)
        image = torch.as_tensor(image, dtype=z.dtype, device=z.device).reshape(1, 1, -1, 1, 1)
        v = nothing + image * (negative - nothing) + text * (prompt - negative)
        z = z + (times[step + 1] - times[step]) * v
    return z


def _norm(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.float()
    return (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype) * weight


def _rotate(x: Tensor, angles: Tensor, halves: bool) -> Tensor:
    """``halves``: pairs (j, j + d/2); else (2j, 2j + 1)."""
    pattern = "b h n (two d) -> two b h n d" if halves else "b h n (d two) -> two b h n d"
    a, b = rearrange(x.float(), pattern, two=2)
    cos, sin = angles.cos(), angles.sin()
    turned = torch.stack([a * cos - b * sin, b * cos + a * sin])
    back = "two b h n d -> b h n (two d)" if halves else "two b h n d -> b h n (d two)"
    return rearrange(turned, back).to(x.dtype)
