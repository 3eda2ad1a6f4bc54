"""Lets ComfyUI's own loaders (Load Diffusion Model, Load Checkpoint) recognise Open-Sora files.

Without this, core takes an STDiT3 file for PixArt and stops with a size-mismatch text. Core has no registry for model
kinds, so one function of ``comfy.model_detection`` is wrapped: it answers for our names and calls the original for
everything else. Set the environment variable ``OPENSORA_CORE_DETECTION=0`` before starting ComfyUI to leave core alone.

A model loaded this way follows whole-frame masks; partial edit strengths also need core's Differential Diffusion node,
or our own loader, which brings the rule along.
"""

from __future__ import annotations

import functools
import logging
import os
from collections.abc import Mapping
from typing import Any

import comfy.model_detection
import comfy.supported_models

from ..checkpoint_kinds import STDIT3_V12, STDIT3_V13, describe
from ..settings import NAME as SETTINGS
from ..settings import from_tensor, parse_settings
from ..stdit3.config import config_from_shapes
from ..variants import complete
from .model import OpenSoraConfig

logger = logging.getLogger("opensora")

SWITCH = "OPENSORA_CORE_DETECTION"
OFF = ("0", "false", "off", "no")
MARK = "opensora_original"  # attribute on the wrapper: the function it replaced


def is_wanted() -> bool:
    """False if the person switched the registration off."""
    return os.environ.get(SWITCH, "1").strip().lower() not in OFF


def is_registered() -> bool:
    """True while core recognises Open-Sora files."""
    return hasattr(comfy.model_detection.detect_unet_config, MARK)


def register() -> None:
    """Teaches core our files; calling it again changes nothing."""
    if is_registered():
        return
    original = comfy.model_detection.detect_unet_config

    @functools.wraps(original)
    def detect_unet_config(
        state_dict: Mapping[str, Any], key_prefix: str, *args: Any, **kwargs: Any
    ) -> dict[str, Any] | None:
        found = detect(state_dict, key_prefix, kwargs.get("metadata") or (args[0] if args else None))
        return original(state_dict, key_prefix, *args, **kwargs) if found is None else found

    setattr(detect_unet_config, MARK, original)
    comfy.model_detection.detect_unet_config = detect_unet_config
    if OpenSoraConfig not in comfy.supported_models.models:
        comfy.supported_models.models.append(OpenSoraConfig)


def unregister() -> None:
    """Puts core back as it was, unless another pack has wrapped the function since."""
    if is_registered():
        comfy.model_detection.detect_unet_config = getattr(comfy.model_detection.detect_unet_config, MARK)
    if OpenSoraConfig in comfy.supported_models.models:
        comfy.supported_models.models.remove(OpenSoraConfig)


def detect(
    state_dict: Mapping[str, Any], key_prefix: str, metadata: Mapping[str, str] | None = None
) -> dict[str, Any] | None:
    """ComfyUI's ``unet_config`` for the Open-Sora weights under ``key_prefix``; None if there are none."""
    found = {name[len(key_prefix) :]: value for name, value in state_dict.items() if name.startswith(key_prefix)}
    shapes = {name: tuple(value.shape) for name, value in found.items() if name != SETTINGS}
    if describe(shapes) not in (STDIT3_V12, STDIT3_V13):
        return None
    if SETTINGS in found:
        settings = from_tensor(found[SETTINGS], "the file")
    else:
        text = (metadata or {}).get(SETTINGS)
        settings = parse_settings(text, "the file's metadata") if text else {}
    config = complete(config_from_shapes(shapes), settings)
    return OpenSoraConfig.of(config).unet_config
