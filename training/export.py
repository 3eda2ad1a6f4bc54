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

from ..opensora_models.releases.groups import VERSIONS, Version
from ..opensora_models.stdit3.keys import to_checkpoint_key
from .autoencoder import RECIPES as AUTOENCODERS
from .autoencoder import averaged_autoencoder
from .exported import NETWORK_FILE, TEXT_FILE
from .flow import averaged
from .flow_recipes import RECIPES, FlowConfig
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


def steps_done(folder: Path) -> int:
    """Steps of a run's last checkpoint."""
    return int(Progress(folder).read()["step"])


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m training export", description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="models folder, e.g. demo/models")
    parser.add_argument("--autoencoder", type=Path, required=True, help="run of the autoencoder")
    parser.add_argument("--flow", type=Path, required=True, help="run of the diffusion model")
    parser.add_argument("--release", choices=VERSIONS, default="1.3", help="which Open-Sora")
    options = parser.parse_args(arguments)
    version: Version = options.release
    recipe, flow = AUTOENCODERS[version], RECIPES[version]
    model = averaged_autoencoder(recipe, options.autoencoder)
    about = metadata(version, {"groups": recipe.groups}, recipe, steps_done(options.autoencoder))
    write(options.out / f"vae/opensora-tiny-vae-v{version}.safetensors", stored(model.state_dict()), about)
    write_pair(options.out, averaged(flow, options.flow), flow, steps_done(options.flow))


def write_pair(models: Path, pair: Pair, flow: FlowConfig, steps: int) -> None:
    """Save a diffusion model, and its text encoder if that was trained with it."""
    version = flow.network.version
    network = {to_checkpoint_key(name): value for name, value in pair.network.state_dict().items()}
    write(models / NETWORK_FILE.format(version), stored(network), metadata(version, unseen(flow), flow, steps))
    if any(phase.trains_text for phase in flow.phases):  # else it is the one exported before
        text = stored(pair.text_encoder.state_dict())
        write(models / TEXT_FILE, text, metadata(version, {}, flow, steps))


def unseen(flow: FlowConfig) -> dict[str, object]:
    """The settings of a diffusion model that its weights do not show."""
    if flow.network.version == "1.2":
        return {}
    return {"kernel_size": flow.network.kernel_size, "use_spatial_rope": flow.network.use_spatial_rope}
