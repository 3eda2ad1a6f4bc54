"""Gives the latents of a trained 1.2 one deviation in all channels, without changing what it draws.

Colour is most of a picture and outlines are little of it, and so it is in their latents. Decoders may learn so; a
diffusion model learns the stronger channels first, and what tells shapes apart is in the weak ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..opensora_models.vae.autoencoder import OpenSora12, VideoAutoencoder
from ..opensora_models.vae.tiled import TiledAutoencoder
from .latents import LatentCode


@torch.no_grad()
def equalise(model: VideoAutoencoder | TiledAutoencoder, pictures: Tensor) -> None:
    """Bring every latent channel to deviation 1 over ``pictures`` [N, 3, H, W] in [-1, 1], in the layers next to the
    latents: what the encoder is multiplied by the decoder is divided by. ValueError if ``model`` is no 1.2."""
    if not isinstance(model, OpenSora12):
        raise ValueError(f"Open-Sora {model.version} has no layers of that kind next to its latents; 1.2 has.")
    factors = 1 / LatentCode(model)(pictures).std(dim=(0, 2, 3))
    shift = model.shift.flatten()  # where latents of size 0 lie
    stage = model.temporal_vae
    last, first = stage.encoder.conv2.conv, stage.post_quant_conv.conv
    channels = len(factors)  # means; the log variances behind them stay
    last.weight[:channels].mul_(factors[:, None, None, None, None])
    last.bias[:channels].sub_(shift).mul_(factors).add_(shift)
    first.bias.add_((first.weight.flatten(1) * (shift - shift / factors)).sum(1))
    first.weight.div_(factors[:, None, None, None])
