"""Reads back the diffusion model and text encoder that :mod:`.export` wrote, for a run that goes on from them."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ..opensora_models.releases.groups import Version
from ..opensora_models.stdit3.keys import from_checkpoint_key

NETWORK_FILE = "diffusion_models/opensora-tiny-v{}.safetensors"
CLIP_FILE = "text_encoders/opensora-tiny-clip-l.safetensors"
TEXT_FILE = "text_encoders/opensora-tiny-t5.safetensors"


def exported_weights(models: Path, version: Version) -> dict[str, Tensor]:
    """Float32 weights under the names of :class:`.pair.Pair`, from a models folder such as ``demo/models``."""
    network, text = load_file(models / NETWORK_FILE.format(version)), load_file(models / TEXT_FILE)
    return {f"network.{from_checkpoint_key(name)}": value.float() for name, value in network.items()} | {
        f"text_encoder.{name}": value.float() for name, value in text.items()
    }
