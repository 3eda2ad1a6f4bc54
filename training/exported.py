"""Reads back what :mod:`.export` wrote, for a run that goes on from it and for measuring it."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from torch import Tensor

from ..opensora_models.mmdit.config import MMDiTConfig
from ..opensora_models.mmdit.keys import from_checkpoint_key as from_mmdit_key
from ..opensora_models.stdit3.keys import from_checkpoint_key
from . import options as option
from .autoencoder import RECIPES as AUTOENCODERS
from .autoencoder import Autoencoder, code_of, empty_autoencoder
from .flow_recipes import RECIPES
from .latents import LatentCode
from .mmdit_pair import MMDiTPair, pair_of
from .pair import Pair
from .weights_files import fill, weights_in

NETWORK_FILE = "diffusion_models/opensora-tiny-v{}.safetensors"
CLIP_FILE = "text_encoders/opensora-tiny-clip-l.safetensors"
TEXT_FILE = "text_encoders/opensora-tiny-t5.safetensors"
AUTOENCODER_FILE = "vae/opensora-tiny-vae-v{}.safetensors"


def exported_network(file: Path, release: str) -> dict[str, Tensor]:
    """Float32 weights of a diffusion model under the names of :class:`.pair.Pair`, from its file. ``release`` is any of
    the same family."""
    return {f"network.{name}": value.float() for name, value in _network(file, release).items()}


def exported_text_encoder(models: Path) -> dict[str, Tensor]:
    """Those of the T5 in a models folder such as ``demo/models``."""
    return {f"text_encoder.{name}": value.float() for name, value in weights_in(models / TEXT_FILE).items()}


def exported_pair(models: Path, release: str) -> Pair | MMDiTPair:
    """The diffusion model of a models folder with its text encoders; Refused if its files are of another recipe."""
    pair, file = pair_of(RECIPES[release]), models / NETWORK_FILE.format(release)
    fill(pair.network, _network(file, release), file)
    fill(pair.text_encoder, weights_in(models / TEXT_FILE), models / TEXT_FILE)
    return pair.eval()


def exported_autoencoder(models: Path, release: str) -> Autoencoder:
    """The autoencoder of a models folder; Refused if its file is of another recipe."""
    model, file = empty_autoencoder(AUTOENCODERS[release]), models / AUTOENCODER_FILE.format(release)
    fill(model, weights_in(file), file)
    return model.eval()


def _network(file: Path, release: str) -> dict[str, Tensor]:
    key = from_mmdit_key if isinstance(RECIPES[release].network, MMDiTConfig) else from_checkpoint_key
    return {key(name): value for name, value in weights_in(file).items()}


def add_code_option(parser: ArgumentParser) -> None:
    """What :func:`code_in` takes, on a command line."""
    parser.add_argument(
        "--code", type=option.models, help="models folder with an exported autoencoder whose latents are meant; none:"
        " those of the recipe, whose decoder can be trained meanwhile"
    )  # fmt: skip


def code_in(models: Path | None, release: str) -> LatentCode:
    """What the autoencoder of a models folder codes, or one of the recipe will."""
    return code_of(AUTOENCODERS[release]) if models is None else LatentCode(exported_autoencoder(models, release))
