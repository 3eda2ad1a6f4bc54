"""How the tiny autoencoders start: linear codes in their encoders, decoders that are close to linear."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from ..opensora_models.releases.groups import FRAMES_PER_LATENT, GROUP_FRAMES
from ..opensora_models.vae.autoencoder import OpenSora12, OpenSora13
from ..opensora_models.vae.hunyuan import HunyuanDecoder
from ..opensora_models.vae.statistics import V12_IMAGE_SCALE, V12_SCALE, V12_SHIFT, V13_MEAN, V13_STD
from ..opensora_models.vae.tiled import OpenSora20
from .patch_analysis import start_from_last_frames, start_from_patches
from .rendering import render
from .scenes import SceneConfig, draw_scene

# The decoders' residual branches start small, so that they start close to a chain of their resampling convolutions;
# the biases of that chain start large, so that group norms keep the size of the signal instead of dividing it away.
BRANCH_SCALE = 0.3
BIAS = 0.5
BRANCH_ENDS = ("conv2.weight", "conv2.conv.weight", "proj_out.conv.weight", "to_out.0.weight")
CHAIN_BIASES = (
    "decoder.conv_in.conv.bias", "upsample.conv.bias",  # 1.3
    "decoder.conv_in.bias", "upsamplers.0.conv.bias",  # 1.2, image stage
    "upsamplers.0.conv.conv.bias",  # 2.0, beside the first of 1.3
    "decoder.conv1.conv.bias", "conv_blocks.1.conv.bias", "conv_blocks.2.conv.bias",  # 1.2, temporal stage
)  # fmt: skip


def clips_to_analyse(count: int, side: int, scenes: SceneConfig, seed: int) -> Tensor:
    """Pictures [N, 3, side, side] in [-1, 1] of drawn clips, every fourth frame."""
    rng = np.random.default_rng(seed)
    rows = [draw_scene(rng, GROUP_FRAMES, 1.0, scenes) for _ in range(count)]
    clips = render(rows, GROUP_FRAMES, side, side)
    return clips[:, :, ::FRAMES_PER_LATENT].transpose(1, 2).flatten(0, 1)


@torch.no_grad()
def start(model: OpenSora12 | OpenSora13 | OpenSora20, pictures: Tensor, colour_weight: float) -> None:
    """Set the weights of a freshly made ``model``; its latents then fit the release's normalisation, exactly if
    ``colour_weight`` is 0 (:func:`.start_from_patches`)."""
    if isinstance(model, OpenSora13):
        start_from_patches(model.encoder, pictures, V13_MEAN, V13_STD, colour_weight)
        decoders = [model.decoder]
    elif isinstance(model, OpenSora20):
        channels, scale, shift = model.latent_channels, model.config.scale, model.config.shift
        start_from_patches(model.encoder, pictures, (shift,) * channels, (1 / scale,) * channels, colour_weight)
        _diagonal(model.quant_conv, torch.ones(2 * channels))
        # The decoder sees latents of unit size.
        _diagonal(model.post_quant_conv, torch.full((channels,), scale), torch.full((channels,), -shift * scale))
        _open(model.decoder)
        decoders = [model.decoder]
    else:
        image, temporal = model.spatial_vae.module, model.temporal_vae
        channels = image.config.latent_channels
        # Between the stages latents have unit size.
        start_from_patches(image.encoder, pictures, (0.0,) * channels, (1 / V12_IMAGE_SCALE,) * channels, colour_weight)
        start_from_last_frames(temporal.encoder, V12_SHIFT, V12_SCALE)
        scale = torch.tensor(V12_SCALE)
        _diagonal(image.quant_conv, torch.ones(2 * channels))
        _diagonal(image.post_quant_conv, torch.full((channels,), V12_IMAGE_SCALE))
        _diagonal(temporal.quant_conv.conv, torch.ones(2 * channels))
        _diagonal(temporal.post_quant_conv.conv, 1 / scale, -torch.tensor(V12_SHIFT) / scale)
        decoders = [image.decoder, temporal.decoder]
    for decoder in decoders:
        for name, weight in decoder.named_parameters(prefix="decoder"):
            if name.endswith(BRANCH_ENDS):
                weight.mul_(BRANCH_SCALE)
            elif name.endswith(CHAIN_BIASES):
                weight.normal_(0.0, BIAS)


def _open(decoder: HunyuanDecoder) -> None:
    """Let latents through: PyTorch's own start makes a signal smaller by √3 in every layer of the chain, and 2.0's has
    no way around its enlargements. They begin close to plain ones, the other layers keep the size."""
    for name, weight in decoder.named_parameters():
        if name.endswith("upsamplers.0.conv.conv.weight"):
            weight.mul_(BRANCH_SCALE)
            weight[:, :, -1, 1, 1] += torch.eye(len(weight))
        elif name == "conv_in.conv.weight" or name.endswith("conv_shortcut.conv.weight"):
            weight.mul_(3**0.5)


def _diagonal(conv: nn.Module, gain: Tensor, offset: Tensor | None = None) -> None:
    """A 1-wide convolution that only scales and shifts each channel."""
    conv.weight.copy_(torch.diag(gain).view_as(conv.weight))
    conv.bias.zero_() if offset is None else conv.bias.copy_(offset)
