"""Reads a decoded clip back into words: which colour, which shape, which motion. Pure arithmetic on frames.

The shape is what is saturated (backgrounds are gray): its mean colour, its outline's moments and how its place, size
and turn change over time name the words of :mod:`.scenes`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from .pictures import to_bytes
from .rendering import render
from .scenes import COLOURS, REFERENCE_SIDE, SHAPES, SceneConfig, place_scene

MIN_SATURATION = 0.22  # of max(RGB) - min(RGB): below this a pixel is background
MIN_PIXELS = 8.0  # fewer saturated pixels (at 64 pixels' height) are no shape
# Changes over a clip that count as motion, in picture heights, logarithm of the size, and degrees.
MIN_TRAVEL = 0.09
MIN_GROWTH = 0.18
MIN_TURN = 28.0
MIN_BOUNCE = 0.09
ORDERS = {"triangle": 3, "square": 4, "star": 5}  # symmetry of the shapes that can be seen turning
REFERENCE_EXAMPLES = 40  # drawn examples of each shape that the classifier is measured on
REFERENCE_SEED = 3
SOFTNESS = (0, 2, 4)  # how often examples are blurred


@dataclass(frozen=True)
class Track:
    """The shape in each frame; NaN where there is none. Places and sizes in picture heights."""

    x: np.ndarray
    y: np.ndarray
    size: np.ndarray
    phases: dict[str, np.ndarray]
    features: np.ndarray
    colour: np.ndarray

    @property
    def seen(self) -> np.ndarray:
        return np.isfinite(self.size)


@dataclass(frozen=True)
class Reading:
    """What a clip shows, in the words of :mod:`.scenes`; None where nothing can be told."""

    colour: str | None
    shape: str | None
    motion: str | None


def read_clip(frames: np.ndarray) -> Reading:
    """Words for frames uint8 [T, H, W, 3]."""
    track = follow(frames)
    if track.seen.sum() < max(1, len(frames) // 2):
        return Reading(None, None, None)
    shape = _shape(track)
    return Reading(_colour(track), shape, _motion(track, shape) if len(frames) > 1 else None)


def follow(frames: np.ndarray) -> Track:
    """Measure the saturated shape in frames uint8 [T, H, W, 3]."""
    values = frames.astype(np.float32) / 255
    height, width = frames.shape[1:3]
    saturation = values.max(-1) - values.min(-1)
    weight = np.clip((saturation - MIN_SATURATION) / MIN_SATURATION, 0, 1)
    enough = weight.sum((1, 2)) >= MIN_PIXELS * (height / REFERENCE_SIDE) ** 2
    grid_y, grid_x = np.meshgrid((np.arange(height) + 0.5) / height, (np.arange(width) + 0.5) / height, indexing="ij")
    rows = [
        _measure(weight[i], values[i], grid_x, grid_y, height) if enough[i] else _nothing() for i in range(len(frames))
    ]
    numbers = np.stack([row[0] for row in rows])
    phases = np.stack([row[1] for row in rows])
    return Track(
        x=numbers[:, 0],
        y=numbers[:, 1],
        size=numbers[:, 2],
        phases={shape: phases[:, index] for index, shape in enumerate(ORDERS)},
        features=numbers[:, 3:7],
        colour=numbers[:, 7:],
    )


def _nothing() -> tuple[np.ndarray, np.ndarray]:
    return np.full(10, np.nan), np.full(len(ORDERS), np.nan)


def _measure(
    weight: np.ndarray, picture: np.ndarray, grid_x: np.ndarray, grid_y: np.ndarray, height: int
) -> tuple[np.ndarray, np.ndarray]:
    """(x, y, size, four features, RGB) and the turn of each symmetry in radians, of one frame."""
    total = weight.sum()
    x, y = (weight * grid_x).sum() / total, (weight * grid_y).sum() / total
    area = total / height**2
    size = np.sqrt(area / np.pi)
    place = ((grid_x - x) + 1j * (grid_y - y)) / size
    spread = (weight * np.abs(place) ** 2).sum() / total
    moments = [(weight * place**order).sum() / total for order in ORDERS.values()]
    features = [spread, *(np.abs(moment) for moment in moments)]
    strong = weight * (weight >= np.quantile(weight[weight > 0], 0.4))
    colour = (strong[..., None] * picture).sum((0, 1)) / strong.sum()
    return np.array([x, y, size, *features, *colour]), np.array([np.angle(moment) for moment in moments])


def _colour(track: Track) -> str:
    """The palette colour nearest in hue and saturation, then brightness."""
    seen = np.nanmedian(track.colour, axis=0)
    return min(COLOURS, key=lambda name: _colour_distance(seen, np.array(COLOURS[name])))


def _colour_distance(a: np.ndarray, b: np.ndarray) -> float:
    def chroma(colour: np.ndarray) -> np.ndarray:
        shifted = colour - colour.min()
        return shifted / max(float(shifted.max()), 1e-6)

    return float(np.abs(chroma(a) - chroma(b)).sum() + 0.3 * np.abs(a - b).sum())


def _shape(track: Track) -> str:
    names, means, deviations = _shape_examples()
    seen = _shape_features(track)
    distances = (((seen - means) / deviations) ** 2).sum(axis=1)
    return names[int(distances.argmin())]


def _shape_features(track: Track) -> np.ndarray:
    return np.nanmedian(track.features, axis=0)


@lru_cache(maxsize=1)
def _shape_examples() -> tuple[Sequence[str], np.ndarray, np.ndarray]:
    """Name and mean of the features of each shape, drawn sharp and as softly as decoders draw; common deviation."""
    rng = np.random.default_rng(REFERENCE_SEED)
    names, rows = [], []
    for shape in SHAPES:
        motions = ("left", "still", "grow", "shrink")
        scenes = [
            place_scene(rng, "red", shape, motions[i % 4], frames=17, config=SceneConfig(0.0, 0.0))
            for i in range(REFERENCE_EXAMPLES)
        ]
        clips = render(scenes, 17, REFERENCE_SIDE, REFERENCE_SIDE)[:, :, ::4]
        for times in SOFTNESS:
            names.append(shape)
            rows.append([_shape_features(follow(to_bytes(clip))) for clip in _softened(clips, times)])
    values = np.array(rows)
    return names, values.mean(axis=1), values.std(axis=1).mean(axis=0) + 0.02


def _softened(clips: Tensor, times: int) -> Tensor:
    """[B, 3, T, H, W] averaged over 3x3 pixels again and again."""
    for _ in range(times):
        clips = F.avg_pool3d(clips, (1, 3, 3), stride=1, padding=(0, 1, 1), count_include_pad=False)
    return clips


def _motion(track: Track, shape: str) -> str:
    time = np.flatnonzero(track.seen).astype(np.float64)
    x, y, size = (values[track.seen] for values in (track.x, track.y, track.size))
    span = time[-1] - time[0]
    growth = np.polyfit(time, np.log(size), 1)[0] * span
    dx, dy = (np.polyfit(time, values, 1)[0] * span for values in (x, y))
    if _bounces(y):
        return "bounce"
    strengths = {
        "travel": np.hypot(dx, dy) / MIN_TRAVEL,
        "growth": abs(growth) / MIN_GROWTH,
        "turn": abs(_turn(track, shape)) / MIN_TURN,
    }
    kind = max(strengths, key=strengths.__getitem__)
    if strengths["travel"] >= 1 and strengths["growth"] < 2 * strengths["travel"]:
        kind = "travel"
    if strengths[kind] < 1:
        return "still"
    if kind == "travel":
        if abs(dx) > abs(dy):
            return "right" if dx > 0 else "left"
        return "down" if dy > 0 else "up"
    if kind == "growth":
        return "grow" if growth > 0 else "shrink"
    return "rotate"


def _bounces(y: np.ndarray) -> bool:
    """Up and down again: the way travelled is much longer than the way from start to end, in two directions."""
    smooth = np.convolve(y, np.ones(3) / 3, mode="valid") if len(y) > 4 else y
    steps = np.diff(smooth)
    up, down = -steps[steps < 0].sum(), steps[steps > 0].sum()
    return bool(min(up, down) >= MIN_BOUNCE)


def _turn(track: Track, shape: str) -> float:
    """Degrees a shape of this symmetry has turned over the clip."""
    if shape not in ORDERS:
        return 0.0
    phase = np.unwrap(track.phases[shape][track.seen])
    slope = np.polyfit(np.arange(len(phase)), phase, 1)[0] * (len(phase) - 1)
    return float(np.degrees(slope) / ORDERS[shape])
