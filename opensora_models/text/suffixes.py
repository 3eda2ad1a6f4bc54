"""What Open-Sora 2.0's prompts end in: the frame rate and how much moves, as its training texts do.

Source: upstream ``opensora/utils/inference.py`` of release 2.0 (``add_fps_info_to_text``,
``add_motion_score_to_text``). Negative prompts and the text of the Flux stage get no suffix.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Mapping

from ..messages.quoting import SHOWN_CHARACTERS, shortened
from .wording import NO_SCORE, Score

MOTION_WORDS: Mapping[str, float] = {"static": 1, "normal": 4, "strong": 7}
"""Words for the motion scores the original documents; ``normal`` is its default."""
MOST_MOTION = 15
"""The highest score its language model is asked for."""

FRAME_RATE = 24
"""Frames per second of the released settings."""

_FRAME_RATE = re.compile(r"\d FPS\.$")
_MOTION = re.compile(r"(?:^|\s)\d+(?:\.\d+)? motion score\.$")


def append_suffixes(prompt: str, fps: float, motion: Score | None) -> str:
    """``raining, sea`` -> ``raining, sea. 24 FPS. 4 motion score.``

    A prompt that ends in a frame rate keeps it. ``motion`` None says nothing about motion; a score is always added,
    because the original does.
    """
    text = prompt.strip()
    if not text.endswith("."):
        text += "."
    if not _FRAME_RATE.search(text):
        text += f" {_number(fps)} FPS."
    return text if motion is None else f"{text} {_number(motion)} motion score."


def append_once(prompt: str, fps: float, motion: Score | None) -> str:
    """As :func:`append_suffixes`, but a prompt that ends in a motion score keeps its own.

    ``… 24 FPS, 4 motion score.``, as training texts have it, counts as well.
    """
    text = prompt.strip()
    written = _MOTION.search(text)
    if written is None:
        return append_suffixes(text, fps, motion)
    before = text[: written.start()].rstrip()
    return text if before.endswith("FPS,") else f"{append_suffixes(before, fps, None)} {written[0].strip()}"


def ends_as_trained(prompt: str) -> bool:
    """Whether a prompt ends in a frame rate or a motion score, as every training text does."""
    text = prompt.strip()
    return bool(_FRAME_RATE.search(text) or _MOTION.search(text))


def read_motion(text: str) -> Score | None:
    """The motion score a person typed: a number, a word of :data:`MOTION_WORDS`, None for "", "none" or "off".

    Raises ValueError with the nearest good value.
    """
    text = text.strip().lower()
    if text in NO_SCORE:
        return None
    if text in MOTION_WORDS:
        return MOTION_WORDS[text]
    try:
        number = float(text)
    except ValueError:
        nearest = (difflib.get_close_matches(text[:SHOWN_CHARACTERS], MOTION_WORDS, n=1, cutoff=0.0) or ["normal"])[0]
        raise ValueError(
            f"The motion score is '{shortened(text)}', but Open-Sora 2.0 knows a number or one of "
            f"{', '.join(MOTION_WORDS)}; the nearest good value is '{nearest}'."
        ) from None
    if not (math.isfinite(number) and 1 <= number <= MOST_MOTION):
        nearest_number = MOST_MOTION if number > MOST_MOTION else 1
        raise ValueError(
            f"The motion score is '{shortened(text)}', but Open-Sora 2.0 knows 1 (static) to {MOST_MOTION}; the "
            f"nearest good value is {nearest_number}, leave it empty to say nothing."
        )
    return number


def _number(value: Score) -> str:
    """Whole numbers without a fraction; words as they are."""
    return f"{value:g}" if isinstance(value, (int, float)) else str(value)
