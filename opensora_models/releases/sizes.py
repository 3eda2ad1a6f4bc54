"""Picture sizes of every release: classes, aspect ratios, and the multiple both sides must have.

Open-Sora 2.0 names a class by the side of its square ("768px" has 768² pixels) and writes aspect ratios
width:height; 1.2 and 1.3 have printed tables and write height:width. Source: upstream ``opensora/datasets/aspect.py``
of each release.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import cache
from typing import Protocol

from . import printed_sizes as sizes
from .printed_sizes import Size

RATIOS = ("2.39:1", "2:1", "16:9", "1.85:1", "9:16", "5:8", "3:2", "4:3", "1:1")
"""Aspect ratios (width:height) that 2.0 names; their reverses are known, too."""

RESOLUTIONS = ("256px", "768px")
"""Resolution classes of 2.0's settings."""

_CLASS = re.compile(r"(\d+)px")


class Sizes(Protocol):
    """The sizes of a release."""

    @property
    def multiple(self) -> int:
        """Pixels both sides must be a multiple of."""

    @property
    def resolutions(self) -> tuple[str, ...]:
        """Classes, smallest first."""

    @property
    def wide_first(self) -> bool:
        """Whether aspect ratios are written width:height."""

    def ratios(self, resolution: str) -> dict[str, float]:
        """The aspect ratios a class has sizes for, in the release's own writing, and height by width of each."""

    def size(self, resolution: str, ratio: str) -> Size:
        """Height and width. Raises ValueError with the nearest good value."""


@dataclass(frozen=True)
class Printed:
    """The tables of 1.2 and 1.3."""

    version: sizes.Version
    wide_first: bool = False

    @property
    def multiple(self) -> int:
        """See :class:`Sizes`."""
        return sizes.SIZE_MULTIPLE[self.version]

    @property
    def resolutions(self) -> tuple[str, ...]:
        """See :class:`Sizes`."""
        return sizes.RESOLUTIONS

    def ratios(self, resolution: str) -> dict[str, float]:
        """See :class:`Sizes`."""
        return {name: _quotient(name) for name in sizes.ratios_of(resolution)}

    def size(self, resolution: str, ratio: str) -> Size:
        """See :class:`Sizes`."""
        return sizes.image_size(resolution, ratio)


@dataclass(frozen=True)
class Computed:
    """The rule of 2.0. ``adjusted`` is its variant for pictures: training and the Flux stage use it."""

    multiple: int = 16
    resolutions: tuple[str, ...] = RESOLUTIONS
    adjusted: bool = False
    wide_first: bool = True

    def ratios(self, resolution: str) -> dict[str, float]:
        """See :class:`Sizes`."""
        return {name: 1 / _quotient(name) for name in self.table(resolution)}

    def size(self, resolution: str, ratio: str) -> Size:
        """See :class:`Sizes`; any class such as "512px" and any number such as "1.5" for width:height will do."""
        pixels = pixel_count(resolution, self.resolutions)
        known = ratio_table(pixels, self.multiple, self.adjusted)
        if ratio in known:
            return known[ratio]
        return _nearest(ratio, known, resolution)

    def table(self, resolution: str) -> dict[str, Size]:
        """Height and width of every aspect ratio of a class."""
        return dict(ratio_table(pixel_count(resolution, self.resolutions), self.multiple, self.adjusted))


def pixel_count(resolution: str, known: tuple[str, ...] = RESOLUTIONS) -> int:
    """Pixels of a class: "256px" has 256². Raises ValueError for another name."""
    match = _CLASS.fullmatch(resolution)
    if match is None or int(match[1]) < 1:
        raise ValueError(f"there is no resolution class {resolution!r}; allowed are {', '.join(known)}")
    return int(match[1]) ** 2


@cache
def ratio_table(pixels: int, multiple: int, adjusted: bool) -> dict[str, Size]:
    """Height and width for every ratio and its reverse, in the original's order.

    Sides are rounded down. ``adjusted``: one of them then moves by ``multiple`` if the area comes closer to ``pixels``,
    and a ratio that gives a size once more is left out.
    """
    wide: dict[str, Size] = {}
    upright: dict[str, Size] = {}
    for ratio in RATIOS:
        height, width = _rounded(pixels, _quotient(ratio), multiple)
        if adjusted:
            height, width = _adjusted(height, width, pixels, multiple)
            if (height, width) in wide.values():
                continue
        wide[ratio] = height, width
        upright[":".join(reversed(ratio.split(":")))] = width, height
    return wide | upright


def _rounded(pixels: int, ratio: float, multiple: int) -> Size:
    width = max(1, int(math.sqrt(pixels * ratio) // multiple)) * multiple
    return max(1, int(pixels / width // multiple)) * multiple, width


def _adjusted(height: int, width: int, pixels: int, multiple: int) -> Size:
    """The size itself or that of its four neighbours that comes closest, the first of equals."""
    best = height, width
    for down, right in ((-multiple, 0), (multiple, 0), (0, -multiple), (0, multiple)):
        other = height + down, width + right
        if abs(other[0] * other[1] - pixels) < abs(best[0] * best[1] - pixels):
            best = other
    return best


def _quotient(ratio: str) -> float:
    """The number that "16:9" or "1.78" stands for."""
    try:
        parts = [float(part) for part in ratio.split(":")]
        quotient = parts[0] / parts[1] if len(parts) == 2 else parts[0]
        if len(parts) > 2 or not (math.isfinite(quotient) and quotient > 0):
            raise ValueError
    except (ValueError, ZeroDivisionError):
        raise ValueError(
            f"{ratio!r} is no aspect ratio; write width:height as one of {', '.join(RATIOS)}, or a number such as 1.78"
        ) from None
    return quotient


def _nearest(ratio: str, known: dict[str, Size], resolution: str) -> Size:
    """A ratio the class does not name is refused with the nearest one it has."""
    wanted = math.log(_quotient(ratio))
    nearest = min(known, key=lambda name: abs(math.log(_quotient(name)) - wanted))
    if math.isclose(_quotient(nearest), _quotient(ratio), rel_tol=5e-3):
        return known[nearest]
    height, width = known[nearest]
    raise ValueError(
        f"resolution class {resolution} has no aspect ratio {ratio} (width:height); "
        f"the nearest good value is {nearest}, that is {height}×{width}"
    )


def check_size(rule: Sizes, title: str, height: int, width: int) -> None:
    """Refuse sizes whose sides are not multiples of the release's, naming the nearest good size."""
    multiple = rule.multiple
    if max(height, width) > sizes.MAX_SIDE:
        good = [max(multiple, min(side, sizes.MAX_SIDE) // multiple * multiple) for side in (height, width)]
        raise ValueError(
            f"a side may have at most {sizes.MAX_SIDE} pixels, {height}×{width} was given; the nearest good size is "
            f"{good[0]}×{good[1]}"
        )
    if height < multiple or width < multiple or height % multiple or width % multiple:
        good = [max(multiple, (side + multiple // 2) // multiple * multiple) for side in (height, width)]
        raise ValueError(
            f"{title} needs height and width in multiples of {multiple} pixels, {height}×{width} was given; "
            f"the nearest good size is {good[0]}×{good[1]}"
        )
