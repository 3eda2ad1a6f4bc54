"""Gives an encoder a working start: a principal component analysis (PCA) of picture patches, written as its weights.

Training an encoder from random weights takes hours on two CPU cores. The best *linear* code of 8×8 patches takes a
second to compute, and Open-Sora's encoders can hold it exactly: residual branches silent, each strided convolution
gathering its 2×2 pixels, and the one nonlinear step at the end made linear by feeding it x and -x (SiLU(x) - SiLU(-x)
= x) beside large constant channels, which pin the group norm's statistics. Each latent frame then describes one
picture, the last of the frames it stands for; what happens between is the decoder's to fill in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..opensora_models.vae.blocks import MidAttention, ResidualBlock
from ..opensora_models.vae.causal import CausalEncoder
from ..opensora_models.vae.hunyuan import HunyuanEncoder
from ..opensora_models.vae.image import ImageEncoder
from ..opensora_models.vae.layers import CausalConv3d
from ..opensora_models.vae.temporal import TemporalEncoder

# Constant channels are this many times larger than the signal's typical size, so that a group norm's statistics
# vary by well under a percent from clip to clip.
CONSTANT_LEVEL = 30.0
NEARLY = 0.9  # share of a row's largest entry from which on another counts as equally large
LOG_VARIANCE = -6.0  # of the posterior, constant: deviation 0.05


@torch.no_grad()
def start_from_patches(
    encoder: CausalEncoder | ImageEncoder | HunyuanEncoder,
    pictures: Tensor,
    mean: Sequence[float],
    deviation: Sequence[float],
    colour_weight: float,
) -> None:
    """Set ``encoder`` from ``pictures`` [N, 3, H, W] in [-1, 1] (sides are multiples of 8).

    Its latents get about this mean and deviation per channel: exactly that with a ``colour_weight`` of 0, with 1 the
    weight that each has in pixels, where colour outweighs fine detail. Its residual branches stay silent until trained.
    """
    silence_branches(encoder)
    conv_in, levels, norm, conv_out = _trunk(encoder)
    for conv in (conv_in, conv_out, *(conv for blocks, step in levels for conv in (*_shortcuts(blocks), step))):
        if conv is not None:
            conv.weight.zero_()
            conv.bias.zero_()
    _copy_channels(conv_in, 3)
    features, channels = pictures, 3
    for blocks, step in levels[:-1]:
        for shortcut in _shortcuts(blocks):
            _copy_channels(shortcut, channels)
        gathered = F.pixel_unshuffle(features, 2)
        basis = _components(gathered, step.out_channels)
        _gather(step, basis, channels)
        features = torch.einsum("kc,nchw->nkhw", basis, gathered)
        channels = basis.shape[0]
    basis = _components(features, conv_out.out_channels // 2)
    values = torch.einsum("kc,nchw->nkhw", basis, features)
    spread = values.std(dim=(0, 2, 3))
    gain = _gain(spread, colour_weight) * torch.tensor(deviation)
    offset = torch.tensor(mean) - values.mean(dim=(0, 2, 3)) * gain
    shortcut = _shortcuts(levels[-1][0])[0]
    write_linear_code(shortcut, norm, conv_out, basis=basis, gain=gain, offset=offset, size=float(spread.max()))
    conv_out.bias[len(basis) :] = LOG_VARIANCE


@torch.no_grad()
def start_from_last_frames(encoder: TemporalEncoder, mean: Sequence[float], deviation: Sequence[float]) -> None:
    """Make the temporal encoder pass on the last of every four frames, brought from unit size to these statistics."""
    silence_branches(encoder)
    channels = encoder.conv_in.conv.in_channels
    trunk = [encoder.conv_in, *(step for step in encoder.conv_blocks if isinstance(step, CausalConv3d))]
    shortcuts = [shortcut for blocks in encoder.block_res_blocks for shortcut in _shortcuts(blocks)]
    for conv in (*map(_inner, trunk), *shortcuts, encoder.conv2.conv):
        conv.weight.zero_()
        if conv.bias is not None:
            conv.bias.zero_()
    for conv in (*map(_inner, trunk), *shortcuts[:-1]):
        _copy_channels(conv, channels)
    trunk[-1].conv.bias[channels] = 1.0  # the last widening has no bias of its own
    write_linear_code(
        shortcuts[-1], encoder.norm1, encoder.conv2.conv, basis=torch.eye(channels), gain=torch.tensor(deviation),
        offset=torch.tensor(mean), size=1.0, constant=channels,
    )  # fmt: skip
    encoder.conv2.conv.bias[channels:] = LOG_VARIANCE + 2 * torch.tensor(deviation).log()


def _gain(spread: Tensor, colour_weight: float) -> Tensor:
    """Factors that bring components of these deviations to a mean square of 1, strong ones still stronger."""
    scaled = spread**colour_weight
    return scaled / scaled.square().mean().sqrt() / spread


def silence_branches(network: nn.Module) -> None:
    """Set the last layer of every residual branch to zero, so that blocks pass on what they get."""
    for module in network.modules():
        if isinstance(module, ResidualBlock):
            last = _inner(module.conv2)
        elif isinstance(module, MidAttention):
            last = module.output
        else:
            continue
        for weight in last.parameters():
            weight.zero_()


Level = tuple[nn.ModuleList, nn.Module | None]


def _trunk(
    encoder: CausalEncoder | ImageEncoder | HunyuanEncoder,
) -> tuple[nn.Module, list[Level], nn.Module, nn.Module]:
    """First convolution, (blocks, strided convolution) of each level, last norm, last convolution."""
    if isinstance(encoder, CausalEncoder):
        levels = [(level.block, level.step) for level in encoder.down]
        norm = encoder.norm_out
    elif isinstance(encoder, HunyuanEncoder):
        levels = [(level.resnets, level.step) for level in encoder.down_blocks]
        norm = encoder.conv_norm_out
    else:
        levels = [(level.resnets, level.step) for level in encoder.down_blocks]
        norm = encoder.conv_norm_out
    steps = [(blocks, None if step is None else _inner(step.conv)) for blocks, step in levels]
    return _inner(encoder.conv_in), steps, norm, _inner(encoder.conv_out)


def _inner(layer: nn.Module) -> nn.Module:
    """The convolution itself, which causal layers wrap."""
    return getattr(layer, "conv", layer)


def _shortcuts(blocks: nn.ModuleList) -> list[nn.Module]:
    return [_inner(block.shortcut) for block in blocks if block.shortcut is not None]


def _components(features: Tensor, count: int) -> Tensor:
    """The ``count`` strongest directions of features [N, C, h, w] as rows [min(count, C), C]; no mean is taken off."""
    samples = features.transpose(0, 1).flatten(1)
    _, vectors = torch.linalg.eigh(samples @ samples.T / samples.shape[1])
    rows = vectors.flip(1)[:, :count].T
    # Either sign is right, and rounding would choose another one on another machine: the first large entry is positive.
    first_large = (rows.abs() >= NEARLY * rows.abs().amax(1, keepdim=True)).int().argmax(1, keepdim=True)
    return (rows * rows.gather(1, first_large).sign()).contiguous()


def _last_frame(conv: nn.Module) -> Tensor:
    """Weights [out, in, kh, kw] that act on the newest frame."""
    return conv.weight[:, :, -1] if conv.weight.ndim == 5 else conv.weight


def _copy_channels(conv: nn.Module, channels: int) -> None:
    """Output channel i is input channel i of the same frame and pixel."""
    taps = _last_frame(conv)
    centre = taps.shape[-1] // 2
    for channel in range(channels):
        taps[channel, channel, centre, centre] = 1.0


def _gather(conv: nn.Module, basis: Tensor, channels: int) -> None:
    """A strided convolution that sees its 2×2 pixels as ``pixel_unshuffle`` orders them, last frame only."""
    # 2-D steps pad below and right, so output i starts at pixel 2i; 3-D steps pad on both sides and start at 2i - 1.
    first = 1 if conv.weight.ndim == 5 else 0
    taps = basis.unflatten(1, (channels, 2, 2))
    _last_frame(conv)[: basis.shape[0], :channels, first : first + 2, first : first + 2] = taps


def write_linear_code(
    widening: nn.Module, norm: nn.Module, conv_out: nn.Module, *, basis: Tensor, gain: Tensor, offset: Tensor,
    size: float, constant: int | None = None,
) -> None:  # fmt: skip
    """Make conv_out(SiLU(norm(widening x))) the linear code gain·(basis·x) + offset; ``size`` is what basis·x reaches.

    ``widening`` is a 1-wide convolution; one without bias needs an input channel ``constant`` that always is 1.
    """
    count, channels = basis.shape
    groups = norm.num_groups
    per_group = count // groups
    width = norm.num_channels // groups
    level = CONSTANT_LEVEL * size
    taps, out = _last_frame(widening), _last_frame(conv_out)
    centre = out.shape[-1] // 2
    for group in range(groups):
        for slot in range(width):
            row, index = group * width + slot, group * per_group + slot // 2
            sign = 1.0 if slot % 2 == 0 else -1.0
            if slot < 2 * per_group:
                taps[row, :channels, 0, 0] = sign * basis[index]
                out[index, row, centre, centre] = sign * gain[index]
            elif constant is None:
                widening.bias[row] = sign * level
            else:
                taps[row, constant, 0, 0] = sign * level
    norm.weight.fill_(((width - 2 * per_group) / width) ** 0.5 * level)
    norm.bias.zero_()
    conv_out.bias[:count] = offset
