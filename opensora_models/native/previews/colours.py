"""Colours of previews: fitted to a VAE when it is loaded, and used for every MODEL of its release.

They stand in ComfyUI's latent format, where its own still preview reads them as well.
"""

from __future__ import annotations

import hashlib
import logging
from pathlib import Path
from typing import Any

import folder_paths
import torch
from comfy.cli_args import LatentPreviewMethod, args
from torch import Tensor

from ...messages.quoting import shown_path
from ...previews.colours import Colours, colour_clip, fit_colours, mean_colours, whole_length
from ...previews.colours_file import colours_in, keep_colours
from ...releases.known import RELEASES
from ...releases.release import Release
from ...storage.failures import CannotStore
from ...storage.identity import Unknown, tensor_digest
from ..messages import hushed, tell
from ..model.latent_formats import LATENT_FORMATS

logger = logging.getLogger("opensora")

SAMPLES = 64
"""Values of every tensor that tell one file from another."""


def learn_colours(vae: Any) -> None:
    """Use the colours of a VAE that was just loaded: those kept from an earlier time, else fitted and kept.

    Nothing is computed while previews are off.
    """
    release, name, file = vae.network.release, _fingerprint(vae), _file()
    kept = colours_in(file, release.autoencoder)
    colours = kept.get(name)
    if colours is None and previews_on():
        colours = _fitted(vae, release)
    if colours is None:
        return
    if name not in kept or name != next(reversed(kept)):
        _keep(file, name, release, colours, is_new=name not in kept)
    use_colours(release, colours)


def recall_colours(release: Release) -> None:
    """Use the colours of the VAE of this release that was loaded last, in whatever session."""
    kept = colours_in(_file(), release.autoencoder)
    if kept:
        use_colours(release, kept[next(reversed(kept))])


def use_colours(release: Release, colours: Colours) -> None:
    """Let every preview of latents of the release's autoencoder have these colours; others' shape is left alone."""
    for other in RELEASES.values():
        format = LATENT_FORMATS[other.id]
        if other.autoencoder == release.autoencoder and format.latent_channels == len(colours.factors):
            format.latent_rgb_factors = [list(row) for row in colours.factors]
            format.latent_rgb_factors_bias = list(colours.bias)


def previews_on() -> bool:
    """Whether ComfyUI shows previews in this run."""
    return args.preview_method != LatentPreviewMethod.NoPreviews


def _fitted(vae: Any, release: Release) -> Colours | None:
    """The colours of a VAE; None, and a line in the log, where it cannot encode what they are fitted to."""
    try:
        with hushed(), torch.inference_mode():
            return fit_colours(*_samples(vae, release))
    except (RuntimeError, ValueError) as error:
        logger.warning("Previews keep the colours known for %s: %s", release.title, str(error).partition("\n")[0])
        return None


def _samples(vae: Any, release: Release) -> tuple[Tensor, Tensor]:
    """Normalised latents [N, C] of a still clip and the colours [N, 3] they stand for."""
    clip = colour_clip(whole_length(release.latents.lengths.counting), release.latents.space)
    latent = LATENT_FORMATS[release.id]().process_in(vae.encode(clip).float().cpu())[0]
    return latent.flatten(1).T, mean_colours(clip, *latent.shape[1:]).reshape(-1, 3)


def _keep(file: Path, name: str, release: Release, colours: Colours, is_new: bool) -> None:
    try:
        keep_colours(file, name, release.autoencoder, colours)
    except CannotStore as error:
        logger.info("The colours of previews are not kept for the next start: %s", error)
        return
    if is_new:
        tell(
            f"The colours of previews were fitted to this VAE, once, and are kept in '{shown_path(file)}'.",
            level=logging.INFO,
        )


def _fingerprint(vae: Any) -> str:
    """Tells VAE files apart: names, shapes and some values of all tensors, and the settings."""
    digest = hashlib.sha256(repr(vae.configs).encode())
    for name, tensor in sorted(vae.network.state_dict().items()):
        digest.update(f"{name}{tuple(tensor.shape)}".encode())
        flat = tensor.detach().reshape(-1)
        try:
            digest.update(tensor_digest(flat[:: max(1, flat.numel() // SAMPLES)].float()))
        except (Unknown, RuntimeError):  # a tensor that is kept in a special way tells its shape alone
            continue
    return digest.hexdigest()[:32]


def _file() -> Path:
    return Path(folder_paths.get_system_user_directory("opensora")) / "preview_colours.json"
