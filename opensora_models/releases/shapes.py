"""Shapes and durations as menus show them: one writing for all releases, and what each release makes of it.

Aspect ratios are shown as height:width with a word, as 1.2 and 1.3 write them; 2.0 writes width:height.
"""

from __future__ import annotations

import math

from .known import RELEASES
from .printed_sizes import FRAME_RATE, Size, aspect_ratios
from .release import Release
from .sizes import RATIOS, Sizes

CLOSE = 5e-3
"""Two ratios that differ by less are one: 27:50 is 1:1.85."""
SECONDS = ("2s", "4s", "5s", "8s", "16s", "32s")
"""Durations of menus; 5 s are the longest clip of 2.0's settings."""


def ratio_of(label: str) -> float:
    """Height by width of "9:16" or "9:16 (wide)"."""
    height, width = (float(part) for part in label.split(" ")[0].split(":"))
    return height / width


def label_of(ratio: str) -> str:
    """A height:width ratio with a word, because "9:16" alone is read as portrait by half of all people."""
    quotient = ratio_of(ratio)
    return f"{ratio} ({'square' if quotient == 1 else 'wide' if quotient < 1 else 'tall'})"


def reversed_ratio(ratio: str) -> str:
    """ "16:9" for "9:16"."""
    return ":".join(reversed(ratio.split(":")))


def _all_ratios() -> list[str]:
    """Every ratio a release names, height:width, from wide to tall; of two that are close the older one."""
    ratios = list(aspect_ratios())
    for ratio in (*map(reversed_ratio, RATIOS), *RATIOS):
        if not any(math.isclose(ratio_of(ratio), ratio_of(known), rel_tol=CLOSE) for known in ratios):
            ratios.append(ratio)
    return sorted(ratios, key=ratio_of)


ASPECT_RATIOS = {label_of(ratio): ratio for ratio in _all_ratios()}
"""Labels of a menu and the height:width each stands for."""
COMMON_RATIOS = tuple(map(label_of, ("1:2", "9:16", "2:3", "3:4", "1:1", "4:3", "3:2", "16:9", "2:1")))
"""The shapes of cameras, screens and prints, which a menu shows at once."""
MORE_RATIOS = tuple(label for label in ASPECT_RATIOS if label not in COMMON_RATIOS)
"""All others, behind the entry for more."""


def size_of(sizes: Sizes, title: str, resolution: str, label: str) -> Size:
    """Height and width in pixels of a resolution class in a shape of :data:`ASPECT_RATIOS`.

    Raises ValueError with the nearest good value for a class or shape that ``sizes`` (those of ``title``) have not.
    """
    wanted = ratio_of(label)
    if resolution not in sizes.resolutions:
        near = _nearest_class(sizes, resolution, wanted)
        shape = _nearest_label(sizes, near, wanted)
        more = "" if math.isclose(ratio_of(shape), wanted, rel_tol=CLOSE) else f", with aspect_ratio {shape}"
        raise ValueError(
            f"The input resolution is {resolution}, but {title} has {' and '.join(sizes.resolutions)}; the nearest "
            f"good value is {near}{more}."
        )
    found = _ratio_in(sizes, resolution, wanted)
    if found is None:
        nearest = _nearest_label(sizes, resolution, wanted)
        raise ValueError(
            f"The input aspect_ratio is {label}, which resolution {resolution} of {title} has no size for; the nearest "
            f"good value is {nearest}."
        )
    return sizes.size(resolution, found)


def usable_size(sizes: Sizes, height: int, width: int) -> Size:
    """The largest size not above the given one that a release can fill."""
    return height // sizes.multiple * sizes.multiple, width // sizes.multiple * sizes.multiple


def _ratio_in(sizes: Sizes, resolution: str, wanted: float) -> str | None:
    """The name, in the release's own writing, of a height:width ratio in a class."""
    for name, quotient in sizes.ratios(resolution).items():
        if math.isclose(quotient, wanted, rel_tol=CLOSE):
            return name
    return None


def _nearest_label(sizes: Sizes, resolution: str, wanted: float) -> str:
    """The shape of a menu nearest to ``wanted`` that a class has."""
    known = [each for each in ASPECT_RATIOS if _ratio_in(sizes, resolution, ratio_of(each))]
    return min(known, key=lambda each: abs(math.log(ratio_of(each) / wanted)))


def _nearest_class(sizes: Sizes, resolution: str, wanted: float) -> str:
    """The class whose pictures have the most similar area, of those that have the shape if any has."""
    having = [each for each in sizes.resolutions if _ratio_in(sizes, each, wanted) is not None]
    pixels = area_of(resolution)
    return min(having or sizes.resolutions, key=lambda each: abs(math.log(area_of(each) / pixels)))


def area_of(resolution: str) -> float:
    """Pixels of a class of any release."""
    for release in RELEASES.values():
        if resolution in release.sizes.resolutions:
            height, width = release.sizes.size(resolution, next(iter(release.sizes.ratios(resolution))))
            return height * width
    raise ValueError(f"there is no resolution class {resolution!r}")


def frames_of(release: Release, duration: str) -> int:
    """Frames of a duration such as "2s": the release's own number, else the good length nearest to 24 a second."""
    lengths = release.latents.lengths
    return lengths.presets.get(duration) or lengths.nearest(int(duration.removesuffix("s")) * FRAME_RATE)
