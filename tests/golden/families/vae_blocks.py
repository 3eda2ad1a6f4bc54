"""Single blocks of 1.3's autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from opensora.opensora_models.vae.blocks import ResidualBlock, Upsample3d
from opensora.opensora_models.vae.causal import causal_attention
from opensora.opensora_models.vae.layers import CausalConv3d, Downsample2d, Downsample3d, Upsample2d, convolution3d

from ..runner import Case, runs_cases
from .vae import Settings, filled, refuse, stage

GROUPS = 32
STRIP_ROWS = 4


def _three(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3


def _residual(settings: Settings) -> nn.Module:
    channels = settings["in_channels"]
    out_channels = settings.get("out_channels") or channels
    wide = bool(settings.get("conv_shortcut"))
    block = ResidualBlock(
        channels, out_channels, convolution=CausalConv3d, groups=GROUPS, eps=1e-6,
        shortcut="conv_shortcut" if wide else "nin_shortcut",
    )  # fmt: skip
    if wide and channels != out_channels:  # no release has it
        block.conv_shortcut = CausalConv3d(channels, out_channels, 3)
    return block


def _convolution(settings: Settings) -> nn.Module:
    """Kernels and strides may differ by axis; a single stride is that of time."""
    refuse(settings, pad_mode="constant", dilation=1)
    channels, out_channels, bias = settings["chan_in"], settings["chan_out"], settings.get("bias", True)
    time, height, width = kernel = _three(settings["kernel_size"])
    stride = settings.get("stride", 1)
    layer = CausalConv3d(channels, out_channels, 1, bias=bias)
    layer.front, layer.halo = time - 1, height // 2
    layer.conv = convolution3d(nn.Conv3d)(
        channels, out_channels, kernel, bias=bias, padding=(0, 0, width // 2),
        stride=tuple(stride) if isinstance(stride, list) else (stride, 1, 1),
    )  # fmt: skip
    return layer


def _halving(settings: Settings) -> nn.Module:
    refuse(settings, with_conv=True)
    layer = Downsample3d(settings["in_channels"])
    layer.conv.conv.stride = _three(settings.get("stride", 2))
    return layer


def _of_channels(make: Callable[[int], nn.Module]) -> Callable[[Settings], nn.Module]:
    def build(settings: Settings) -> nn.Module:
        refuse(settings, with_conv=True, scale_factor=2)
        return make(settings["in_channels"])

    return build


# Blocks by the original's class names.
_BLOCKS: dict[str, Callable[[Settings], nn.Module]] = {
    "Resnet3DBlock": _residual,
    "AttnBlock": _of_channels(lambda channels: causal_attention(channels, GROUPS)),
    "Downsample2D": _of_channels(Downsample2d),
    "Downsample3D": _halving,
    "Upsample2D": _of_channels(Upsample2d),
    "Upsample3D": _of_channels(lambda channels: Upsample3d(channels, groups=GROUPS)),
    "CausalConv3dPlainAR": _convolution,
}


@runs_cases(stage("v1.3", *_BLOCKS), "vae")
def block(case: Case) -> dict[str, Tensor]:
    """One block; every output is what it returns."""
    y = filled(_BLOCKS[str(case.root)](case.config), case)(case.need("x").to(case.dtype))
    return dict.fromkeys(case.expected, y)


@runs_cases(stage("v1.3", "Conv3d"), "vae")
def convolution_in_tiles(case: Case) -> list[dict[str, Tensor]]:
    """The original's tiled convolution equals the plain one, so ours is the plain one, computed by strips."""
    settings = case.config
    kernel, stride, padding = (
        _three(settings.get(n, d)) for n, d in (("kernel_size", 3), ("stride", 1), ("padding", 0))
    )
    conv = filled(
        nn.Conv3d(settings["in_channels"], settings["out_channels"], kernel, stride, bias=settings.get("bias", True)),
        case,
    )
    x = nn.functional.pad(case.need("x"), [side for pad in reversed(padding) for side in (pad, pad)])
    rows = (x.shape[-2] - kernel[1]) // stride[1] + 1
    read = [(first * stride[1], min(first + STRIP_ROWS, rows)) for first in range(0, rows, STRIP_ROWS)]
    strips = [conv(x[..., first : (last - 1) * stride[1] + kernel[1], :]) for first, last in read]
    return [dict.fromkeys(case.expected, conv(x)), dict.fromkeys(case.expected, torch.cat(strips, dim=-2))]
