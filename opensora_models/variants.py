"""What a network's weights cannot tell: the window, the spatial rotary, the reference size of positions.

The order is: the person's own choice, then the settings beside the file (``config.json`` of the release, or metadata),
then the released values.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from .stdit3.config import RELEASED_KERNEL_SIZE, STDiT3Config

logger = logging.getLogger("opensora")

# Settings of a config.json that the weights show as well: they tell whether the file speaks of this model at all.
SHARED_NUMBERS = ("depth", "hidden_size", "num_heads", "in_channels", "caption_channels", "model_max_length")


@dataclass(frozen=True)
class Choices:
    """A person's own settings; None leaves a value to the file.

    ``window`` is the side of the temporal blocks' square window in tokens (1.3 only).
    """

    window: int | None = None
    spatial_rotary: bool | None = None
    input_sq_size: int | None = None


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
    return ", ".join(f"{name} {settings[name]} instead of {getattr(config, name)}" for name in wrong)


def _with_settings(config: STDiT3Config, settings: Mapping[str, Any]) -> STDiT3Config:
    changes: dict[str, Any] = {}
    if "input_sq_size" in settings:
        changes["input_sq_size"] = _whole_number(settings["input_sq_size"], "input_sq_size")
    # Weights without a window (rope.freqs of a whole head) cannot get one, whatever a file says.
    if config.kernel_size is not None:
        if settings.get("kernel_size") is not None:
            changes["kernel_size"] = _kernel_size(settings["kernel_size"])
        if "use_spatial_rope" in settings:
            changes["use_spatial_rope"] = bool(settings["use_spatial_rope"])
    return replace(config, **changes)


def _with_choices(config: STDiT3Config, choices: Choices) -> STDiT3Config:
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
        changes["input_sq_size"] = _whole_number(choices.input_sq_size, "input_sq_size")
    return replace(config, **changes)


def _kernel_size(value: Any) -> tuple[int, int, int]:
    if isinstance(value, int) or not hasattr(value, "__len__") or len(value) != 3:
        raise ValueError(f"kernel_size is {value!r}; expected rows, columns and frames such as {RELEASED_KERNEL_SIZE}.")
    rows, columns, frames = (_whole_number(side, "kernel_size", -1) for side in value)
    return rows, columns, frames


def _whole_number(value: Any, name: str, least: int = 1) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least {least}.")
    return value
