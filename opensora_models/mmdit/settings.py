"""What an MMDiT's weights cannot tell: how heads are rotated and by which axes, the patch where nothing shows it.

The order is: the person's own choice, then the settings beside the file (``config.json`` of the release, or metadata),
then the released rule that :func:`~.config.config_from_shapes` applied.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .config import MMDiTConfig, Rotation

logger = logging.getLogger("opensora")

SHARED_NUMBERS = (
    *("in_channels", "vec_in_dim", "context_in_dim", "hidden_size", "num_heads", "depth", "depth_single_blocks"),
    *("qkv_bias", "guidance_embed", "cond_embed", "fused_qkv"),
)
"""Settings the weights show as well: they tell whether the settings speak of this file at all."""


def complete(config: MMDiTConfig, settings: Mapping[str, Any], rotation: Rotation | None = None) -> MMDiTConfig:
    """The config read off the weights, completed from upstream's ``settings`` and the person's ``rotation``.

    Settings that contradict the weights belong to another model and are left out with a log line. Raises ValueError for
    a value that no network can have.
    """
    if contradictions := _contradictions(config, settings):
        logger.warning("The settings beside the file are for another model (%s) and are not used.", contradictions)
        settings = {}
    changes: dict[str, Any] = {}
    if "axes_dim" in settings:
        changes["axes_dim"] = tuple(_number(width, "axes_dim") for width in settings["axes_dim"])
    if "theta" in settings:
        changes["theta"] = _number(settings["theta"], "theta")
    if "patch_size" in settings and not config.cond_embed:
        changes["patch_size"] = _number(settings["patch_size"], "patch_size")
    if "use_liger_rope" in settings:
        changes["rotation"] = "half-split" if settings["use_liger_rope"] else "interleaved"
    if rotation is not None:
        changes["rotation"] = rotation
    return replace(config, **changes)


def _contradictions(config: MMDiTConfig, settings: Mapping[str, Any]) -> str:
    wrong = [name for name in SHARED_NUMBERS if name in settings and settings[name] != getattr(config, name)]
    return ", ".join(f"{name} {settings[name]} instead of {getattr(config, name)}" for name in wrong)


def _number(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or value != int(value) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1.")
    return int(value)
