"""What an MMDiT's weights cannot tell: how heads are rotated and by which axes, the patch where nothing shows it.

Beside upstream's names, ``round_time`` says whether the network sees its time in bfloat16, and ``text_tokens`` how many
text states it was trained with (see :class:`~.config.MMDiTConfig`). The order is: the person's own choice, then the
settings beside the file (``config.json`` of the release, or metadata), then the released rule that
:func:`~.config.config_from_shapes` applied.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ..checkpoint.settings import Choices, whole_number, yes_or_no
from ..messages.quoting import shown
from ..text.padding import T5_LENGTH
from .config import ROTATIONS, MMDiTConfig, default_axes

logger = logging.getLogger("opensora")

SHARED_NUMBERS = (
    *("in_channels", "vec_in_dim", "context_in_dim", "hidden_size", "num_heads", "depth", "depth_single_blocks"),
    *("qkv_bias", "guidance_embed", "cond_embed", "fused_qkv"),
)
"""Settings the weights show as well: they tell whether the settings speak of this file at all."""


LARGEST_PATCH = 64
LARGEST_THETA = 10**9
MOST_TEXT_TOKENS = 8192
"""Far more than the encoder tells apart, so that only nonsense is refused."""


def complete(config: MMDiTConfig, settings: Mapping[str, Any], choices: Choices | None = None) -> MMDiTConfig:
    """The config read off the weights, completed from upstream's ``settings`` and the person's ``choices``.

    Settings that contradict the weights belong to another model and are left out with a log line. Raises ValueError for
    a value that no network can have.
    """
    choices = choices or Choices()
    choices.expect_only("rotation", network="Open-Sora 2.0")
    if contradictions := _contradictions(config, settings):
        logger.warning("The settings beside the file are for another model (%s) and are not used.", contradictions)
        settings = {}
    changes: dict[str, Any] = {}
    if "axes_dim" in settings:
        changes["axes_dim"] = _axes(settings["axes_dim"], config.head_dim)
    if "theta" in settings:
        changes["theta"] = _theta(settings["theta"])
    if "patch_size" in settings and not config.cond_embed:
        changes["patch_size"] = whole_number(settings["patch_size"], "patch_size", 1, LARGEST_PATCH)
    if "use_liger_rope" in settings:
        changes["rotation"] = "half-split" if yes_or_no(settings["use_liger_rope"], "use_liger_rope") else "interleaved"
    if "round_time" in settings:
        changes["round_time"] = yes_or_no(settings["round_time"], "round_time")
    if "text_tokens" in settings:
        changes["text_tokens"] = whole_number(settings["text_tokens"], "text_tokens", 1, MOST_TEXT_TOKENS)
    if choices.rotation is not None:
        changes["rotation"] = choices.rotation
    return replace(config, **changes)


def saved_settings(config: MMDiTConfig) -> dict[str, Any]:
    """What must travel with the weights so that :func:`complete` gives this config again."""
    settings = {
        "axes_dim": list(config.axes_dim),
        "theta": config.theta,
        "use_liger_rope": config.rotation == ROTATIONS[0],
        "round_time": config.round_time,
    }
    if config.text_tokens != T5_LENGTH:
        settings["text_tokens"] = config.text_tokens
    return settings if config.cond_embed else {**settings, "patch_size": config.patch_size}


def _contradictions(config: MMDiTConfig, settings: Mapping[str, Any]) -> str:
    wrong = [name for name in SHARED_NUMBERS if name in settings and settings[name] != getattr(config, name)]
    return ", ".join(f"{name} {shown(settings[name])} instead of {getattr(config, name)}" for name in wrong)


def _axes(value: Any, head_dim: int) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise ValueError(f"axes_dim is {shown(value)}; expected three widths such as {default_axes(head_dim)}.")
    return tuple(whole_number(width, "A width of axes_dim", 0, head_dim) for width in value)


def _theta(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 1 <= value <= LARGEST_THETA:
        raise ValueError(f"theta is {shown(value)}; expected a number from 1 to {LARGEST_THETA} such as 10000.")
    return value
