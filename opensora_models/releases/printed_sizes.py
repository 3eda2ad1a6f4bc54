"""Open-Sora's picture sizes: resolution classes, aspect ratios and lengths in words.

The tables are the original's (opensora/datasets/aspect.py); the values of ``size_tables.json`` are [height, width].
Aspect ratios are written height:width, so "9:16" is a wide picture.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

from .groups import SPATIAL_FACTOR, Version

Size = tuple[int, int]
"""Height and width in pixels."""

SIXTEENTHS = "_16d"
"""Suffix of the classes of 1.3 whose sizes are rounded down to multiples of 16."""
SCALED_CLASSES = {"512": ("256", 2), "1024": ("256", 4), "2048": ("256", 8)}
"""Classes that are another class enlarged by a whole factor."""
RESOLUTIONS = ("144p", "240p", "256", "360p", "480p", "512", "720p", "1024", "1080p", "2k", "2048", "2880", "4k")
"""Resolution classes, named by the shorter side of 16:9 or the side of a square; smallest first."""
SIZE_MULTIPLE: dict[Version, int] = {"1.2": SPATIAL_FACTOR, "1.3": 2 * SPATIAL_FACTOR}
"""Pixels both sides must be a multiple of: whole latents, in 1.3 whole patches."""
MAX_SIDE = 5760
"""Longest side of any published size, in pixels."""
PRESET_LENGTHS = {"2s": 51, "4s": 102, "8s": 204, "16s": 408, "32s": 816}
"""Frames of the length presets in 1.2; "1x" … "16x" count the same clips."""
FRAME_RATE = 24.0
"""Frames per second the models were trained for."""


@cache
def _tables() -> dict[str, dict]:
    return json.loads(Path(__file__).with_name("size_tables.json").read_text(encoding="utf-8"))


def aspect_ratios() -> dict[str, str]:
    """Named aspect ratios (height:width) and the table key each stands for."""
    return dict(_tables()["aspect_ratios"])


def ratios_of(resolution: str) -> dict[str, str]:
    """The named aspect ratios a resolution class has sizes for, like :func:`aspect_ratios`."""
    sizes = class_sizes(resolution)
    return {name: key for name, key in aspect_ratios().items() if key in sizes}


def class_sizes(resolution: str) -> dict[str, Size]:
    """All sizes of a resolution class, keyed by height/width with two decimals."""
    name, rounded = resolution.removesuffix(SIXTEENTHS), resolution.endswith(SIXTEENTHS)
    source, factor = SCALED_CLASSES.get(name, (name, 1))
    if source not in _tables()["sizes"]:
        raise ValueError(f"there is no resolution class {resolution!r}; allowed are {', '.join(RESOLUTIONS)}")
    sizes = {key: (height * factor, width * factor) for key, (height, width) in _tables()["sizes"][source].items()}
    if rounded:
        sizes = {key: (height // 16 * 16, width // 16 * 16) for key, (height, width) in sizes.items()}
    return sizes


def image_size(resolution: str, aspect_ratio: str) -> Size:
    """Height and width in pixels of a resolution class at an aspect ratio.

    ``aspect_ratio`` is a name ("9:16") or the quotient height/width as text ("0.56"). A ratio the class does not
    have is refused with the nearest one it has.
    """
    sizes = class_sizes(resolution)
    key = _ratio_key(aspect_ratio)
    if key not in sizes:
        nearest = min(sizes, key=lambda other: abs(float(other) - float(key)))
        height, width = sizes[nearest]
        raise ValueError(
            f"resolution class {resolution} has no aspect ratio {aspect_ratio} (height:width); "
            f"the nearest good value is {nearest}, that is {height}×{width}"
        )
    return sizes[key]


def _ratio_key(aspect_ratio: str) -> str:
    named = _tables()["aspect_ratios"].get(aspect_ratio)
    if named is not None:
        return named
    try:
        return f"{float(aspect_ratio):.2f}"
    except ValueError:
        known = ", ".join(_tables()["aspect_ratios"])
        raise ValueError(
            f"{aspect_ratio!r} is no aspect ratio; write height:width as one of {known}, or a number such as 0.56"
        ) from None


def closest_ratio(height: float, width: float, resolution: str) -> str:
    """Key of the class size whose height/width is nearest to that of a given picture."""
    return min(class_sizes(resolution), key=lambda key: abs(float(key) - height / width))


def num_frames(length: str | int) -> int:
    """Frames of a length as the original reads it: a preset ("2s", "4x") or a plain number."""
    text = str(length)
    if text in PRESET_LENGTHS:
        return PRESET_LENGTHS[text]
    if text.endswith("x") and text[:-1] in {"1", "2", "4", "8", "16"}:
        return PRESET_LENGTHS["2s"] * int(text[:-1])
    try:
        return int(text)
    except ValueError:
        known = ", ".join(PRESET_LENGTHS)
        raise ValueError(f"{length!r} is no length; write a number of frames or one of {known}") from None
