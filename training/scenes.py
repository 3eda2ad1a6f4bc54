"""What the training clips show: one coloured shape on a plain or patterned background, moving in a named way.

A scene is a handful of words (colour, shape, motion, background, camera) plus random numbers (place, size, speed).
Some combinations of colour, shape and motion are never shown in training: :func:`held_out` lists those that the quality
test asks for and that mixes were chosen on, :func:`set_aside` others that nothing is decided on.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial

import numpy as np

from ..opensora_models.releases.groups import GROUP_FRAMES

# RGB in 0..1. All shape colours are saturated and all backgrounds are not, so that a decoded frame can be read back.
COLOURS = {
    "red": (0.90, 0.12, 0.12),
    "green": (0.13, 0.70, 0.20),
    "blue": (0.15, 0.25, 0.90),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.60, 0.15, 0.75),
    "cyan": (0.10, 0.80, 0.85),
    "orange": (0.98, 0.50, 0.05),
}
BACKGROUNDS = {"black": 0.04, "gray": 0.50, "white": 0.96}
SHAPES = ("circle", "square", "triangle", "star")
MOTIONS = ("left", "right", "up", "down", "grow", "shrink", "rotate", "bounce", "still")
PATTERNS = ("plain", "striped", "checkered")
CAMERAS = ("pan left", "pan right", "zoom in", "zoom out")

# Where the colour-shape-motion combinations kept out of training stand in the order that this seed gives. The 32
# between the two were read once, by a trial on what 1.2 has now: they are trained on.
HELD_OUT_SEED = 7
HELD_OUT, SET_ASIDE = slice(0, 64), slice(96, 128)

REFERENCE_SIDE = 64  # pixels; sizes and speeds below are for pictures of this height and scale with the height
RADIUS = (0.16, 0.24)  # of the picture height
SPEED = (0.9, 1.4)  # pixels per frame of an ordinary move
GROWING = (0.45, 0.6)  # pixels per frame by which the radius of what grows does
BOUNCE_FRAMES = 9.0  # frames from one touch of the ground to the next


def combinations() -> list[tuple[str, str, str]]:
    """Every (colour, shape, motion) that can be told from a picture; a turning circle cannot."""
    every = itertools.product(COLOURS, SHAPES, MOTIONS)
    return [row for row in every if row[1:] != ("circle", "rotate")]


@cache
def held_out() -> tuple[tuple[str, str, str], ...]:
    """64 (colour, shape, motion) rows never used in training, in a fixed order."""
    return _rows_at(HELD_OUT)


@cache
def set_aside() -> tuple[tuple[str, str, str], ...]:
    """32 other such rows: to be read once, when all is decided."""
    return _rows_at(SET_ASIDE)


@cache
def _kept_out() -> frozenset[tuple[str, str, str]]:
    return frozenset((*held_out(), *set_aside()))


def _rows_at(places: slice) -> tuple[tuple[str, str, str], ...]:
    rows = combinations()
    chosen = np.random.default_rng(HELD_OUT_SEED).permutation(len(rows))[places]
    return tuple(rows[index] for index in sorted(chosen))


@dataclass(frozen=True)
class Scene:
    """One clip in words and numbers. Places and sizes are fractions of the picture height, speeds are per frame.
    After ``moves`` frames everything stands still; None: never."""

    colour: str
    shape: str
    motion: str
    background: str
    pattern: str = "plain"
    camera: str | None = None
    x: float = 0.5
    y: float = 0.5
    radius: float = 0.2
    speed: float = 0.0
    angle: float = 0.0
    moves: int | None = None


@dataclass(frozen=True)
class SceneConfig:
    """How often the rarer things appear, and how much of the range of places, sizes and speeds is used (0…1).

    A small ``spread`` keeps the middle of each range: ways through the centre, shapes of about one size.
    ``from_middle`` lets every clip begin in the middle of the picture, as far as the shape's way fits in. ``turn`` are
    the degrees per frame of what rotates, ``turning_radius`` its size; ``shrinking`` are the pixels per frame that the
    radius of what shrinks loses. ``halting_share`` of the clips longer than a group stop somewhere after it, so that
    their way may begin and end wherever that of a short clip may.
    """

    pattern_share: float = 0.1
    camera_share: float = 0.05
    spread: float = 1.0
    from_middle: bool = False
    turn: tuple[float, float] = (4.0, 7.0)
    turning_radius: tuple[float, float] = RADIUS
    shrinking: tuple[float, float] = GROWING
    halting_share: float = 0.0


def draw_words(rng: np.random.Generator, motions: Sequence[str] = MOTIONS) -> tuple[str, str, str]:
    """Random colour, shape and motion (one of ``motions``) of a training clip; never a combination kept out."""
    while True:
        words = (str(rng.choice(list(COLOURS))), str(rng.choice(SHAPES)), str(rng.choice(motions)))
        if is_trained(*words):
            return words


def is_trained(colour: str, shape: str, motion: str) -> bool:
    """Whether training may show this combination."""
    return (colour, shape, motion) not in _kept_out() and (shape, motion) != ("circle", "rotate")


def draw_scene(rng: np.random.Generator, frames: int, aspect: float, config: SceneConfig) -> Scene:
    """A random training scene of ``frames`` frames; ``aspect`` = width / height. Never a combination kept out."""
    return place_scene(rng, *draw_words(rng), frames=frames, aspect=aspect, config=config)


def place_scene(
    rng: np.random.Generator,
    colour: str,
    shape: str,
    motion: str,
    *,
    frames: int,
    aspect: float = 1.0,
    config: SceneConfig | None = None,
) -> Scene:
    """Random place, size and speed for a scene whose words are given; the shape stays in the picture."""
    config = config or SceneConfig()
    moves = None
    if config.halting_share and frames > GROUP_FRAMES and rng.random() < config.halting_share:
        moves = frames = int(rng.integers(GROUP_FRAMES, frames))
    camera = None
    if motion == "still" and rng.random() < config.camera_share * len(MOTIONS):
        camera = str(rng.choice(CAMERAS))
    patterned = camera is not None or rng.random() < config.pattern_share
    draw = partial(_uniform, rng, config.spread)
    radius = draw(*(config.turning_radius if motion == "rotate" else RADIUS))
    speed = draw(*SPEED) / REFERENCE_SIDE
    if motion == "bounce":
        speed = draw(0.22, 0.32)
    elif motion == "rotate":
        speed = draw(*config.turn)
    elif motion in ("grow", "shrink"):
        speed = draw(*(GROWING if motion == "grow" else config.shrinking)) / REFERENCE_SIDE
    x, y = _start(draw, motion, radius, speed, frames, aspect, config.from_middle)
    return Scene(
        colour=colour,
        shape=shape,
        motion=motion,
        background=str(rng.choice(list(BACKGROUNDS))),
        pattern=str(rng.choice(PATTERNS[1:])) if patterned else "plain",
        camera=camera,
        x=x,
        y=y,
        radius=radius if config.from_middle else _start_radius(motion, radius, speed, frames),
        speed=speed,
        angle=draw(-12.0, 12.0),
        moves=moves,
    )


def _uniform(rng: np.random.Generator, spread: float, low: float, high: float) -> float:
    """A number from the middle part of low…high, ``spread`` of it wide."""
    middle = (low + high) / 2
    return float(middle + spread * (rng.uniform(low, high) - middle))


Draw = Callable[[float, float], float]


def _start_radius(motion: str, radius: float, speed: float, frames: int) -> float:
    travel = speed * (frames - 1)
    if motion == "grow":
        return max(0.10, radius - travel / 2)
    if motion == "shrink":
        return min(0.36, radius + travel / 2)
    return radius


def _start(
    draw: Draw, motion: str, radius: float, speed: float, frames: int, aspect: float, from_middle: bool
) -> tuple[float, float]:
    """Start of the shape's centre such that the whole way fits into the picture, or is centred where it cannot."""
    margin = radius + 0.03
    travel = speed * (frames - 1)
    way = {"left": (-travel, 0.0), "right": (travel, 0.0), "up": (0.0, -travel), "down": (0.0, travel)}
    dx, dy = way.get(motion, (0.0, 0.0))
    if motion in ("grow", "shrink"):
        margin = radius + travel / 2 + 0.02
    x = _free(draw, margin, aspect - margin, dx, aspect / 2 if from_middle else None)
    if motion == "bounce":
        return x, draw(0.68, 0.76)
    return x, _free(draw, margin, 1.0 - margin, dy, 0.5 if from_middle else None)


def _free(draw: Draw, low: float, high: float, travel: float, near: float | None) -> float:
    """A start from which ``travel`` ends between low and high too; ``near`` is where it should be if that is free."""
    low, high = max(low, low - travel), min(high, high - travel)
    middle = (low + high) / 2
    if low >= high:
        return middle
    place = draw(low, high)
    return place if near is None else float(np.clip(near + place - middle, low, high))


def tracks(scene: Scene, frames: int) -> dict[str, np.ndarray]:
    """Per-frame numbers of a scene, each float32 [frames]: x, y, radius, angle (degrees), pan, zoom."""
    time = np.arange(frames, dtype=np.float32)
    if scene.moves is not None:
        time = np.minimum(time, scene.moves - 1)
    zero = np.zeros_like(time)
    result = {
        "x": scene.x + zero,
        "y": scene.y + zero,
        "radius": scene.radius + zero,
        "angle": scene.angle + zero,
        "pan": zero,
        "zoom": 1.0 + zero,
    }
    step = scene.speed * time
    if scene.motion in ("left", "right"):
        result["x"] = result["x"] + (step if scene.motion == "right" else -step)
    elif scene.motion in ("up", "down"):
        result["y"] = result["y"] + (step if scene.motion == "down" else -step)
    elif scene.motion == "grow":
        result["radius"] = np.minimum(result["radius"] + step, 0.48)
    elif scene.motion == "shrink":
        result["radius"] = np.maximum(result["radius"] - step, 0.06)
    elif scene.motion == "rotate":
        result["angle"] = result["angle"] + step
    elif scene.motion == "bounce":
        result["y"] = result["y"] - scene.speed * np.abs(np.sin(np.pi * time / BOUNCE_FRAMES))
    if scene.camera is not None:
        result |= _camera_track(scene.camera, time)
    return {name: values.astype(np.float32) for name, values in result.items()}


def _camera_track(camera: str, time: np.ndarray) -> dict[str, np.ndarray]:
    if camera.startswith("pan"):
        return {"pan": (1.0 if camera == "pan right" else -1.0) * time * 1.1 / REFERENCE_SIDE}
    return {"zoom": (1.03 if camera == "zoom in" else 1 / 1.03) ** time}
