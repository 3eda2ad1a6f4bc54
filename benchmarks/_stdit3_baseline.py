"""STDiT3 the straightforward way: what the original computes, the way it computes it, with the same weights.

The yardstick of ``stdit3.py`` and an independent check in the tests. It shares nothing with the network but the
weights, under the keys of the released checkpoints. Kept on purpose: RMS norms and rotary embedding written out with
their casts and copies, temporal attention as a float32 softmax over logits in memory, both modulations computed and
then chosen by the frame mask, windows of version 1.3 padded and masked with a tensor as large as the tokens. Where
the original has a flash kernel (long sequences, text) PyTorch's own is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor


class Baseline:
    """Forward of one network. ``config`` is an STDiT3Config, ``weights`` a state dict with checkpoint keys."""

    def __init__(self, config: Any, weights: Mapping[str, Tensor]) -> None:
        self.config, self.weights = config, weights
        self.dtype = weights["t_block.1.weight"].dtype

    def __call__(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Sequence[Tensor],
        *,
        fps: Tensor,
        height: float,
        width: float,
        frame_mask: Tensor | None = None,
    ) -> Tensor:
        """Arguments and result as :meth:`STDiT3.forward`, without given frames."""
        frames, latent_rows, latent_columns = x.shape[2:]
        rows, columns = -(-latent_rows // 2), -(-latent_columns // 2)
        scale = math.sqrt(height * width) / self.config.input_sq_size
        x = F.pad(x, (0, columns * 2 - latent_columns, 0, rows * 2 - latent_rows))
        x = F.conv3d(x, self.weights["x_embedder.proj.weight"], self.weights["x_embedder.proj.bias"], stride=(1, 2, 2))
        x = rearrange(x, "b c t h w -> b t (h w) c") + self._position(rows, columns, scale, x.device).to(x.dtype)
        x = rearrange(x, "b t s c -> b (t s) c")

        t, t_six = self._time(timestep, fps)
        t0, t0_six = self._time(torch.zeros_like(timestep), fps) if frame_mask is not None else (None, None)
        lengths = [row.shape[0] for row in text]
        y = self._mlp("y_embedder.y_proj", torch.cat(list(text)).to(self.dtype))
        shape = (frames, rows, columns)
        for index in range(self.config.depth):
            for kind in ("spatial", "temporal"):
                name = f"{kind}_blocks.{index}"
                x = self._block(name, x, y, lengths, t_six, t0_six, frame_mask, shape, scale)
        x = self._final(x, t, t0, frame_mask, frames)
        x = rearrange(
            x,
            "b (t h w) (p q c) -> b c t (h p) (w q)",
            t=frames,
            h=rows,
            w=columns,
            p=2,
            q=2,
            c=self.config.out_channels,
        )
        return x[..., :latent_rows, :latent_columns].float()

    def _linear(self, name: str, x: Tensor) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _mlp(self, name: str, x: Tensor) -> Tensor:
        return self._linear(f"{name}.fc2", F.gelu(self._linear(f"{name}.fc1", x), approximate="tanh"))

    def _time(self, timestep: Tensor, fps: Tensor) -> tuple[Tensor, Tensor]:
        def embed(name: str, values: Tensor) -> Tensor:
            steps = torch.arange(128, dtype=torch.float32, device=values.device)
            angles = values[:, None].float() * torch.exp(-math.log(10000) * steps / 128)[None]
            waves = torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1).to(self.dtype)
            return self._linear(f"{name}.mlp.2", F.silu(self._linear(f"{name}.mlp.0", waves)))

        t = embed("t_embedder", timestep) + embed("fps_embedder", fps)
        return t, self._linear("t_block.1", F.silu(t))

    def _position(self, rows: int, columns: int, scale: float, device: torch.device) -> Tensor:
        half = self.config.hidden_size // 2
        omega = 1.0 / 10000 ** (torch.arange(0, half, 2, device=device).float() / half)
        base = round(math.sqrt(rows * columns))
        grid_rows = torch.arange(rows, device=device) / scale * base / rows
        grid_columns = torch.arange(columns, device=device) / scale * base / columns
        vertical, horizontal = torch.meshgrid(grid_rows, grid_columns, indexing="ij")

        def waves(position: Tensor) -> Tensor:
            angles = position.reshape(-1)[:, None] * omega[None]
            return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)

        return torch.cat([waves(horizontal), waves(vertical)], dim=-1)[None, None]

    def _block(
        self,
        name: str,
        x: Tensor,
        y: Tensor,
        lengths: list[int],
        t_six: Tensor,
        t0_six: Tensor | None,
        frame_mask: Tensor | None,
        shape: tuple[int, int, int],
        scale: float,
    ) -> Tensor:
        table = self.weights[f"{name}.scale_shift_table"]
        now = (table[None] + t_six.reshape(x.shape[0], 6, -1)).chunk(6, dim=1)
        clean = None if t0_six is None else (table[None] + t0_six.reshape(x.shape[0], 6, -1)).chunk(6, dim=1)
        for first, branch in ((0, "attn"), (3, "mlp")):
            shift, gate = first, first + 2
            normed = F.layer_norm(x, x.shape[-1:], eps=1e-6)
            value = normed * (1 + now[shift + 1]) + now[shift]
            if clean is not None:
                value = _choose(frame_mask, value, normed * (1 + clean[shift + 1]) + clean[shift], shape[0])
            value = self._attention(name, value, shape, scale) if branch == "attn" else self._mlp(f"{name}.mlp", value)
            gated = now[gate] * value
            if clean is not None:
                gated = _choose(frame_mask, gated, clean[gate] * value, shape[0])
            x = x + gated
            if branch == "attn":
                x = x + self._cross(f"{name}.cross_attn", x, y, lengths)
        return x

    def _attention(self, name: str, x: Tensor, shape: tuple[int, int, int], scale: float) -> Tensor:
        frames, rows, columns = shape
        if name.startswith("spatial"):
            x = rearrange(x, "b (t s) c -> (b t) s c", t=frames)
            turn = (1, rows, columns) if self.config.use_spatial_rope else None
            x = self._self_attention(f"{name}.attn", x, turn, scale)
            return rearrange(x, "(b t) s c -> b (t s) c", t=frames)
        if self.config.kernel_size is None:
            x = rearrange(x, "b (t s) c -> (b s) t c", t=frames)
            x = self._self_attention(f"{name}.attn", x, (frames,), scale)
            return rearrange(x, "(b s) t c -> b (t s) c", s=rows * columns)
        return self._windows(f"{name}.attn", x, shape, scale)

    def _windows(self, name: str, x: Tensor, shape: tuple[int, int, int], scale: float) -> Tensor:
        frames, rows, columns = shape
        kernel_rows, kernel_columns, kernel_frames = self.config.kernel_size
        kernel_frames = frames if kernel_frames == -1 else kernel_frames
        window = {"i": kernel_rows, "j": kernel_columns, "k": kernel_frames}
        cut = "b (h i) (w j) (t k) c -> (b h w t) (i j k) c"
        padding = (0, 0, 0, -frames % kernel_frames, 0, -columns % kernel_columns, 0, -rows % kernel_rows)

        x = rearrange(x, "b (t h w) c -> b h w t c", t=frames, h=rows)
        real = F.pad(torch.ones_like(x, dtype=torch.int32), padding)
        x = F.pad(x, padding)
        padded = {"h": x.shape[1] // kernel_rows, "w": x.shape[2] // kernel_columns, "t": x.shape[3] // kernel_frames}
        keys = rearrange(real, cut, **window)[..., 0].bool()[:, None, None]
        tokens = rearrange(x, cut, **window)
        tokens = self._self_attention(name, tokens, (kernel_frames, kernel_rows, kernel_columns), scale, keys)
        x = rearrange(tokens, "(b h w t) (i j k) c -> b (h i) (w j) (t k) c", **padded, **window)
        return rearrange(x[:, :rows, :columns, :frames], "b h w t c -> b (t h w) c")

    def _self_attention(
        self, name: str, x: Tensor, positions: tuple[int, ...] | None, scale: float, keys: Tensor | None = None
    ) -> Tensor:
        """``positions``: (frames,) for one rotation, (frames, rows, columns) for three thirds, None for none."""
        qkv = self._linear(f"{name}.qkv", x)
        q, k, v = qkv.view(*x.shape[:2], 3, self.config.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        q, k = _rms(q, self.weights[f"{name}.q_norm.weight"]), _rms(k, self.weights[f"{name}.k_norm.weight"])
        if positions is not None:
            q, k = self._rotated(q, positions, scale), self._rotated(k, positions, scale)
        if keys is not None:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=keys)
        elif x.shape[1] > (x.shape[0] if self.config.version == "1.2" else 128):
            out = F.scaled_dot_product_attention(q, k, v)
        else:
            logits = (q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)
            out = logits.to(torch.float32).softmax(dim=-1).to(v.dtype) @ v
        return self._linear(f"{name}.proj", out.transpose(1, 2).reshape(x.shape))

    def _rotated(self, x: Tensor, positions: tuple[int, ...], scale: float) -> Tensor:
        freqs = self.weights["rope.freqs"]
        if len(positions) == 1:
            return _rotate(x, torch.arange(positions[0], device=x.device), freqs)
        frames, rows, columns = positions
        axes = {"t": frames, "h": rows, "w": columns}
        order = "(t h w)" if frames == 1 else "(h w t)"
        time, row, column = x.chunk(3, dim=-1)
        time = rearrange(time, f"b n {order} d -> (b h w) n t d", **axes)
        time = _rotate(time.contiguous(), torch.arange(frames, device=x.device), freqs)
        row = rearrange(row, f"b n {order} d -> (b t w) n h d", **axes)
        row = _rotate(row.contiguous(), torch.arange(rows, device=x.device) / scale, freqs)
        column = rearrange(column, f"b n {order} d -> (b t h) n w d", **axes)
        column = _rotate(column.contiguous(), torch.arange(columns, device=x.device) / scale, freqs)
        time = rearrange(time, f"(b h w) n t d -> b n {order} d", **axes)
        row = rearrange(row, f"(b t w) n h d -> b n {order} d", **axes)
        column = rearrange(column, f"(b t h) n w d -> b n {order} d", **axes)
        return torch.cat([time, row, column], dim=-1)

    def _cross(self, name: str, x: Tensor, y: Tensor, lengths: list[int]) -> Tensor:
        heads = self.config.num_heads
        q = rearrange(self._linear(f"{name}.q_linear", x), "b n (h d) -> b h n d", h=heads)
        kv = self._linear(f"{name}.kv_linear", y).split(lengths)
        rows = []
        for query, row in zip(q.split(1), kv, strict=True):
            k, v = rearrange(row, "n (two h d) -> two 1 h n d", two=2, h=heads)
            rows.append(F.scaled_dot_product_attention(query, k, v))
        return self._linear(f"{name}.proj", rearrange(torch.cat(rows), "b h n d -> b n (h d)"))

    def _final(self, x: Tensor, t: Tensor, t0: Tensor | None, frame_mask: Tensor | None, frames: int) -> Tensor:
        def modulated(value: Tensor, time: Tensor) -> Tensor:
            table = self.weights["final_layer.scale_shift_table"]
            shift, scale = (table[None] + time[:, None]).chunk(2, dim=1)
            return F.layer_norm(value, value.shape[-1:], eps=1e-6) * (1 + scale) + shift

        value = modulated(x, t)
        if t0 is not None:
            value = _choose(frame_mask, value, modulated(value, t0), frames)
        return self._linear("final_layer.linear", value)


def _choose(frame_mask: Tensor | None, ordinary: Tensor, clean: Tensor, frames: int) -> Tensor:
    assert frame_mask is not None
    ordinary = rearrange(ordinary, "b (t s) c -> b t s c", t=frames)
    clean = rearrange(clean, "b (t s) c -> b t s c", t=frames)
    return rearrange(torch.where(frame_mask[:, :, None, None], ordinary, clean), "b t s c -> b (t s) c")


def _rms(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.to(torch.float32)
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)
    return weight * wide.to(x.dtype)


def _rotate(x: Tensor, position: Tensor, freqs: Tensor) -> Tensor:
    angles = repeat(position.float()[:, None] * freqs.float()[None], "n f -> n (f two)", two=2)
    a, b = rearrange(x, "... (d two) -> ... d two", two=2).unbind(-1)
    half_turned = rearrange(torch.stack((-b, a), dim=-1), "... d two -> ... (d two)")
    return x * angles.cos().to(x.dtype) + half_turned * angles.sin().to(x.dtype)
