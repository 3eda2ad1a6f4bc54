"""What a MODEL reads of a prompt: which release it is, how many tokens, how wide their states."""

from __future__ import annotations

from typing import Any

from ...releases.known import RELEASES
from ...releases.release import Release
from ..model.stdit3_model import opensora_config


def release_of_model(model: Any | None) -> Release | None:
    """The release of a MODEL (``ModelPatcher``); None for no MODEL and one that is not Open-Sora's."""
    config = opensora_config(model) if model is not None else None
    found = getattr(getattr(model, "model", None), "release", None)
    return found if isinstance(found, Release) else RELEASES[config.version] if config is not None else None


def token_limit(model: Any | None, release: Release) -> int:
    """Tokens of a prompt; a 1.x model says it itself, in the length of its learned text."""
    config = opensora_config(model) if model is not None else None
    return getattr(config, "model_max_length", None) or release.text.limit


def state_width(config: Any | None) -> int | None:
    """Numbers per token that a network of this config reads; None for no config."""
    return getattr(config, "caption_channels", None) or getattr(config, "context_in_dim", None)


def pooled_width(config: Any | None) -> int | None:
    """Numbers of CLIP-L's pooled state that a network of this config reads; None for one that reads none."""
    return getattr(config, "vec_in_dim", None)
