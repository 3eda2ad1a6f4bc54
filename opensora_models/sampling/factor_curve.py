"""Curves of factors: what a number is multiplied by over the steps of a run or along the frames of a clip.

Both axes reach from 0 to 1, as in ComfyUI's curve editor. A curve is written as text, ``0:1, 0.5:0.7, 1:0.2``, as
pairs, or as that editor writes it: ``{"points": [[0, 1], [1, 0.2]], "interpolation": "monotone_cubic"}``. Points of a
text are joined by straight lines.

Source of the smooth form: Fritsch and Carlson, Monotone piecewise cubic interpolation (1980), with the slopes that
ComfyUI's editor draws, so that a run follows the line that is seen.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from ..messages.quoting import described, shortened

SMOOTH, STRAIGHT = "monotone_cubic", "linear"
"""ComfyUI's names of the two ways between points."""
INTERPOLATIONS = (SMOOTH, STRAIGHT)
EXAMPLE = "0:1, 0.5:0.7, 1:0.2"
MOST_POINTS = 1000
STEEPEST = 3.0
"""How many times the slope between two points those at its ends may have, as a length, without overshooting."""
PAUSE = re.compile(r"[,;\n]+")

Point = tuple[float, float]


@dataclass(frozen=True)
class FactorCurve:
    """``points``: (share, factor), sorted by share; outside of them the first and the last factor hold.

    ``slopes`` are those of a smooth curve at its points. They are made with the curve, not when first asked for: what
    a run was made with is known again by all attributes of what it was given.
    """

    points: tuple[Point, ...] = ((0.0, 1.0), (1.0, 1.0))
    smooth: bool = False
    slopes: tuple[float, ...] = field(default=(), init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.smooth and len(self.points) > 1:
            object.__setattr__(self, "slopes", _slopes(self.points))

    @property
    def flat(self) -> bool:
        """Whether it changes nothing anywhere."""
        return all(factor == 1.0 for _, factor in self.points)

    def at(self, share: float) -> float:
        """The factor at a share between 0 and 1."""
        (start, first), (end, last) = self.points[0], self.points[-1]
        if not start < share < end:
            return first if share <= start else last
        after = bisect_right(self.points, share, key=itemgetter(0))
        (left, low), (right, high) = self.points[after - 1 : after + 1]
        width = right - left
        t = (share - left) / width
        if not self.smooth:
            return low + (high - low) * t
        begins, ends = self.slopes[after - 1 : after + 1]
        bend = t * (1 - t) * ((1 - t) * width * begins - t * width * ends)
        return low + (high - low) * t * t * (3 - 2 * t) + bend

    def over(self, count: int) -> tuple[float, ...]:
        """The factors of ``count`` steps or frames: 0 is the first one and 1 the last one. One alone is the first."""
        return tuple(self.of(place, count) for place in range(count))

    def of(self, place: int, count: int) -> float:
        """The factor of one of ``count`` steps or frames, counted from 0."""
        return self.at(place / max(1, count - 1))


def _slopes(points: Sequence[Point]) -> tuple[float, ...]:
    """The slope at every point: between its neighbours', flat at turns, and never so steep that it overshoots."""
    pairs = list(zip(points, points[1:], strict=False))
    secants = [(high - low) / (right - left) if right > left else 0.0 for (left, low), (right, high) in pairs]
    inner = [(one + two) / 2 if one * two > 0 else 0.0 for one, two in zip(secants, secants[1:], strict=False)]
    slopes = [secants[0], *inner, secants[-1]]
    for place, secant in enumerate(secants):
        if secant == 0:
            slopes[place] = slopes[place + 1] = 0.0
            continue
        length = math.hypot(slopes[place], slopes[place + 1]) / abs(secant)
        if length > STEEPEST:
            slopes[place] *= STEEPEST / length
            slopes[place + 1] *= STEEPEST / length
    return tuple(slopes)


FLAT = FactorCurve()


def together(curves: Sequence[FactorCurve], count: int) -> tuple[float, ...]:
    """The factors of ``count`` steps or frames where several curves hold: they multiply; 1 without any."""
    rows = [curve.over(count) for curve in curves]
    return tuple(math.prod(row[place] for row in rows) for place in range(count))


def read_curve(value: Any) -> FactorCurve:
    """The curve a text, pairs or the editor's value describes; an empty text is flat.

    Raises:
        ValueError: one sentence on the first thing that is wrong.
    """
    if isinstance(value, str):
        return _curve([_pair_of(entry) for entry in PAUSE.split(value) if entry.strip()], smooth=False)
    if not isinstance(value, Mapping):
        return _curve(value, smooth=True)
    interpolation = value.get("interpolation", SMOOTH)
    if interpolation not in INTERPOLATIONS:
        raise ValueError(
            f"Points can be joined by {' or '.join(INTERPOLATIONS)}, not {described(interpolation)}; the nearest good "
            f"value is {SMOOTH}."
        )
    return _curve(value.get("points"), smooth=interpolation == SMOOTH)


def _pair_of(entry: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in entry.split(":"))


def _curve(pairs: Any, *, smooth: bool) -> FactorCurve:
    if not isinstance(pairs, Sequence) or isinstance(pairs, (str, bytes)):
        raise ValueError(f"A curve is made of points, got {described(pairs)}; write for example {EXAMPLE}.")
    if len(pairs) > MOST_POINTS:
        raise ValueError(f"The curve has {len(pairs)} points, at most {MOST_POINTS} are allowed.")
    points = [_point(number, pair) for number, pair in enumerate(pairs, 1)]
    return FactorCurve(tuple(sorted(points, key=lambda point: point[0])), smooth) if points else FLAT


def _point(number: int, pair: Any) -> Point:
    if not isinstance(pair, (list, tuple)) or len(pair) != 2:
        text = ":".join(pair) if isinstance(pair, tuple) and all(isinstance(each, str) for each in pair) else str(pair)
        raise ValueError(
            f"Point {number} of the curve is '{shortened(text)}'; a point is a share and a factor, for example "
            f"{EXAMPLE}."
        )
    share, factor = (_number(f"The {what} of point {number}", each) for what, each in zip(WHAT, pair, strict=True))
    return share, factor


WHAT = ("share", "factor")


def _number(where: str, value: Any) -> float:
    """A number from 0 to 1, given as one or written as text."""
    try:
        read = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError, OverflowError):
        read = math.nan
    if not math.isfinite(read):
        raise ValueError(f"{where} is {described(value)}, but must be a number between 0 and 1.")
    if not 0.0 <= read <= 1.0:
        raise ValueError(
            f"{where} is {read:g}, but must lie between 0 and 1; the nearest good value is "
            f"{min(max(read, 0.0), 1.0):g}."
        )
    return read + 0.0  # -0.0 is 0.0


def course_of(values: Sequence[float]) -> str:
    """How a number moves, for a sentence: ``falls from 7 to 1.5``, ``is 3``."""
    first, last, low, high = values[0], values[-1], min(values), max(values)
    if low == high:
        return f"is {first:g}"
    if list(values) in (sorted(values), sorted(values, reverse=True)):
        return f"{'falls' if last < first else 'rises'} from {first:g} to {last:g}"
    return f"goes from {first:g} to {last:g} and lies between {low:g} and {high:g}"


def read_points(name: str, text: str) -> FactorCurve:
    """The curve an input's text describes. Raises ValueError by a sentence that names the input."""
    try:
        return read_curve(text)
    except ValueError as error:
        sentence = str(error)
        raise ValueError(f"The input {name} is no curve: {sentence[0].lower()}{sentence[1:]}") from None
