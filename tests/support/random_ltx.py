"""A tiny LTX-Video with random weights, as the network alone or as a checkpoint with an autoencoder."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

NETWORK = {
    "num_attention_heads": 32, "attention_head_dim": 4, "cross_attention_dim": 128, "caption_channels": 64,
    "num_layers": 1, "in_channels": 128,
}  # fmt: skip
BLOCKS = [["compress_all", 1], ["compress_all", 1], ["compress_all", 1], ["res_x", 1]]
AUTOENCODER = {
    "dims": 3, "latent_channels": 128, "blocks": BLOCKS, "norm_layer": "pixel_norm", "patch_size": 4,
    "latent_log_var": "uniform", "encoder_base_channels": 16, "decoder_base_channels": 16,
}  # fmt: skip
"""32 pixels and 8 frames a latent, as the released one."""


def random_weights(network: torch.nn.Module) -> dict[str, Tensor]:
    """Small seeded weights, norms near one."""
    weights = {}
    for name, entry in network.state_dict().items():
        generator = torch.Generator().manual_seed(zlib.crc32(name.encode()))
        value = torch.randn(entry.shape, generator=generator) / max(1, entry[0].numel() if entry.ndim else 1) ** 0.5
        weights[name] = 1 + 0.1 * value if entry.ndim == 1 and name.endswith("weight") else value
    return weights


def _network() -> dict[str, Tensor]:
    import comfy.ldm.lightricks.model
    import comfy.ops

    operations = comfy.ops.disable_weight_init
    make: Any = comfy.ldm.lightricks.model.LTXVModel
    return random_weights(make(**NETWORK, dtype=torch.float32, device="cpu", operations=operations))


def save_network(path: Path) -> None:
    """The network alone."""
    save_file(_network(), path, metadata={"config": json.dumps({"transformer": NETWORK})})


def save_checkpoint(path: Path) -> None:
    """The network and its autoencoder in one file, as LTX-Video was released."""
    from comfy.ldm.lightricks.vae.causal_video_autoencoder import VideoVAE

    autoencoder = random_weights(VideoVAE(config=AUTOENCODER))
    parts = {"model.diffusion_model.": _network(), "vae.": autoencoder}
    weights = {prefix + name: value.contiguous() for prefix, part in parts.items() for name, value in part.items()}
    save_file(weights, path, metadata={"config": json.dumps({"transformer": NETWORK, "vae": AUTOENCODER})})
