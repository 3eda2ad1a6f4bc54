"""The temporal autoencoder of Open-Sora 1.2: 17 frames of image latents to 5 latent frames and back.

Works at latent resolution, so its activations are small. Source: VAE_Temporal
(opensora/models/vae/vae_temporal.py of release 1.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import ResidualBlock, group_norm
from .layers import CausalConv3d

EPSILON = 1e-5


@dataclass(frozen=True)
class TemporalConfig:
    """Widths and depth; the defaults are the released model's."""

    channels: int = 4
    latent_channels: int = 4
    filters: int = 128
    blocks: int = 4
    multipliers: tuple[int, ...] = (1, 2, 2, 4)
    downsample: tuple[bool, ...] = (False, True, True)
    groups: int = 32

    @property
    def factor(self) -> int:
        """Frames per latent frame."""
        return 2 ** sum(self.downsample)


def _convolution(operations: Any, bias: bool, channels: int, out_channels: int, kernel: int) -> CausalConv3d:
    return CausalConv3d(channels, out_channels, kernel, bias=bias, operations=operations)


def _blocks(config: TemporalConfig, operations: Any, channels: int, width: int) -> nn.ModuleList:
    return nn.ModuleList(
        ResidualBlock(
            channels if index == 0 else width, width, convolution=partial(_convolution, operations, False),
            groups=config.groups, eps=EPSILON, shortcut="conv3", operations=operations,
        )
        for index in range(config.blocks)
    )  # fmt: skip


def _through(blocks: nn.ModuleList, x: Tensor) -> Tensor:
    for block in blocks:
        x = block(x)
    return x


class TemporalEncoder(nn.Module):
    """[B, 4, T, h, w] with T a multiple of 4 to features [B, 2·latent, T/4, h, w]."""

    def __init__(self, config: TemporalConfig, operations: Any) -> None:
        super().__init__()
        widths = [config.filters * multiplier for multiplier in config.multipliers]
        self.conv_in = CausalConv3d(config.channels, config.filters, bias=False, operations=operations)
        self.block_res_blocks, self.conv_blocks = nn.ModuleList(), nn.ModuleList()
        channels = config.filters
        for index, width in enumerate(widths):
            self.block_res_blocks.append(_blocks(config, operations, channels, width))
            channels = width
            if index < len(config.downsample):
                self.conv_blocks.append(
                    CausalConv3d(width, width, front=1, time_stride=2, operations=operations)
                    if config.downsample[index]
                    else nn.Identity()
                )
        self.res_blocks = _blocks(config, operations, channels, channels)
        self.norm1 = group_norm(channels, config.groups, EPSILON, operations)
        self.conv2 = CausalConv3d(channels, 2 * config.latent_channels, 1, operations=operations)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for index, blocks in enumerate(self.block_res_blocks):
            x = _through(blocks, x)
            if index < len(self.conv_blocks):
                x = self.conv_blocks[index](x)
        x = _through(self.res_blocks, x)
        return self.conv2(F.silu(self.norm1(x)))


class TemporalDecoder(nn.Module):
    """[B, latent, T, h, w] to [B, 4, 4T, h, w]."""

    def __init__(self, config: TemporalConfig, operations: Any) -> None:
        super().__init__()
        widths = [config.filters * multiplier for multiplier in config.multipliers]
        top = widths[-1]
        self.downsample = config.downsample
        self.conv1 = CausalConv3d(config.latent_channels, top, operations=operations)
        self.res_blocks = _blocks(config, operations, top, top)
        inputs = [*widths[1:], top]
        self.block_res_blocks = nn.ModuleList(
            _blocks(config, operations, channels, width) for channels, width in zip(inputs, widths, strict=True)
        )
        self.conv_blocks = nn.ModuleList(
            CausalConv3d(width, 2 * width, operations=operations) if halved else nn.Identity()
            for width, halved in zip(widths[1:], config.downsample, strict=True)
        )
        self.norm1 = group_norm(config.filters, config.groups, EPSILON, operations)
        self.conv_out = CausalConv3d(config.filters, config.channels, operations=operations)

    def forward(self, z: Tensor) -> Tensor:
        x = _through(self.res_blocks, self.conv1(z))
        for index in reversed(range(len(self.block_res_blocks))):
            x = _through(self.block_res_blocks[index], x)
            if index > 0 and self.downsample[index - 1]:
                x = _channels_to_frames(self.conv_blocks[index - 1](x))
        return self.conv_out(F.silu(self.norm1(x)))


def _channels_to_frames(x: Tensor) -> Tensor:
    """[B, 2C, T, h, w] to [B, C, 2T, h, w]: channel 2c + s of frame t becomes channel c of frame 2t + s."""
    return x.unflatten(1, (-1, 2)).transpose(2, 3).flatten(2, 3)


class TemporalAutoencoder(nn.Module):
    """Both halves and the 1×1×1 convolutions around the latents."""

    def __init__(self, config: TemporalConfig = TemporalConfig(), *, operations: Any = nn) -> None:
        super().__init__()
        self.config = config
        self.encoder = TemporalEncoder(config, operations)
        self.decoder = TemporalDecoder(config, operations)
        moments = 2 * config.latent_channels
        self.quant_conv = CausalConv3d(moments, moments, 1, operations=operations)
        self.post_quant_conv = CausalConv3d(config.latent_channels, config.latent_channels, 1, operations=operations)

    def moments(self, x: Tensor) -> Tensor:
        """[B, 4, T, h, w] to mean and log variance [B, 8, ceil(T/4), h, w]; zero frames fill up in front."""
        missing = -x.shape[2] % self.config.factor
        if missing:
            x = F.pad(x, (0, 0, 0, 0, missing, 0))
        return self.quant_conv(self.encoder(x))

    def decode(self, z: Tensor, frames: int) -> Tensor:
        """[B, 4, T, h, w] to [B, 4, 4T - ((-frames) mod 4), h, w]."""
        x = self.decoder(self.post_quant_conv(z))
        return x[:, :, -frames % self.config.factor :]
