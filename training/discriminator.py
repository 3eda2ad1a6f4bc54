"""Patch discriminators: small convolution stacks that judge every patch of a picture or clip as real or made.

Design: PatchGAN (Isola et al. 2017, arXiv 1611.07004). Sources: NLayerDiscriminator and NLayerDiscriminator3D of
Open-Sora 1.2, 1.3 and 2.0, which differ in kernel, strides and dropout.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

MAX_WIDENING = 8  # a block is at most this many times as wide as the first layer
SLOPE = 0.2
WEIGHT_DEVIATION = 0.02

Stride = tuple[int, ...]


@dataclass(frozen=True)
class DiscriminatorConfig:
    """``blocks`` is upstream's n_layers; ``first_stride`` is that of the first convolution, ``strides`` of block 1,
    and ``later_stride`` of blocks 2 … blocks - 1. Block ``blocks`` and the last convolution have stride 1."""

    channels: int = 3
    width: int = 64
    blocks: int = 3
    kernel: int = 3
    first_stride: Stride = (2, 2, 2)
    second_stride: Stride = (2, 2, 2)
    later_stride: Stride = (1, 2, 2)
    dropout: float | None = None

    @property
    def dimensions(self) -> int:
        """2 for pictures, 3 for clips."""
        return len(self.first_stride)


Release = Literal["1.2 2d", "1.2", "1.3", "2.0"]


def released_config(release: Release, *, channels: int = 3, width: int = 64, blocks: int | None = None,
                    dropout: float = 0.3) -> DiscriminatorConfig:  # fmt: skip
    """The discriminators of the releases; ``dropout`` is used by 2.0 alone."""
    blocks = blocks if blocks is not None else (5 if release == "2.0" else 3)
    if release == "1.2 2d":
        plane = (2, 2)
        return DiscriminatorConfig(channels, width, blocks, 4, plane, plane, plane)
    if release == "1.2":
        return DiscriminatorConfig(channels, width, blocks, 4, second_stride=(1, 2, 2))
    return DiscriminatorConfig(channels, width, blocks, dropout=dropout if release == "2.0" else None)


class PatchDiscriminator(nn.Module):
    """Pictures [N, C, H, W] or clips [B, C, T, H, W] to logits [N, 1, …], one per patch. Keys ``main.N``."""

    def __init__(self, config: DiscriminatorConfig) -> None:
        super().__init__()
        self.config = config
        convolution = nn.Conv3d if config.dimensions == 3 else nn.Conv2d
        norm = nn.BatchNorm3d if config.dimensions == 3 else nn.BatchNorm2d
        layers: list[nn.Module] = [
            convolution(config.channels, config.width, config.kernel, config.first_stride, padding=1),
            nn.LeakyReLU(SLOPE),
        ]
        channels = config.width
        for number in range(1, config.blocks + 1):
            width = config.width * min(2**number, MAX_WIDENING)
            stride = _stride(config, number)
            layers += [
                convolution(channels, width, config.kernel, stride, padding=1, bias=False),
                norm(width),
                nn.LeakyReLU(SLOPE),
            ]
            if config.dropout is not None:
                layers.append(nn.Dropout(config.dropout))
            channels = width
        layers.append(convolution(channels, 1, config.kernel, 1, padding=1))
        self.main = nn.Sequential(*layers)
        self.apply(_initialise)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x)


def _stride(config: DiscriminatorConfig, number: int) -> Stride:
    if number == config.blocks:
        return (1,) * config.dimensions
    return config.second_stride if number == 1 else config.later_stride


def _initialise(module: nn.Module) -> None:
    """Upstream's start: convolutions N(0, 0.02), norm weights N(1, 0.02), norm biases 0."""
    if isinstance(module, (nn.Conv2d, nn.Conv3d)):
        nn.init.normal_(module.weight, 0.0, WEIGHT_DEVIATION)
    elif isinstance(module, (nn.BatchNorm2d, nn.BatchNorm3d)):
        nn.init.normal_(module.weight, 1.0, WEIGHT_DEVIATION)
        nn.init.zeros_(module.bias)
