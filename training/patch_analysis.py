"""Gives the encoder a working start: a principal component analysis (PCA) of picture patches, written as its weights.

Training an encoder from random weights takes hours on two CPU cores. The best *linear* code of 8×8 patches takes a
second to compute, and this architecture can hold it exactly: residual branches at zero, each strided convolution
gathering its 2×2 pixels, and the one nonlinear step at the end made linear by feeding it x and -x (SiLU(x) - SiLU(-x)
= x) beside large constant channels, which pin the group norm's statistics. Each latent frame then describes one
picture, the last of the frames it stands for; what happens between is the decoder's to fill in.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..opensora_models.vae.causal import CausalEncoder
from ..opensora_models.vae.statistics import V13_MEAN, V13_STD

# Constant channels are this many times larger than the signal's typical size, so that a group norm's statistics
# vary by well under a percent from clip to clip.
CONSTANT_LEVEL = 30.0
# Channel deviations are (deviation of the component)^WHITENING before they are brought to a mean square of 1:
# 1 would give fine detail the same weight as colour, 0 the weight it has in pixels.
WHITENING = 0.5
LOG_VARIANCE = -6.0  # of the posterior, constant: deviation 0.05


@torch.no_grad()
def start_from_patches(encoder: CausalEncoder, pictures: Tensor) -> None:
    """Set every weight of ``encoder`` from ``pictures`` [N, 3, H, W] in [-1, 1] (sides are multiples of 8)."""
    for weight in encoder.parameters():
        weight.zero_()
    for name, weight in encoder.named_parameters():
        if "norm" in name and name.endswith("weight"):
            weight.fill_(1.0)
    widths = [level.block[-1].out_channels for level in encoder.down]
    _copy_channels(encoder.conv_in.conv, 3)
    features, channels = pictures, 3
    for index, level in enumerate(encoder.down[:-1]):
        _widen(level, channels)
        gathered = F.pixel_unshuffle(features, 2)
        basis = _components(gathered, widths[index])
        _gather(level.step, basis, channels)
        features = torch.einsum("kc,nchw->nkhw", basis, gathered)
        channels = basis.shape[0]
    latents = encoder.conv_out.conv.out_channels // 2
    basis = _components(features, latents)
    _code(encoder, basis, torch.einsum("kc,nchw->nkhw", basis, features))


def _components(features: Tensor, count: int) -> Tensor:
    """The ``count`` strongest directions of features [N, C, h, w] as rows [min(count, C), C]; no mean is taken off."""
    samples = features.transpose(0, 1).flatten(1)
    _, vectors = torch.linalg.eigh(samples @ samples.T / samples.shape[1])
    return vectors.flip(1)[:, :count].T.contiguous()


def _copy_channels(conv: nn.Module, channels: int) -> None:
    """Output channel i is input channel i of the same frame and pixel."""
    centre = conv.weight.shape[-1] // 2
    for channel in range(channels):
        conv.weight[channel, channel, -1, centre, centre] = 1.0


def _widen(level: nn.Module, channels: int) -> None:
    for block in level.block:
        if hasattr(block, "nin_shortcut"):
            _copy_channels(block.nin_shortcut.conv, channels)


def _gather(step: nn.Module, basis: Tensor, channels: int) -> None:
    """A strided convolution that sees its 2×2 pixels as ``pixel_unshuffle`` orders them, last frame only."""
    conv = step.conv.conv if hasattr(step.conv, "conv") else step.conv
    # 2-D steps pad below and right, so output i starts at pixel 2i; 3-D steps pad on both sides and start at 2i - 1.
    first = 1 if conv.weight.ndim == 5 else 0
    taps = basis.unflatten(1, (channels, 2, 2))
    place = conv.weight[:, :, -1] if conv.weight.ndim == 5 else conv.weight
    place[: basis.shape[0], :channels, first : first + 2, first : first + 2] = taps


def _code(encoder: CausalEncoder, basis: Tensor, values: Tensor) -> None:
    """The last level's widening, the norm and the last convolution: unit latents brought to the released statistics."""
    count, channels = basis.shape
    groups = encoder.norm_out.num_groups
    per_group = count // groups
    width = encoder.norm_out.num_channels // groups
    mean, deviation = values.mean(dim=(0, 2, 3)), values.std(dim=(0, 2, 3))
    scaled = deviation**WHITENING
    gain = scaled / scaled.square().mean().sqrt() / deviation  # component to unit latent
    level = CONSTANT_LEVEL * float(deviation.max())
    shortcut = encoder.down[-1].block[0].nin_shortcut.conv
    for group in range(groups):
        for slot in range(width):
            row, index = group * width + slot, group * per_group + slot // 2
            sign = 1.0 if slot % 2 == 0 else -1.0
            if slot < 2 * per_group:
                shortcut.weight[row, :channels, 0, 0, 0] = sign * basis[index]
                encoder.conv_out.conv.weight[index, row, -1, 1, 1] = sign * gain[index] * V13_STD[index]
            else:
                shortcut.bias[row] = sign * level
    spread = ((width - 2 * per_group) / width) ** 0.5 * level
    encoder.norm_out.weight.fill_(spread)
    centred = torch.tensor(V13_MEAN) - mean * gain * torch.tensor(V13_STD)
    encoder.conv_out.conv.bias[:count] = centred
    encoder.conv_out.conv.bias[count:] = LOG_VARIANCE
