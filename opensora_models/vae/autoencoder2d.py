"""The 2-D image autoencoder of Open-Sora 2.0 (Flux type): frames are folded into the batch.

Source: opensora/models/vae/autoencoder_2d.py of release 2.0; key list of 244 entries, no quantisation convolutions.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import MidAttention, ResidualBlock, group_norm
from .distribution import Posterior

EPSILON = 1e-6


@dataclass(frozen=True)
class Autoencoder2dConfig:
    """Widths, depth and the normalisation of latents; the defaults are the released ones."""

    in_channels: int = 3
    out_channels: int = 3
    width: int = 128
    multipliers: tuple[int, ...] = (1, 2, 4, 4)
    blocks: int = 2
    latent_channels: int = 16
    scale: float = 0.3611
    shift: float = 0.1159
    groups: int = 32


def residual_block(channels: int, out_channels: int, groups: int = 32, operations: Any = nn) -> ResidualBlock:
    """The residual block of this autoencoder."""

    def convolution(inputs: int, outputs: int, kernel: int) -> nn.Module:
        return operations.Conv2d(inputs, outputs, kernel, padding=kernel // 2)

    return ResidualBlock(
        channels, out_channels, convolution=convolution, groups=groups, eps=EPSILON, shortcut="nin_shortcut",
        operations=operations,
    )  # fmt: skip


def attention_block(channels: int, groups: int = 32, operations: Any = nn) -> MidAttention:
    """Single-head attention over all positions of a frame, without a mask."""
    return MidAttention(
        channels, names=("norm", "q", "k", "v", "proj_out"), projection=lambda c: operations.Conv2d(c, c, 1),
        groups=groups, eps=EPSILON, causal=False, operations=operations,
    )  # fmt: skip


class _Down(nn.Module):
    """Halves a frame: a zero row below, a zero column right, 3×3 with stride 2."""

    def __init__(self, channels: int, operations: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class _Up(nn.Module):
    """Doubles a frame by repetition, then 3×3."""

    def __init__(self, channels: int, operations: Any) -> None:
        super().__init__()
        self.conv = operations.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Level(nn.Module):
    """Blocks of one resolution, then ``downsample`` or ``upsample`` where there is one."""

    def __init__(self, blocks: list[nn.Module], step: nn.Module | None, name: str) -> None:
        super().__init__()
        self.block = nn.ModuleList(blocks)
        self._step = name if step is not None else None
        if step is not None:
            self.add_module(name, step)

    def forward(self, x: Tensor) -> Tensor:
        for block in self.block:
            x = block(x)
        return getattr(self, self._step)(x) if self._step else x


class _Middle(nn.Module):
    def __init__(self, channels: int, groups: int, operations: Any) -> None:
        super().__init__()
        self.block_1 = residual_block(channels, channels, groups, operations)
        self.attn_1 = attention_block(channels, groups, operations)
        self.block_2 = residual_block(channels, channels, groups, operations)

    def forward(self, x: Tensor) -> Tensor:
        return self.block_2(self.attn_1(self.block_1(x)))


class Encoder2d(nn.Module):
    """Pictures [N, 3, H, W] to mean and log variance [N, 2C, H/8, W/8] (four levels)."""

    def __init__(self, config: Autoencoder2dConfig, operations: Any) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        self.conv_in = operations.Conv2d(config.in_channels, config.width, 3, padding=1)
        self.down = nn.ModuleList()
        channels = config.width
        for level, width in enumerate(widths):
            blocks = _chain(channels, width, config.blocks, config.groups, operations)
            step = _Down(width, operations) if level < len(widths) - 1 else None
            self.down.append(_Level(blocks, step, "downsample"))
            channels = width
        self.mid = _Middle(channels, config.groups, operations)
        self.norm_out = group_norm(channels, config.groups, EPSILON, operations)
        self.conv_out = operations.Conv2d(channels, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(self.mid(x))))


class Decoder2d(nn.Module):
    """Latents [N, C, h, w] to pictures [N, 3, 8h, 8w]; levels are named from the finest, and run from the coarsest."""

    def __init__(self, config: Autoencoder2dConfig, operations: Any) -> None:
        super().__init__()
        widths = [config.width * multiplier for multiplier in config.multipliers]
        channels = widths[-1]
        self.conv_in = operations.Conv2d(config.latent_channels, channels, 3, padding=1)
        self.mid = _Middle(channels, config.groups, operations)
        levels: list[nn.Module] = []
        for level in reversed(range(len(widths))):
            blocks = _chain(channels, widths[level], config.blocks + 1, config.groups, operations)
            step = _Up(widths[level], operations) if level > 0 else None
            levels.insert(0, _Level(blocks, step, "upsample"))
            channels = widths[level]
        self.up = nn.ModuleList(levels)
        self.norm_out = group_norm(channels, config.groups, EPSILON, operations)
        self.conv_out = operations.Conv2d(channels, config.out_channels, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid(self.conv_in(z))
        for level in reversed(self.up):
            x = level(x)
        return self.conv_out(F.silu(self.norm_out(x)))


def _chain(channels: int, width: int, count: int, groups: int, operations: Any) -> list[nn.Module]:
    return [residual_block(channels if index == 0 else width, width, groups, operations) for index in range(count)]


class Autoencoder2d(nn.Module):
    """Clips [B, 3, T, H, W] to latents scale·(z - shift) [B, C, T, h, w] and back, frame by frame."""

    def __init__(self, config: Autoencoder2dConfig | None = None, *, operations: Any = nn) -> None:
        super().__init__()
        self.config = config or Autoencoder2dConfig()
        self.encoder = Encoder2d(self.config, operations)
        self.decoder = Decoder2d(self.config, operations)

    def posterior(self, video: Tensor) -> Posterior:
        """The Gaussian of a clip's latents, before scale and shift."""
        return Posterior(_by_frames(self.encoder, video))

    def encode(self, video: Tensor, noise: Tensor | None = None) -> Tensor:
        """Latents of a clip; ``noise`` [B, C, T, h, w] draws from the posterior, None takes its mean."""
        posterior = self.posterior(video)
        z = posterior.mean if noise is None else posterior.draw(noise)
        return self.config.scale * (z - self.config.shift)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to pixels in about [-1, 1]."""
        return _by_frames(self.decoder, latents / self.config.scale + self.config.shift)


def _by_frames(call: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:
    """Apply a picture network to every frame of [B, C, T, H, W]."""
    batch = x.shape[0]
    frames = call(x.transpose(1, 2).flatten(0, 1))
    return frames.unflatten(0, (batch, -1)).transpose(1, 2)
