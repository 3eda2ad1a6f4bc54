"""Writes trained runs as files ComfyUI lists: ``python -m training export OUT …`` (a models folder).

Weights are stored in half precision under the released key names; what cannot be seen from them, and how they were
made, stands in the metadata.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from ..opensora_models.mmdit.config import MMDiTConfig
from ..opensora_models.mmdit.keys import to_checkpoint_key as to_mmdit_key
from ..opensora_models.mmdit.settings import saved_settings
from ..opensora_models.stdit3.keys import to_checkpoint_key
from ..opensora_models.vae.tiled import TiledAutoencoder
from ..opensora_models.vae.tiled_files import saved_tiled_settings
from . import options as option
from .autoencoder import RECIPES as AUTOENCODERS
from .autoencoder import Autoencoder, AutoencoderConfig, averaged_autoencoder
from .clip_l import ClipLConfig
from .exported import AUTOENCODER_FILE, CLIP_FILE, NETWORK_FILE, TEXT_FILE
from .flow import averaged
from .flow_recipes import FlowConfig, add_recipe_options, recipe_of
from .mmdit_pair import MMDiTPair
from .pair import Pair
from .progress import Progress, log

FULL_PRECISION = ("rope.freqs",)  # few values whose rounding would turn angles
ABOUT = "tiny demonstration model trained on drawn shapes (64x64, 17 frames); not a released Open-Sora model"


def stored(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Half precision, except where it would matter."""
    return {
        name: value.detach().float().contiguous() if name in FULL_PRECISION else value.detach().half().contiguous()
        for name, value in weights.items()
    }


def metadata(version: str, config: Mapping[str, object], training: object, steps: int) -> dict[str, str]:
    """What a loader needs (``opensora.config``) and what people may want to know."""
    recipe = json.dumps({"steps": steps, **asdict(training)}, default=str)  # type: ignore[call-overload]
    return {
        "opensora.version": version,
        "opensora.config": json.dumps(dict(config)),
        "opensora.note": ABOUT,
        "opensora.training": recipe,
    }


def write(path: Path, weights: Mapping[str, Tensor], about: dict[str, str]) -> None:
    """Save one file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(dict(weights), path, metadata=about)
    log.info("%s: %.1f MB", path, path.stat().st_size / 1e6)


def steps_done(folder: Path, phase: int | None = None) -> int:
    """Steps of a run's last checkpoint, or of the end of one of its phases."""
    progress = Progress(folder)
    return int((progress.read() if phase is None else progress.kept(f"phase-{phase}"))["step"])


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m training export", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=option.new_folder, help="models folder, e.g. demo/models")
    parser.add_argument("--autoencoder", type=option.run, required=True, help="run of the autoencoder")
    parser.add_argument("--flow", type=option.run, required=True, help="run of the diffusion model")
    add_recipe_options(parser)
    parser.add_argument(
        "--phase", type=option.count, help="end of this phase, counted from 1; none: the last checkpoint"
    )
    options = parser.parse_args(arguments)
    flow = recipe_of(options)
    option.check_phase(parser, options, flow)
    recipe = AUTOENCODERS[flow.version]
    # Both runs are read before a file is written: one that cannot be used leaves the folder as it was.
    autoencoder, pair = averaged_autoencoder(recipe, options.autoencoder), averaged(flow, options.flow, options.phase)
    write_autoencoder(options.out, autoencoder, recipe, steps_done(options.autoencoder))
    write_pair(options.out, pair, flow, steps_done(options.flow, options.phase))


def write_autoencoder(models: Path, model: Autoencoder, recipe: AutoencoderConfig, steps: int) -> None:
    """Save an autoencoder."""
    config = saved_tiled_settings(model) if isinstance(model, TiledAutoencoder) else {"groups": recipe.groups}
    about = metadata(recipe.version, config, recipe, steps)
    write(models / AUTOENCODER_FILE.format(recipe.version), stored(model.state_dict()), about)


def write_pair(models: Path, pair: Pair | MMDiTPair, flow: FlowConfig, steps: int) -> None:
    """Save a diffusion model, and its text encoder if that was trained with it."""
    version = flow.version
    key = to_mmdit_key if isinstance(pair, MMDiTPair) else to_checkpoint_key
    network = {key(name): value for name, value in pair.network.state_dict().items()}
    write(models / NETWORK_FILE.format(version), stored(network), metadata(version, unseen(flow), flow, steps))
    if any(phase.trains_text for phase in flow.phases):  # else it is the one exported before
        text = stored(pair.text_encoder.state_dict())
        write(models / TEXT_FILE, text, metadata(version, {}, flow, steps))

    if isinstance(pair, MMDiTPair):
        about = metadata(version, {}, ClipLConfig(width=flow.network.vec_in_dim), 0)
        write(models / CLIP_FILE, stored(pair.clip_l.exported()), about)


def unseen(flow: FlowConfig) -> dict[str, object]:
    """The settings of a diffusion model that its weights do not show."""
    if isinstance(flow.network, MMDiTConfig):
        return saved_settings(flow.network)
    if flow.network.version == "1.2":
        return {}
    return {"kernel_size": flow.network.kernel_size, "use_spatial_rope": flow.network.use_spatial_rope}
