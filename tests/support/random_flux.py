"""A tiny Flux and its tiny autoencoder with random weights, for graphs in which Flux makes a picture first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from support import random_weights

SIZES: dict[str, Any] = {
    "in_channels": 64, "vec_in_dim": random_weights.CLIP_WIDTH, "context_in_dim": random_weights.CAPTION_CHANNELS,
    "hidden_size": 128, "num_heads": 1, "depth": 1, "depth_single_blocks": 1, "fused_qkv": True,
    "rotation": "interleaved", "cond_embed": False, "guidance_embed": True,
}  # fmt: skip


def save_flux(network: Path, autoencoder: Path) -> None:
    """Write both files; ComfyUI must be importable, whose class the autoencoder is."""
    from comfy.taesd.taesd import TAESD

    from opensora.opensora_models.mmdit.config import MMDiTConfig
    from opensora.opensora_models.mmdit.network import MMDiT

    torch.manual_seed(5)
    for module, path in ((MMDiT(MMDiTConfig(**SIZES)), network), (TAESD(latent_channels=16), autoencoder)):
        for name, value in module.named_parameters():
            if value.ndim:  # the autoencoder's scale and shift are numbers
                torch.nn.init.normal_(value, std=0.05, mean=float("norm" in name))
        _save(module, path)


def _save(module: torch.nn.Module, path: Path) -> None:
    from opensora.opensora_models.mmdit.keys import to_checkpoint_key

    values = {to_checkpoint_key(name): value.detach().contiguous() for name, value in module.state_dict().items()}
    save_file(values, path)
