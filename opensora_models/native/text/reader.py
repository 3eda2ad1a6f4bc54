"""What a MODEL reads of a prompt: which release it is, how many tokens, how wide their states."""

from __future__ import annotations

import logging
from typing import Any

from ...releases.known import release_named
from ...releases.release import Release
from ..messages import tell
from ..model.base_model import opensora_config, release_of


def chosen_release(model: Any | None, version: str) -> Release:
    """The release of a MODEL, or the ``version`` of a menu where there is none; a menu that differs is told.

    Raises ValueError for a MODEL that is not Open-Sora's.
    """
    if model is None:
        return release_named(version)
    release = release_of(model)
    if release is None:
        raise ValueError("The MODEL is not an Open-Sora diffusion model; load one with Open-Sora Load Model.")
    if release.id != version:
        tell(f"The MODEL is {release.title}, so the version {version} of the menu is not used.", level=logging.INFO)
    return release


def token_limit(model: Any | None, release: Release) -> int:
    """Tokens of a prompt; a MODEL says itself how many it was trained with, 1.x in the length of its learned text."""
    config = opensora_config(model)
    own = getattr(config, "model_max_length", None) or getattr(config, "text_tokens", None)
    return own or release.text.limit


def state_width(config: Any | None) -> int | None:
    """Numbers per token that a network of this config reads; None for no config."""
    return getattr(config, "caption_channels", None) or getattr(config, "context_in_dim", None)


def pooled_width(config: Any | None) -> int | None:
    """Numbers of CLIP-L's pooled state that a network of this config reads; None for one that reads none."""
    return getattr(config, "vec_in_dim", None)
