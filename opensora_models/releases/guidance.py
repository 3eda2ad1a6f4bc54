"""Guidance in numbers: how strongly, and when, the prompt and the given frames pull; released settings."""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT_FORCE_STEPS = 10
"""Steps that are always guided before oscillation starts (upstream ``force_num``)."""


@dataclass(frozen=True)
class Guidance:
    """How strongly, and when, the prompt and the given frames pull.

    ``image_scale`` None means the text scale. ``sigma_start`` and ``sigma_end`` bound the noise levels that are guided
    at all; outside them both scales are 1.
    """

    text_scale: float = 7.0
    image_scale: float | None = None
    oscillate_text: bool = False
    oscillate_image: bool = False
    force_steps: int = DEFAULT_FORCE_STEPS
    fade_image: bool = False
    initial_image_scale: float = 1.0
    flaw_fix: bool = False
    sigma_start: float = 1.0
    sigma_end: float = 0.0


PRESETS: dict[str, Guidance] = {
    "1.2": Guidance(text_scale=7.0),
    "1.3 text to video": Guidance(text_scale=7.5, oscillate_text=True, flaw_fix=True),
    "1.3 given frames": Guidance(
        text_scale=7.5, image_scale=5.0, oscillate_text=True, oscillate_image=True, fade_image=True
    ),
    "2.0 text to video": Guidance(text_scale=7.5, image_scale=3.0, oscillate_text=True, oscillate_image=True),
    "2.0 given pictures": Guidance(
        text_scale=7.5, image_scale=3.0, oscillate_text=True, oscillate_image=True, fade_image=True
    ),
    "2.0 given clip": Guidance(text_scale=7.5, image_scale=3.0, oscillate_text=True, oscillate_image=True),
}
"""The released inference settings of each version."""
