"""Reads back what :mod:`.export` wrote, for a run that goes on from it and for measuring it."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path

from safetensors.torch import load_file
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
from .refused import Refused

NETWORK_FILE = "diffusion_models/opensora-tiny-v{}.safetensors"
CLIP_FILE = "text_encoders/opensora-tiny-clip-l.safetensors"
TEXT_FILE = "text_encoders/opensora-tiny-t5.safetensors"
AUTOENCODER_FILE = "vae/opensora-tiny-vae-v{}.safetensors"
NOT_EXPORTED = ("clock.", "shape_reader.", "clip_l.")  # of training alone; made from a seed


def exported_weights(models: Path, release: str) -> dict[str, Tensor]:
    """Float32 weights under the names of :class:`.pair.Pair`, from a models folder such as ``demo/models``."""
    return exported_network(models / NETWORK_FILE.format(release), release) | exported_text_encoder(models)


def exported_network(file: Path, release: str) -> dict[str, Tensor]:
    """Those of them that are the diffusion model's, from its file; ``release`` is any of the same family."""
    key = from_mmdit_key if isinstance(RECIPES[release].network, MMDiTConfig) else from_checkpoint_key
    return {f"network.{key(name)}": value.float() for name, value in _loaded(file).items()}


def exported_text_encoder(models: Path) -> dict[str, Tensor]:
    """Those of them that are the T5's, from its file in a models folder."""
    return {f"text_encoder.{name}": value.float() for name, value in _loaded(models / TEXT_FILE).items()}


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
    weights = _loaded(models / AUTOENCODER_FILE.format(release))
    model.load_state_dict({name: value.float() for name, value in weights.items()})
    return model.eval()


def _loaded(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise Refused(f"There is no '{file}'.")
    return load_file(file)


def add_code_option(parser: ArgumentParser) -> None:
    """What :func:`code_in` takes, on a command line."""
    parser.add_argument(
        "--code", type=option.models, help="models folder with an exported autoencoder whose latents are meant; none:"
        " those of the recipe, whose decoder can be trained meanwhile"
    )  # fmt: skip


def code_in(models: Path | None, release: str) -> LatentCode:
    """What the autoencoder of a models folder codes, or one of the recipe will."""
    return code_of(AUTOENCODERS[release]) if models is None else LatentCode(exported_autoencoder(models, release))
