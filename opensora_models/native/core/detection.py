"""Lets ComfyUI's own loaders (of diffusion models, checkpoints, VAEs and text encoders) recognise Open-Sora files.

Without this, core takes an STDiT3 file for PixArt and stops with a size-mismatch text, makes noise of an MMDiT file,
which it takes for Flux, and reads a VAE as that of another model. Core has no registry for kinds of files, so some of
its functions are wrapped: they answer for our names and call the original for everything else. Set the environment
variable ``OPENSORA_CORE_DETECTION=0`` before starting ComfyUI to leave core alone.

A model loaded this way follows whole-frame masks; partial edit strengths also need core's Differential Diffusion node,
or our own loader, which brings the rule along.
"""

from __future__ import annotations

import functools
import inspect
import logging
import os
from collections.abc import Mapping
from typing import Any

import comfy.model_detection
import comfy.sd
import comfy.supported_models

from ...checkpoint.kinds import describe
from ...checkpoint.settings import NAME as SETTINGS
from ...checkpoint.settings import from_tensor, parse_settings
from ...messages.quoting import one_line
from ..model.base_model import release_of
from ..model.empty_start import watch
from ..model.families import CONFIG_CLASSES, FAMILIES
from ..model.speed import measure
from ..model.written_back import add_to
from ..previews.sending import show_runs
from . import parts as core_parts
from .replacement import Function, Replacement

logger = logging.getLogger("opensora")

SWITCH = "OPENSORA_CORE_DETECTION"
OFF = ("0", "false", "off", "no")


def is_wanted() -> bool:
    """False if the person switched the registration off."""
    return os.environ.get(SWITCH, "1").strip().lower() not in OFF


def _detecting(original: Function) -> Function:
    @functools.wraps(original)
    def detect_unet_config(
        state_dict: Mapping[str, Any], key_prefix: str, *args: Any, **kwargs: Any
    ) -> dict[str, Any] | None:
        found = detect(state_dict, key_prefix, kwargs.get("metadata") or (args[0] if args else None))
        return original(state_dict, key_prefix, *args, **kwargs) if found is None else found

    return detect_unet_config


def _making_vae(original: Function) -> Function:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def __init__(self: comfy.sd.VAE, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        plain = type(self) is comfy.sd.VAE and given.get("sd") and given.get("config") is None
        recipe = core_parts.vae_recipe(given["sd"], given.get("metadata")) if plain else None
        if recipe is None:
            original(self, *args, **kwargs)
        else:
            core_parts.become_ours(self, recipe, **given)

    return __init__


def _making_text_encoder(original: Function) -> Function:
    signature = inspect.signature(original)

    @functools.wraps(original)
    def load_text_encoder_state_dicts(*args: Any, **kwargs: Any) -> comfy.sd.CLIP:
        given = signature.bind(*args, **kwargs).arguments
        clip = core_parts.text_encoder(
            given.get("state_dicts", ()), given.get("model_options"), given.get("disable_dynamic", False)
        )
        return original(*args, **kwargs) if clip is None else clip

    return load_text_encoder_state_dicts


def _finishing(original: Function) -> Function:
    """A function that returns a MODEL, or several parts with the MODEL first: ours writes given pictures back."""

    @functools.wraps(original)
    def load(*args: Any, **kwargs: Any) -> Any:
        loaded = original(*args, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if release_of(model) is not None:
            add_to(model)
            measure(model)
            watch(model)
            show_runs(model)
        return loaded

    return load


REPLACEMENTS = (
    Replacement(comfy.model_detection, "detect_unet_config", _detecting),
    Replacement(comfy.sd.VAE, "__init__", _making_vae),
    Replacement(comfy.sd, "load_text_encoder_state_dicts", _making_text_encoder),
    Replacement(comfy.sd, "load_diffusion_model_state_dict", _finishing),
    Replacement(comfy.sd, "load_state_dict_guess_config", _finishing),
)


def is_registered() -> bool:
    """True while core recognises Open-Sora files."""
    return all(replacement.is_there for replacement in REPLACEMENTS)


def register() -> None:
    """Teaches core our files; calling it again changes nothing."""
    for replacement in REPLACEMENTS:
        replacement.put()
    known = comfy.supported_models.models
    known.extend(each for each in CONFIG_CLASSES if each not in known)


def unregister() -> None:
    """Puts core back as it was, but for functions that another pack has wrapped since."""
    for replacement in REPLACEMENTS:
        replacement.take_back()
    for each in CONFIG_CLASSES:
        if each in comfy.supported_models.models:
            comfy.supported_models.models.remove(each)


def detect(
    state_dict: Mapping[str, Any], key_prefix: str, metadata: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """ComfyUI's ``unet_config`` for the Open-Sora weights under ``key_prefix``; None if there are none."""
    found = {name[len(key_prefix) :]: value for name, value in state_dict.items() if name.startswith(key_prefix)}
    shapes = {name: tuple(value.shape) for name, value in found.items() if name != SETTINGS}
    family = FAMILIES.get(describe(shapes))
    if family is None:
        return None
    try:
        config = family.complete(family.network_config(shapes), _settings(found, metadata))
    except ValueError as error:
        raise ValueError(f"{one_line(str(error))} Files of Open-Sora are loaded with Open-Sora Load Model.") from error
    return family.model_config(config).unet_config


def _settings(found: Mapping[str, Any], metadata: Mapping[str, str] | None) -> dict[str, Any]:
    if SETTINGS in found:
        return from_tensor(found[SETTINGS], "the file")
    text = (metadata or {}).get(SETTINGS)
    return parse_settings(text, "the file's metadata") if text else {}
