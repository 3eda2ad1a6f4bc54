"""The networks of Open-Sora 2.0's video autoencoder (the Hunyuan VAE): 4k + 1 frames to k + 1 latent frames and back.

Causal in time, 8 pixels per latent, with statistics of the group norms over everything a tile holds. Keys are the
original's. Source: opensora/models/hunyuan_vae/{vae,unet_causal_3d_blocks}.py of release 2.0.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import MidAttention, ResidualBlock, group_norm
from .edges import BorderConv3d, BorderDownsample, BorderUpsample, Factors
from .layers import ATTENTION_QUERIES, activated
from .strips import Rows, Strips

EPSILON = 1e-6
# Share of a full-size layer up to which others are stored even in a lean run. One level below full size, where there
# are an eighth of the positions, the widest layer has half the bytes; together they stay below the peak of that layer.
HELD = 0.6


@dataclass(frozen=True)
class HunyuanConfig:
    """Widths and depth; the defaults are the released model's.

    ``time_factor``, ``space_factor``: what the steps are meant to reduce by; ``factors`` says what they do.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 16
    groups: int = 32
    channels: int = 3
    time_factor: int = 4
    space_factor: int = 8
    attention: bool = True
    scale: float = 0.476986
    shift: float = 0.0

    @property
    def steps(self) -> list[Factors | None]:
        """Reduction of T, H and W after each level; the decoder enlarges by the same list in the same order."""
        last = len(self.widths) - 1
        time_levels, space_levels = self.time_factor.bit_length() - 1, self.space_factor.bit_length() - 1
        steps: list[Factors | None] = []
        for level in range(len(self.widths)):
            space = 2 if level < space_levels else 1
            time = 2 if last - time_levels <= level < last else 1
            steps.append((time, space, space) if time * space > 1 else None)
        return steps

    @property
    def factors(self) -> tuple[int, int]:
        """Frames and pixels per latent."""
        steps = [step for step in self.steps if step is not None]
        return math.prod(step[0] for step in steps), math.prod(step[1] for step in steps)


def frame_attention(q: Tensor, k: Tensor, v: Tensor, frames: int) -> Tensor:
    """Single-head attention over [N, frames · positions, C], where a frame sees itself and earlier frames.

    The frames are taken one after the other, so no mask is needed and half the work saved.
    """
    positions = q.shape[1] // frames
    out = torch.empty_like(v)
    for frame in range(frames):
        seen = (frame + 1) * positions
        for first in range(frame * positions, seen, ATTENTION_QUERIES):
            queries = slice(first, min(first + ATTENTION_QUERIES, seen))
            out[:, queries] = F.scaled_dot_product_attention(
                q[:, None, queries], k[:, None, :seen], v[:, None, :seen]
            ).squeeze(1)
    return out


class FrameAttention(MidAttention):
    """Attention of the middle: each position sees its own frame and the earlier ones."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor) -> Tensor:
        return frame_attention(q, k, v, x.shape[2])


def _attention(width: int, groups: int, operations: Any) -> FrameAttention:
    attention = FrameAttention(
        width, names=("group_norm", "to_q", "to_k", "to_v", "to_out"),
        projection=lambda channels: operations.Linear(channels, channels), groups=groups, eps=EPSILON, causal=True,
        operations=operations,
    )  # fmt: skip
    attention.to_out = nn.ModuleList([attention.to_out])  # key to_out.0
    return attention


def _residuals(channels: Iterable[int], width: int, config: HunyuanConfig, operations: Any) -> nn.ModuleList:
    """Residual blocks to ``width``, one for each number of incoming channels."""
    return nn.ModuleList(
        ResidualBlock(
            incoming, width, convolution=partial(BorderConv3d, operations=operations), groups=config.groups,
            eps=EPSILON, shortcut="conv_shortcut", operations=operations,
        )
        for incoming in channels
    )  # fmt: skip


class _Middle(nn.Module):
    """Residual block, attention, residual block."""

    def __init__(self, config: HunyuanConfig, operations: Any) -> None:
        super().__init__()
        width = config.widths[-1]
        self.attentions = nn.ModuleList([_attention(width, config.groups, operations)] if config.attention else [])
        self.resnets = _residuals([width, width], width, config, operations)

    def forward(self, x: Tensor) -> Tensor:
        x = self.resnets[0](x)
        for attention in self.attentions:
            x = attention(x)
        return self.resnets[1](x)

    def strips(self, x: Rows, plan: Strips) -> Rows:
        x = self.resnets[0].strips(x, plan)
        for attention in self.attentions:
            x = Rows.of(attention(plan.finish(x)))
        return self.resnets[1].strips(x, plan)


class _Level(nn.Module):
    """Residual blocks of one resolution and the step to the next, keyed ``downsamplers.0`` or ``upsamplers.0``."""

    def __init__(self, resnets: nn.ModuleList, name: str, step: nn.Module | None) -> None:
        super().__init__()
        self.resnets = resnets
        self._name = name
        if step is not None:
            self.add_module(name, step)

    @property
    def step(self) -> nn.Module | None:
        """The layer that changes the resolution."""
        steps = getattr(self, self._name, None)
        return None if steps is None else steps[0]

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        return x if self.step is None else self.step(x)


def _stepped(step: nn.Module, rows: Rows) -> Rows:
    """The rows after a layer that changes the resolution."""
    return rows.computed(step.out_shape(rows.shape), lambda a, b: step.strip(rows.read, rows.height, a, b))


def _converted(conv: BorderConv3d, rows: Rows) -> Rows:
    return _stepped(conv, rows)


class HunyuanEncoder(nn.Module):
    """Pixels [B, 3, T, H, W] to features [B, 2C, (T-1)//4 + 1, h, w], partial latents counted as whole."""

    def __init__(self, config: HunyuanConfig, operations: Any) -> None:
        super().__init__()
        self.groups = config.groups
        width = config.widths[0]
        self.conv_in = BorderConv3d(config.channels, width, operations=operations)
        self.down_blocks = nn.ModuleList()
        for level, factors in zip(config.widths, config.steps, strict=True):
            blocks = _residuals([width] + [level] * (config.layers - 1), level, config, operations)
            self.down_blocks.append(_Level(blocks, "downsamplers", _down(level, factors, operations)))
            width = level
        self.mid_block = _Middle(config, operations)
        self.conv_norm_out = group_norm(width, config.groups, EPSILON, operations)
        self.conv_out = BorderConv3d(width, 2 * config.latent_channels, operations=operations)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))

    def strips(self, x: Tensor, plan: Strips) -> Tensor:
        """The same by strips."""
        first = _converted(self.conv_in, Rows.of(x))
        # Three channels to many: cheaper to compute again than to hold.
        rows = plan.pass_on(first, self.groups)
        plan = _holding(plan, first.bytes)
        for level in self.down_blocks:
            for block in level.resnets:
                rows = block.strips(rows, plan)
            if level.step is not None:
                rows = plan.store(_stepped(level.step, rows), self.groups)
        rows = self.mid_block.strips(rows, plan)
        return _normed_out(self.conv_norm_out, self.conv_out, rows, plan)


class HunyuanDecoder(nn.Module):
    """Features [B, C, T, h, w] to pixels [B, 3, 4T - 3, H, W]."""

    def __init__(self, config: HunyuanConfig, operations: Any) -> None:
        super().__init__()
        self.groups = config.groups
        width = config.widths[-1]
        self.conv_in = BorderConv3d(config.latent_channels, width, operations=operations)
        self.up_blocks = nn.ModuleList()
        for level, factors in zip(reversed(config.widths), config.steps, strict=True):
            blocks = _residuals([width] + [level] * config.layers, level, config, operations)
            self.up_blocks.append(_Level(blocks, "upsamplers", _up(level, factors, operations)))
            width = level
        self.mid_block = _Middle(config, operations)
        self.conv_norm_out = group_norm(width, config.groups, EPSILON, operations)
        self.conv_out = BorderConv3d(width, config.channels, operations=operations)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def strips(self, z: Tensor, plan: Strips) -> Tensor:
        """The same by strips."""
        plan = _holding(plan, self._full_size(z))
        rows = plan.store(_converted(self.conv_in, Rows.of(z)), self.groups)
        rows = self.mid_block.strips(rows, plan)
        for level in self.up_blocks:
            for block in level.resnets:
                rows = block.strips(rows, plan)
            if level.step is not None:
                # Twice the next level's width at full size: cheaper to compute again than to hold.
                rows = plan.pass_on(_stepped(level.step, rows), self.groups)
        return _normed_out(self.conv_norm_out, self.conv_out, rows, plan)

    def _full_size(self, z: Tensor) -> int:
        """Bytes of a layer of the last level."""
        shape = tuple(z.shape)
        for level in self.up_blocks:
            shape = shape if level.step is None else level.step.out_shape(shape)
        return z.element_size() * math.prod(shape) // shape[1] * self.conv_norm_out.num_channels


def _holding(plan: Strips, full: int) -> Strips:
    """The plan with everything stored that is small beside ``full`` bytes, the layer all others wait for."""
    return replace(plan, hold=int(HELD * full))


def _down(width: int, factors: Factors | None, operations: Any) -> nn.ModuleList | None:
    return None if factors is None else nn.ModuleList([BorderDownsample(width, factors, operations=operations)])


def _up(width: int, factors: Factors | None, operations: Any) -> nn.ModuleList | None:
    return None if factors is None else nn.ModuleList([BorderUpsample(width, factors, operations=operations)])


def _normed_out(norm: nn.Module, conv: BorderConv3d, rows: Rows, plan: Strips) -> Tensor:
    normed = Rows(rows.shape, activated(norm, rows), element_size=rows.element_size)
    return plan.finish(_converted(conv, normed))
