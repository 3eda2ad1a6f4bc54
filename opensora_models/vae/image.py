"""The image autoencoder of Open-Sora 1.2's spatial stage: the Stable Diffusion / SDXL design, frame by frame.

Keys are those of the diffusers library (``down_blocks.0.resnets.0.conv1.weight`` …). Source: AutoencoderKL as used by
VideoAutoencoderKL (opensora/models/vae/vae.py of release 1.2).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import MidAttention, ResidualBlock, group_norm
from .layers import Downsample2d, Upsample2d, activated, same_size_strip
from .strips import Rows, Strips

EPSILON = 1e-6


@dataclass(frozen=True)
class ImageConfig:
    """Widths and depth; the defaults are the released model's."""

    widths: tuple[int, ...] = (128, 256, 512, 512)
    layers: int = 2
    latent_channels: int = 4
    groups: int = 32


def _convolution(operations: Any, channels: int, out_channels: int, kernel: int) -> nn.Module:
    return operations.Conv2d(channels, out_channels, kernel, padding=kernel // 2)


def _residual(config: ImageConfig, operations: Any, channels: int, out_channels: int) -> ResidualBlock:
    return ResidualBlock(
        channels, out_channels, convolution=partial(_convolution, operations), groups=config.groups, eps=EPSILON,
        shortcut="conv_shortcut", operations=operations,
    )  # fmt: skip


class _Output(nn.ModuleList):
    """Holds the output projection under the key ``to_out.0``."""


class _Middle(nn.Module):
    """Two residual blocks around attention over all positions of a frame."""

    def __init__(self, config: ImageConfig, operations: Any) -> None:
        super().__init__()
        width = config.widths[-1]
        attention = MidAttention(
            width, names=("group_norm", "to_q", "to_k", "to_v", "to_out"),
            projection=lambda channels: operations.Linear(channels, channels), groups=config.groups, eps=EPSILON,
            causal=False, operations=operations,
        )  # fmt: skip
        attention.to_out = _Output([attention.to_out])
        self.attentions = nn.ModuleList([attention])
        self.resnets = nn.ModuleList([_residual(config, operations, width, width) for _ in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))

    def strips(self, x: Rows, plan: Strips) -> Rows:
        x = self.resnets[0].strips(x, plan)
        x = Rows.of(self.attentions[0](plan.finish(x)))
        return self.resnets[1].strips(x, plan)


class _Level(nn.Module):
    """Residual blocks of one resolution and the step to the next, keyed ``resnets`` and ``downsamplers`` or so."""

    def __init__(self, blocks: list[nn.Module], step: nn.Module | None, step_name: str) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(blocks)
        self._step = step_name if step is not None else None
        if step is not None:
            self.add_module(step_name, nn.ModuleList([step]))

    @property
    def step(self) -> nn.Module | None:
        return getattr(self, self._step)[0] if self._step else None

    def forward(self, x: Tensor) -> Tensor:
        for block in self.resnets:
            x = block(x)
        return self.step(x) if self.step is not None else x


class ImageEncoder(nn.Module):
    """Pixels [N, 3, H, W] to features [N, 2C, h, w]."""

    def __init__(self, config: ImageConfig, operations: Any) -> None:
        super().__init__()
        self.groups = config.groups
        self.conv_in = operations.Conv2d(3, config.widths[0], 3, padding=1)
        self.down_blocks = nn.ModuleList()
        channels = config.widths[0]
        for index, width in enumerate(config.widths):
            blocks = [_residual(config, operations, channels if i == 0 else width, width) for i in range(config.layers)]
            last = index == len(config.widths) - 1
            self.down_blocks.append(
                _Level(blocks, None if last else Downsample2d(width, operations=operations), "downsamplers")
            )
            channels = width
        self.mid_block = _Middle(config, operations)
        self.conv_norm_out = group_norm(channels, config.groups, EPSILON, operations)
        self.conv_out = operations.Conv2d(channels, 2 * config.latent_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(self.mid_block(x))))

    def strips(self, x: Tensor, plan: Strips) -> Tensor:
        """The same by strips."""
        rows = plan.store(_same_size(self.conv_in, self.conv_in.out_channels, Rows.of(x)), self.groups)
        for level in self.down_blocks:
            for block in level.resnets:
                rows = block.strips(rows, plan)
            if level.step is not None:
                rows = plan.store(stepped_down(level.step, rows), self.groups)
        rows = self.mid_block.strips(rows, plan)
        return plan.finish(_normed_out(self.conv_norm_out, self.conv_out, rows))


class ImageDecoder(nn.Module):
    """Features [N, C, h, w] to pixels [N, 3, H, W]."""

    def __init__(self, config: ImageConfig, operations: Any) -> None:
        super().__init__()
        self.groups = config.groups
        widths = config.widths[::-1]
        self.conv_in = operations.Conv2d(config.latent_channels, widths[0], 3, padding=1)
        self.up_blocks = nn.ModuleList()
        channels = widths[0]
        for index, width in enumerate(widths):
            blocks = [
                _residual(config, operations, channels if i == 0 else width, width) for i in range(config.layers + 1)
            ]
            last = index == len(widths) - 1
            self.up_blocks.append(
                _Level(blocks, None if last else Upsample2d(width, operations=operations), "upsamplers")
            )
            channels = width
        self.mid_block = _Middle(config, operations)
        self.conv_norm_out = group_norm(channels, config.groups, EPSILON, operations)
        self.conv_out = operations.Conv2d(channels, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.mid_block(self.conv_in(z))
        for level in self.up_blocks:
            x = level(x)
        return self.conv_out(F.silu(self.conv_norm_out(x)))

    def strips(self, z: Tensor, plan: Strips) -> Tensor:
        """The same by strips."""
        rows = plan.store(_same_size(self.conv_in, self.conv_in.out_channels, Rows.of(z)), self.groups)
        rows = self.mid_block.strips(rows, plan)
        for level in self.up_blocks:
            for block in level.resnets:
                rows = block.strips(rows, plan)
            if level.step is not None:
                rows = plan.keep(stepped_up(level.step, rows), self.groups)
        return plan.finish(_normed_out(self.conv_norm_out, self.conv_out, rows))


def _same_size(conv: nn.Module, out_channels: int, rows: Rows) -> Rows:
    shape = (rows.shape[0], out_channels, *rows.shape[2:])
    halo = conv.kernel_size[0] // 2
    return rows.computed(shape, lambda a, b: same_size_strip(conv, halo, rows.read, rows.height, a, b))


def _normed_out(norm: nn.Module, conv: nn.Module, rows: Rows) -> Rows:
    shape = (rows.shape[0], conv.out_channels, *rows.shape[2:])
    read = activated(norm, rows)
    return rows.computed(shape, lambda a, b: same_size_strip(conv, 1, read, rows.height, a, b))


def stepped_down(step: nn.Module, rows: Rows) -> Rows:
    """The rows after a down-sampling layer."""
    return rows.computed(step.out_shape(rows.shape), lambda a, b: step.strip(rows.read, rows.height, a, b))


def stepped_up(step: nn.Module, rows: Rows) -> Rows:
    """The rows after a 2-D up-sampling layer."""
    shape = (*rows.shape[:-2], 2 * rows.shape[-2], 2 * rows.shape[-1])
    return rows.computed(shape, lambda a, b: step.strip(rows.read, shape[-2], a, b))


class ImageAutoencoder(nn.Module):
    """Encoder, decoder and the two 1×1 convolutions around the latents."""

    def __init__(self, config: ImageConfig = ImageConfig(), *, operations: Any = nn) -> None:
        super().__init__()
        self.config = config
        channels = config.latent_channels
        self.encoder = ImageEncoder(config, operations)
        self.decoder = ImageDecoder(config, operations)
        self.quant_conv = operations.Conv2d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = operations.Conv2d(channels, channels, 1)

    def moments(self, frames: Tensor, plan: Strips | None = None) -> Tensor:
        """Frames [N, 3, H, W] in [-1, 1] to mean and log variance [N, 2C, h, w]; plain without a plan."""
        features = self.encoder(frames) if plan is None else self.encoder.strips(frames, plan)
        return self.quant_conv(features)

    def decode(self, latents: Tensor, plan: Strips | None = None) -> Tensor:
        """Latents [N, C, h, w] (before any scaling) to frames [N, 3, H, W]; plain without a plan."""
        features = self.post_quant_conv(latents)
        return self.decoder(features) if plan is None else self.decoder.strips(features, plan)
