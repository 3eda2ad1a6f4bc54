"""Fifty steps of a recipe, spread over its parts, and the time that they predict for all of them on this machine."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from .progress import log

CALIBRATION = 50
WARM = 2  # first steps of every part, which prepare and allocate, count for nothing

Taking = Callable[[Sequence[int], Path], Iterator[None]]
"""A run of so many steps in each part in a folder; every step is one item."""


def calibrate(taking: Taking, parts: Sequence[int]) -> float:
    """Seconds that ``parts`` (steps of each part of a recipe) will take; told in the log, part by part.

    What a run does once for a part, as drawing a bank of clips, belongs before its first steps and is not counted.
    """
    each = -(-CALIBRATION // len(parts)) + WARM
    with tempfile.TemporaryDirectory() as folder:
        times = [time.perf_counter()]
        for _ in taking([each] * len(parts), Path(folder)):
            times.append(time.perf_counter())
    total = 0.0
    for number, steps in enumerate(parts):
        first = number * each + WARM
        last = (number + 1) * each
        seconds = (times[last] - times[first]) / (last - first)
        total += seconds * steps
        log.info("part %d: %.3f s per step, %d steps in %.0f min", number + 1, seconds, steps, seconds * steps / 60)
    log.info("all %d steps: %.0f min", sum(parts), total / 60)
    return total
