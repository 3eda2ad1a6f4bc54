"""Reads back what :mod:`.export` wrote, for a run that goes on from it and for measuring it."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from ..opensora_models.mmdit.config import MMDiTConfig
from ..opensora_models.mmdit.keys import from_checkpoint_key as from_mmdit_key
from ..opensora_models.stdit3.keys import from_checkpoint_key
from .autoencoder import RECIPES as AUTOENCODERS
from .autoencoder import Autoencoder, empty_autoencoder
from .flow_recipes import RECIPES
from .mmdit_pair import MMDiTPair, pair_of
from .pair import Pair

NETWORK_FILE = "diffusion_models/opensora-tiny-v{}.safetensors"
CLIP_FILE = "text_encoders/opensora-tiny-clip-l.safetensors"
TEXT_FILE = "text_encoders/opensora-tiny-t5.safetensors"
AUTOENCODER_FILE = "vae/opensora-tiny-vae-v{}.safetensors"
NOT_EXPORTED = ("clock.", "shape_reader.", "clip_l.")  # of training alone; made from a seed


def exported_weights(models: Path, release: str) -> dict[str, Tensor]:
    """Float32 weights under the names of :class:`.pair.Pair`, from a models folder such as ``demo/models``."""
    network, text = load_file(models / NETWORK_FILE.format(release)), load_file(models / TEXT_FILE)
    key = from_mmdit_key if isinstance(RECIPES[release].network, MMDiTConfig) else from_checkpoint_key
    return {f"network.{key(name)}": value.float() for name, value in network.items()} | {
        f"text_encoder.{name}": value.float() for name, value in text.items()
    }


def exported_pair(models: Path, release: str) -> Pair | MMDiTPair:
    """The diffusion model of a models folder with its text encoders; ValueError if the files lack a weight."""
    pair = pair_of(RECIPES[release])
    missing, _ = pair.load_state_dict(exported_weights(models, release), strict=False)
    lost = [name for name in missing if not name.startswith(NOT_EXPORTED)]
    if lost:
        raise ValueError(f"'{NETWORK_FILE.format(release)}' has no {lost[0]}; it was made by another recipe.")
    return pair.eval()


def exported_autoencoder(models: Path, release: str) -> Autoencoder:
    """The autoencoder of a models folder."""
    model = empty_autoencoder(AUTOENCODERS[release])
    weights = load_file(models / AUTOENCODER_FILE.format(release))
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval()
