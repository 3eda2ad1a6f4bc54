"""What a network's weights cannot tell: the window, the spatial rotary, the reference size of positions.

The order is: the person's own choice, then the settings beside the file (``config.json`` of the release, or metadata),
then the released values.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..checkpoint.settings import Choices, whole_number, yes_or_no
from ..messages.quoting import shown
from .config import RELEASED_KERNEL_SIZE, STDiT3Config

logger = logging.getLogger("opensora")

# Settings of a config.json that the weights show as well: they tell whether the file speaks of this model at all.
SHARED_NUMBERS = ("depth", "hidden_size", "num_heads", "in_channels", "caption_channels", "model_max_length")

# Far beyond any clip, so that only nonsense is refused.
LARGEST_WINDOW = 4096
LARGEST_SQUARE_SIZE = 65_536


def complete(config: STDiT3Config, settings: Mapping[str, Any], choices: Choices | None = None) -> STDiT3Config:
    """The config read off the weights, completed from ``settings`` and ``choices``.

    Settings that contradict the weights belong to another model and are left out with a log line. Raises ValueError for
    a value that no network can have.
    """
    if contradictions := _contradictions(config, settings):
        logger.warning("The settings beside the file are for another model (%s) and are not used.", contradictions)
        settings = {}
    config = _with_settings(config, settings)
    return config if choices is None else _with_choices(config, choices)


def _contradictions(config: STDiT3Config, settings: Mapping[str, Any]) -> str:
    wrong = [name for name in SHARED_NUMBERS if name in settings and settings[name] != getattr(config, name)]
    return ", ".join(f"{name} {shown(settings[name])} instead of {getattr(config, name)}" for name in wrong)


def _with_settings(config: STDiT3Config, settings: Mapping[str, Any]) -> STDiT3Config:
    changes: dict[str, Any] = {}
    if "input_sq_size" in settings:
        changes["input_sq_size"] = _square_size(settings["input_sq_size"])
    # Weights without a window (rope.freqs of a whole head) cannot get one, whatever a file says.
    if config.kernel_size is not None:
        if settings.get("kernel_size") is not None:
            changes["kernel_size"] = _kernel_size(settings["kernel_size"])
        if "use_spatial_rope" in settings:
            changes["use_spatial_rope"] = yes_or_no(settings["use_spatial_rope"], "use_spatial_rope")
    return replace(config, **changes)


def _with_choices(config: STDiT3Config, choices: Choices) -> STDiT3Config:
    choices.expect_only("window", "spatial_rotary", "input_sq_size", network=f"Open-Sora {config.version}")
    windowed = config.kernel_size is not None
    if not windowed and (choices.window is not None or choices.spatial_rotary):
        raise ValueError(
            f"This Open-Sora {config.version} model has no windows, so window and spatial rotary cannot be set; "
            "leave both on automatic."
        )
    changes: dict[str, Any] = {}
    if choices.window is not None:
        changes["kernel_size"] = _kernel_size((choices.window, choices.window, RELEASED_KERNEL_SIZE[2]))
    if choices.spatial_rotary is not None and windowed:
        changes["use_spatial_rope"] = choices.spatial_rotary
    if choices.input_sq_size is not None:
        changes["input_sq_size"] = _square_size(choices.input_sq_size)
    return replace(config, **changes)


def _kernel_size(value: Any) -> tuple[int, int, int]:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ValueError(
            f"kernel_size is {shown(value)}; expected rows, columns and frames such as {RELEASED_KERNEL_SIZE}."
        )
    rows, columns = (whole_number(side, "A side of kernel_size", 1, LARGEST_WINDOW) for side in value[:2])
    # -1 stands for the whole clip.
    frames = -1 if value[2] == -1 else whole_number(value[2], "The frames of kernel_size", 1, LARGEST_WINDOW)
    return rows, columns, frames


def _square_size(value: Any) -> int:
    return whole_number(value, "input_sq_size", 1, LARGEST_SQUARE_SIZE)


def saved_settings(config: STDiT3Config) -> dict[str, Any]:
    """What must travel with the weights so that :func:`complete` gives this config again."""
    settings: dict[str, Any] = {"input_sq_size": config.input_sq_size}
    if config.kernel_size is not None:
        settings |= {"kernel_size": list(config.kernel_size), "use_spatial_rope": config.use_spatial_rope}
    return settings
