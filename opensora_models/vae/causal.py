"""The causal 3-D autoencoder of Open-Sora 1.3: 17 frames to 5 latent frames of 16 channels and back.

Source: opensora/models/vae_v1_3 of release 1.3 (encoder.py, decoder.py and modules/).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import MidAttention, ResidualBlock, Upsample3d, group_norm
from .image import stepped_down, stepped_up
from .layers import CausalConv3d, Downsample2d, Downsample3d, Upsample2d, activated, convolution3d, window, zeros_around
from .strips import Rows, Strips

EPSILON = 1e-6


@dataclass(frozen=True)
class CausalConfig:
    """Widths and depth; the defaults are the released model's."""

    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 16
    temporal_down: tuple[int, ...] = (1, 2)
    temporal_up: tuple[int, ...] = (2, 3)
    groups: int = 32

    @property
    def widths(self) -> list[int]:
        return [self.width * multiplier for multiplier in self.multipliers]

    @property
    def factor(self) -> int:
        """Frames per latent frame."""
        return 2 ** len(self.temporal_up)


def _convolution(operations: Any, channels: int, out_channels: int, kernel: int) -> CausalConv3d:
    return CausalConv3d(channels, out_channels, kernel, operations=operations)


def _residual(config: CausalConfig, operations: Any, channels: int, out_channels: int) -> ResidualBlock:
    return ResidualBlock(
        channels, out_channels, convolution=partial(_convolution, operations), groups=config.groups, eps=EPSILON,
        shortcut="nin_shortcut", operations=operations,
    )  # fmt: skip


class _Middle(nn.Module):
    """Residual block, attention causal over raster order (t, h, w), residual block."""

    def __init__(self, config: CausalConfig, operations: Any) -> None:
        super().__init__()
        width = config.widths[-1]
        self.block_1 = _residual(config, operations, width, width)
        self.attn_1 = causal_attention(width, config.groups, operations)
        self.block_2 = _residual(config, operations, width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))

    def strips(self, x: Rows, plan: Strips) -> Rows:
        x = self.block_1.strips(x, plan)
        x = Rows.of(self.attn_1(plan.finish(x)))
        return self.block_2.strips(x, plan)


def causal_attention(width: int, groups: int, operations: Any = nn) -> MidAttention:
    """The single-head attention of the middle, with 1×1×1 convolutions as projections."""
    return MidAttention(
        width, names=("norm", "q", "k", "v", "proj_out"),
        projection=lambda channels: CausalConv3d(channels, channels, 1, operations=operations), groups=groups,
        eps=EPSILON, causal=True, operations=operations,
    )  # fmt: skip


class _Level(nn.Module):
    """Blocks of one resolution with an optional ``downsample`` or ``upsample`` step."""

    def __init__(self, blocks: list[nn.Module], step: nn.Module | None, step_name: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self._step = step_name if step is not None else None
        if step is not None:
            self.add_module(step_name, step)

    @property
    def step(self) -> nn.Module | None:
        return getattr(self, self._step) if self._step else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return self.step(x) if self.step is not None else x


class CausalEncoder(nn.Module):
    """Pixels [B, 3, T, H, W] to mean and log variance [B, 2C, ceil(T/4), h, w]."""

    def __init__(self, config: CausalConfig, operations: Any) -> None:
        super().__init__()
        self.groups = config.groups
        self.widths = config.widths
        self.conv_in = CausalConv3d(3, config.width, operations=operations)
        self.down = nn.ModuleList()
        channels = config.width
        for index, width in enumerate(config.widths):
            blocks = [_residual(config, operations, channels if i == 0 else width, width) for i in range(config.blocks)]
            step: nn.Module | None = None
            if index < len(config.widths) - 1:
                kind = Downsample3d if index in config.temporal_down else Downsample2d
                step = kind(width, operations=operations)
            self.down.append(_Level(blocks, step, "downsample"))
            channels = width
        # Frames that become one latent frame.
        self.factor = 2 ** sum(isinstance(level.step, Downsample3d) for level in self.down)
        self.mid = _Middle(config, operations)
        self.norm_out = group_norm(channels, config.groups, EPSILON, operations)
        self.conv_out = CausalConv3d(channels, 2 * config.latent_channels, operations=operations)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))

    def strips(self, x: Tensor, plan: Strips) -> Tensor:
        """The same by strips."""
        rows = plan.store(_converted(self.conv_in, Rows.of(x)), self.groups)
        for level in self.down:
            for block in level.block:
                rows = block.strips(rows, plan)
            if level.step is not None:
                rows = plan.store(stepped_down(level.step, rows), self.groups)
        rows = self.mid.strips(rows, plan)
        out = Rows(rows.shape, activated(self.norm_out, rows), element_size=rows.element_size)
        return plan.finish(_converted(self.conv_out, out))


class CausalDecoder(nn.Module):
    """Latents [B, C, T, h, w] to pixels [B, 3, 4T - 3, H, W]."""

    def __init__(self, config: CausalConfig, operations: Any) -> None:
        super().__init__()
        self.groups = config.groups
        self.extra_frames = config.factor - 1
        self.widths = widths = config.widths
        channels = widths[-1]
        self.conv_in = CausalConv3d(config.latent_channels, channels, operations=operations)
        self.mid = _Middle(config, operations)
        levels: list[nn.Module] = []
        for index in reversed(range(len(widths))):
            width = widths[index]
            blocks = [
                _residual(config, operations, channels if i == 0 else width, width) for i in range(config.blocks + 1)
            ]
            step: nn.Module | None = None
            if index in config.temporal_up:
                step = Upsample3d(width, groups=config.groups, operations=operations)
            elif index > 0:
                step = Upsample2d(width, operations=operations)
            levels.insert(0, _Level(blocks, step, "upsample"))
            channels = width
        self.up = nn.ModuleList(levels)
        # Frames that a latent frame becomes, before the extra ones are dropped.
        self.factor = 2 ** sum(isinstance(level.step, Upsample3d) for level in levels)
        self.norm_out = group_norm(channels, config.groups, EPSILON, operations)
        self.conv_out = convolution3d(operations.Conv3d)(channels, 3, 3, padding=(0, 0, 1))

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        x = self._out(F.silu(self.norm_out(x)), 1, 1)
        return x[:, :, self.extra_frames :]

    def _out(self, x: Tensor, above: int, below: int) -> Tensor:
        return self.conv_out(zeros_around(x, 2, above, below))

    def strips(self, z: Tensor, plan: Strips) -> Tensor:
        """The same by strips."""
        rows = plan.store(_converted(self.conv_in, Rows.of(z)), self.groups)
        rows = self.mid.strips(rows, plan)
        for level in reversed(self.up):
            # One loop here, so that nothing holds the rows a level began with once its first block is done.
            for block in level.block:
                rows = block.strips(rows, plan)
            if isinstance(level.step, Upsample3d):
                rows = level.step.strips(rows, plan)
            elif level.step is not None:
                # Twice the next level's width at full size: cheaper to compute again than to hold.
                rows = plan.pass_on(stepped_up(level.step, rows), self.groups)
        read = activated(self.norm_out, rows)
        shape = (rows.shape[0], self.conv_out.out_channels, *rows.shape[2:])
        out = rows.computed(shape, lambda a, b: self._out(*window(read, rows.height, a - 1, b + 1)))
        return plan.finish(out)[:, :, self.extra_frames :]


def _converted(conv: CausalConv3d, rows: Rows) -> Rows:
    shape = (rows.shape[0], conv.conv.out_channels, *rows.shape[2:])
    return rows.computed(shape, lambda a, b: conv.strip(rows.read, rows.height, a, b))
