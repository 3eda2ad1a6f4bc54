"""How far every reuse moves the result of a run, measured on the weights and the prompt at hand.

The run is walked by Euler's rule. Pass one computes it in full and keeps the latents of every step. Pass two computes
each step again, to have what the blocks add there, and goes on from it for a few steps without the blocks: that costs
next to nothing, and the distance to the latents of pass one is what the reuse did. Pass three carries some of these
deviations on to the end in full, which tells how much a deviation of that noise level grows or shrinks; between them
the logarithm is interpolated. Errors are root mean squares of latents at the end of the run.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from .stack import Hook, Run

LONGEST = 6
"""Most steps one computed step stands in for; published tables reuse at most five."""
PROBES = 4
"""Deviations that are followed to the end, each half a run on average."""
SMALLEST = 1e-12

Denoise = Callable[[Tensor, float], Tensor]
"""Latents and their noise level -> the clean latents the model expects, guidance included."""


class Recorder:
    """What the calls of one step add, by row, and the hook that notes it or puts it in the blocks' place."""

    def __init__(self) -> None:
        self.replays, self.computed = False, 0
        self._rows: dict[Hashable, Tensor] = {}

    def record(self) -> None:
        """Compute from now on, and keep what the blocks add."""
        self.replays, self.computed = False, 0
        self._rows.clear()

    def replay(self) -> None:
        """From now on leave the blocks out in rows computed since :meth:`record`, as the cache of a run does."""
        self.replays = True

    def around(self, rows: Sequence[Hashable], level: float, mask: Tensor | None = None) -> Hook:
        """As in :meth:`.stack.StackCache.around`."""
        return lambda x, modulation, run: self._call(tuple(rows), x, run)

    def _call(self, rows: tuple[Hashable, ...], x: Tensor, run: Run) -> Tensor:
        if self.replays and all(row in self._rows for row in rows):
            return x + torch.cat([self._rows[row] for row in rows])
        out = run(x.clone())
        self.computed += len(rows)
        self._rows.update(zip(rows, (out - x).chunk(len(rows)), strict=True))
        return out


@dataclass
class Measured:
    """``errors`` as in :mod:`.choosing`, ``growth`` per step, ``scale``: root mean square of the result.

    ``rows``, shaped like the errors: how many rows each span really computed.
    """

    errors: list[list[float]]
    growth: list[float]
    scale: float
    calls: int = field(default=0)
    """Steps that were computed in full."""
    rows: list[list[int]] = field(default_factory=list)


def evaluations(steps: int, probes: int = PROBES) -> int:
    """Steps that :func:`measure` computes in full: what it costs, in steps."""
    return 2 * steps + sum(steps - place for place in _places(steps, probes))


def measure(
    denoise: Denoise,
    recorder: Recorder,
    noise: Tensor,
    schedule: Sequence[float],
    *,
    longest: int = LONGEST,
    probes: int = PROBES,
    after_step: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Measure one prompt.

    Args:
        denoise: asks the model, whose calls go through ``recorder.around``.
        noise: latents at ``schedule[0]``.
        schedule: falling noise levels, the last one the end.
        after_step: told after every step that was computed in full how many there were.

    Raises ValueError where the run itself gives no finite numbers.
    """
    steps, done = len(schedule) - 1, 0

    def full(x: Tensor, step: int) -> Tensor:
        nonlocal done
        recorder.record()
        after = euler(denoise, x, schedule, step)
        done += 1
        after_step(done)
        return after

    path = [noise]
    for step in range(steps):
        path.append(full(path[-1], step))
    scale = rms(path[-1])
    if not math.isfinite(scale):
        raise ValueError("The run to be measured gives no finite numbers; try another seed, or weights in bfloat16.")
    errors, rows, strays = _reused(denoise, recorder, path, full, schedule, longest)
    growth = _growth(strays, path, full, steps, probes)
    carried = [
        [error * growth[step + 1 + reused] for reused, error in enumerate(row)] for step, row in enumerate(errors)
    ]
    return Measured(carried, growth, scale, done, rows)


def euler(denoise: Denoise, x: Tensor, schedule: Sequence[float], step: int) -> Tensor:
    """One step of Euler's rule from ``schedule[step]`` to the next level."""
    level, after = schedule[step], schedule[step + 1]
    return x + (x - denoise(x, level)) * ((after - level) / level)


def _reused(
    denoise: Denoise,
    recorder: Recorder,
    path: Sequence[Tensor],
    full: Callable[[Tensor, int], Tensor],
    schedule: Sequence[float],
    longest: int,
) -> tuple[list[list[float]], list[list[int]], dict[int, Tensor]]:
    """Pass two: how far each span of reused steps strays from ``path``, rows computed, latents that strayed first."""
    errors: list[list[float]] = []
    rows: list[list[int]] = []
    strays: dict[int, Tensor] = {}
    for step in range(len(schedule) - 1):
        again = full(path[step], step)
        recorder.replay()
        errors.append([0.0])
        rows.append([recorder.computed])
        for end, x in _without_blocks(denoise, again, schedule, step, longest):
            errors[-1].append(rms(x - path[end]))
            rows[-1].append(recorder.computed)
            strays.setdefault(end, x)
    return errors, rows, strays


def _without_blocks(
    denoise: Denoise, x: Tensor, schedule: Sequence[float], start: int, longest: int
) -> Iterator[tuple[int, Tensor]]:
    """The latents after each step that reuses ``start``, with the number of the step they stand before."""
    for step in range(start + 1, min(start + 1 + longest, len(schedule) - 1)):
        x = euler(denoise, x, schedule, step)
        yield step + 1, x


def _growth(
    strays: dict[int, Tensor],
    path: Sequence[Tensor],
    full: Callable[[Tensor, int], Tensor],
    steps: int,
    probes: int,
) -> list[float]:
    """By how much a deviation before each step has grown at the end of the run, which is "before step ``steps``"."""
    known = {steps: 1.0}
    for place in _places(steps, probes):
        x = strays.get(place)
        if x is None or rms(x - path[place]) < SMALLEST:
            continue
        before = rms(x - path[place])
        for step in range(place, steps):
            x = full(x, step)
        known[place] = max(rms(x - path[-1]) / before, SMALLEST)
    return [_between(known, step) for step in range(steps + 1)]


def _places(steps: int, probes: int) -> list[int]:
    """Steps before which deviations are looked at: the first that can deviate, and equal parts of the rest."""
    return sorted({2 + round(number * (steps - 2) / probes) for number in range(probes)} - {steps}) if steps > 2 else []


def _between(known: dict[int, float], step: int) -> float:
    low = max((place for place in known if place <= step), default=min(known))
    high = min((place for place in known if place >= step), default=low)
    if low == high:
        return known[low]
    share = (step - low) / (high - low)
    return math.exp((1 - share) * math.log(known[low]) + share * math.log(known[high]))


def worst_of(measured: Sequence[Measured]) -> list[list[float]]:
    """The largest error of all prompts, as a share of each prompt's own result."""
    relative = [[[error / max(each.scale, SMALLEST) for error in row] for row in each.errors] for each in measured]
    return [[max(values) for values in zip(*rows, strict=True)] for rows in zip(*relative, strict=True)]


def rms(x: Tensor) -> float:
    """Root mean square."""
    return float(x.float().square().mean().sqrt())
