"""What a caption says about quality and motion, in the exact words the models were trained with.

Release 1.2 was trained with numbers (" aesthetic score: 6.5."), release 1.3 with words (" The aesthetic score is
good."). Source: ``append_score_to_prompts`` of ``opensora/utils/inference_utils.py``, both releases.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass

from ..messages.quoting import SHOWN_CHARACTERS, shortened

Score = float | str

CAMERA_MOTIONS = ("pan right", "pan left", "tilt up", "tilt down", "zoom in", "zoom out", "static")
"""Camera motions the training captions name."""

AESTHETIC_WORDS: Mapping[str, float] = {
    "terrible": 4.0,
    "very poor": 4.5,
    "poor": 5.0,
    "fair": 5.5,
    "good": 6.0,
    "very good": 6.5,
    "excellent": math.inf,
}
"""Words for aesthetic scores below these bounds."""

MOTION_WORDS: Mapping[str, float] = {
    "very low": 0.5,
    "low": 2.0,
    "fair": 5.0,
    "high": 10.0,
    "very high": 20.0,
    "extremely high": math.inf,
}
"""Words for motion scores below these bounds."""

NO_SCORE = ("", "none", "off")
"""What people write to leave a score out."""


@dataclass(frozen=True)
class Wording:
    """How one release writes a score: a sentence, and the part of it that tells it is already there."""

    aesthetic: str
    motion: str
    aesthetic_sign: str
    motion_sign: str
    in_words: bool


CAMERA = " camera motion: {}."
CAMERA_SIGN = "camera motion:"
WORDINGS: Mapping[str, Wording] = {
    "1.2": Wording(" aesthetic score: {}.", " motion score: {}.", "aesthetic score:", "motion score:", False),
    "1.3": Wording(
        " The aesthetic score is {}.",
        " The motion strength is {}.",
        "aesthetic score is",
        "motion strength is",
        True,
    ),
}


def append_scores(
    prompt: str,
    version: str,
    aesthetic: Score | None = None,
    motion: Score | None = None,
    camera_motion: str | None = None,
) -> str:
    """``prompt`` with the sentences for what is given; one that the prompt has already is not written again.

    Scores are numbers or, for 1.3, words. Raises ValueError for a word where 1.2 needs a number, and for a version that
    was not trained with scores.
    """
    wording = _wording(version)
    text = prompt
    if aesthetic is not None and wording.aesthetic_sign not in prompt:
        text += wording.aesthetic.format(_score_text(wording, aesthetic, AESTHETIC_WORDS))
    if motion is not None and wording.motion_sign not in prompt:
        text += wording.motion.format(_score_text(wording, motion, MOTION_WORDS))
    if camera_motion is not None and CAMERA_SIGN not in prompt:
        text += CAMERA.format(camera_motion)
    return text


def read_aesthetic(version: str, text: str) -> Score | None:
    """The aesthetic score a person typed: None for "", "none" or "off". ValueError names the nearest good value."""
    return _read_score("aesthetic score", _wording(version), version, text, AESTHETIC_WORDS)


def check_aesthetic(text: str) -> None:
    """Refuse what is an aesthetic score in no release. Raises ValueError with the nearest word and its number."""
    text = text.strip().lower()
    if text in AESTHETIC_WORDS or text in NO_SCORE:
        return
    try:
        number = float(text)
    except ValueError:
        nearest = _nearest(text, AESTHETIC_WORDS)
        raise ValueError(
            f"The aesthetic score is '{shortened(text)}', but it is a number or, in Open-Sora 1.3, one of "
            f"{', '.join(AESTHETIC_WORDS)}; the nearest good value is '{nearest}', the number for '{nearest}' is "
            f"{number_for(nearest, AESTHETIC_WORDS):g}."
        ) from None
    _expect_score("aesthetic score", number, text)


def read_motion(version: str, text: str) -> Score | None:
    """The motion score a person typed, like :func:`read_aesthetic`."""
    return _read_score("motion score", _wording(version), version, text, MOTION_WORDS)


def word_for(score: float, words: Mapping[str, float]) -> str:
    """The word of the first bound above ``score``."""
    return next((word for word, bound in words.items() if score < bound), list(words)[-1])


def number_for(word: str, words: Mapping[str, float]) -> float:
    """A number in the range of ``word``: its lower bound, or one less than the first bound."""
    if word not in words:
        raise ValueError(f"There is no word '{shortened(word)}' for a score; the words are {', '.join(words)}.")
    bounds = [0.0, *words.values()]
    position = list(words).index(word)
    return bounds[position] if position else max(bounds[1] - 1.0, 0.0)


def _wording(version: str) -> Wording:
    if version not in WORDINGS:
        raise ValueError(f"Open-Sora {shortened(version)} was not trained with scores; choose {' or '.join(WORDINGS)}.")
    return WORDINGS[version]


def _score_text(wording: Wording, score: Score, words: Mapping[str, float]) -> str:
    if not wording.in_words:
        if isinstance(score, str):
            raise ValueError(
                f"Open-Sora 1.2 takes scores as numbers such as 6.5, not as the text '{shortened(score)}'."
            )
        return f"{score:.1f}"
    try:
        return word_for(float(score), words)
    except ValueError:
        return str(score)


def _read_score(name: str, wording: Wording, version: str, text: str, words: Mapping[str, float]) -> Score | None:
    text = text.strip().lower()
    if text in NO_SCORE:
        return None
    try:
        number = float(text)
    except ValueError:
        return _read_word(name, wording, version, text, words)
    _expect_score(name, number, text)
    return number


def _expect_score(name: str, number: float, text: str) -> None:
    if not math.isfinite(number) or number < 0:
        raise ValueError(
            f"The {name} is '{shortened(text)}', but it must be a number from 0 up; leave it empty to say nothing."
        )


def _nearest(text: str, words: Mapping[str, float]) -> str:
    return (difflib.get_close_matches(text[:SHOWN_CHARACTERS], words, n=1, cutoff=0.0) or ["good"])[0]


def _read_word(name: str, wording: Wording, version: str, text: str, words: Mapping[str, float]) -> str:
    nearest = _nearest(text, words)
    if not wording.in_words:
        raise ValueError(
            f"The {name} is '{shortened(text)}', but Open-Sora {version} was trained with numbers; "
            f"the number for '{nearest}' is {number_for(nearest, words):g}."
        )
    if text not in words:
        allowed = ", ".join(words)
        raise ValueError(
            f"The {name} is '{shortened(text)}', but Open-Sora {version} knows a number or one of {allowed}; "
            f"the nearest good value is '{nearest}'."
        )
    return text
