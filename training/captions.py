"""The words for a scene, in several phrasings, lower case as Open-Sora's text cleaning leaves them."""

from __future__ import annotations

import numpy as np

from ..opensora_models.releases.release import Release
from ..opensora_models.text.suffixes import FRAME_RATE, append_suffixes
from ..opensora_models.text.suffixes import MOTION_WORDS as SCORES
from .scenes import Scene

MOTION_WORDS = {
    "left": ("moving left", "moving to the left", "sliding left"),
    "right": ("moving right", "moving to the right", "sliding right"),
    "up": ("moving up", "moving upwards", "rising up"),
    "down": ("moving down", "moving downwards", "falling down"),
    "grow": ("growing", "getting bigger", "growing larger"),
    "shrink": ("shrinking", "getting smaller", "shrinking away"),
    "rotate": ("rotating", "spinning", "turning around"),
    "bounce": ("bouncing", "bouncing up and down", "jumping up and down"),
    "still": ("standing still", "not moving", "staying still"),
}
OPENINGS = ("", "a video of ", "there is ")
# What Open-Sora 1.2 and 1.3 append to prompts when scores are asked for; in training they say nothing about the clip.
SCORE_ENDINGS = (" aesthetic score: 6.5.", " the aesthetic score is excellent.", " the motion strength is fair.")
ENDING_SHARE = 0.06
USUAL_SCORE_SHARE = 0.6  # captions of 2.0 with the motion score that is filled in for everybody
PLAIN_SHARE = 0.6  # captions in the simplest phrasing, the one examples use
UNNAMED_BACKGROUND_SHARE = 0.3


def simple_caption(colour: str, shape: str, motion: str, background: str | None = None) -> str:
    """The standard phrasing: "a red circle moving left on a black background"."""
    text = f"{_article(colour)} {colour} {shape} {MOTION_WORDS[motion][0]}"
    return text if background is None else f"{text} on {_article(background)} {background} background"


def caption(scene: Scene, rng: np.random.Generator, scores: bool = True) -> str:
    """A random phrasing of ``scene``; ``scores``: some end as prompts of 1.2 and 1.3 may."""
    background = scene.background if scene.pattern == "plain" else f"{scene.pattern} {scene.background}"
    named = None if rng.random() < UNNAMED_BACKGROUND_SHARE else background
    if rng.random() < PLAIN_SHARE:
        text = simple_caption(scene.colour, scene.shape, scene.motion, named)
    else:
        text = _varied(scene, named, rng)
    if scene.camera is not None:
        text += f". camera motion: {scene.camera}."
    if scores and rng.random() < ENDING_SHARE:
        text = text.rstrip(".") + "." + str(rng.choice(SCORE_ENDINGS))
    return text


def with_suffixes(text: str, motion: str, rng: np.random.Generator, release: Release) -> str:
    """``text`` as prompts of 2.0 end. Most have the usual score whatever moves, as people leave it; the others one that
    fits: the lowest for what stands still, else one from the usual to the strongest."""
    usual = release.text.motion
    if rng.random() < USUAL_SCORE_SHARE:
        score = usual
    else:
        score = SCORES["static"] if motion == "still" else int(rng.integers(SCORES["normal"], SCORES["strong"] + 1))
    return append_suffixes(text, FRAME_RATE, score)


def _varied(scene: Scene, background: str | None, rng: np.random.Generator) -> str:
    thing = f"{_article(scene.colour)} {scene.colour} {scene.shape}"
    motion = str(rng.choice(MOTION_WORDS[scene.motion]))
    opening = str(rng.choice(OPENINGS))
    if background is None:
        return f"{opening}{thing} {motion}"
    place = f"{_article(background)} {background} background"
    forms = (
        f"{opening}{thing} {motion} on {place}",
        f"{opening}{thing} on {place}, {motion}",
        f"on {place}, {thing} is {motion}",
    )
    return str(rng.choice(forms))


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"
