"""Which steps of a run are computed: a table over noise levels, so that it means the same in a run of other steps.

A table is a row of flags, 1 computed and 0 reused, with the noise level of each. A computed step and the reused ones
after it form a *span*. A run of any other steps or sampler is read by level: within a span that reuses, what was
computed first stands in for the rest; in a span without reuse everything is computed. So the same schedule gives the
same steps, a finer one computes no span twice, a coarser one computes every span it enters, and samplers that look
between two levels need no rule of their own.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..messages.quoting import quoted

MOST_STEPS = 1000
MOST_QUOTED = 100
"""Steps of a table that a sentence still shows."""
SLACK = 1e-5
"""Share of a noise level by which two levels that are one may differ after rounding."""


@dataclass(frozen=True)
class StepTable:
    """``flags``: one character a step, "1" computed and "0" reused; ``levels``: the noise level of each, falling.

    Without ``levels`` the flags are spread over the noise levels of whatever run there is.
    """

    flags: str
    levels: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        _check_flags(self.flags)
        _check_levels(self.levels, len(self.flags))

    @property
    def computed(self) -> int:
        """How many steps are computed."""
        return self.flags.count("1")

    @property
    def reuses(self) -> bool:
        """Whether anything is left out at all."""
        return "0" in self.flags

    def over(self, schedule: Sequence[float]) -> StepTable:
        """The table with levels: its own, or places in ``schedule`` (noise levels of a run, the last one its end)."""
        if self.levels:
            return self
        steps = len(schedule) - 1
        if steps < 1:
            raise ValueError("A run without steps has no noise levels to lay a step table over.")
        return StepTable(self.flags, spread(schedule, len(self.flags)))

    def span(self, level: float) -> int | None:
        """Which span a call at a noise level belongs to; None where it is computed whatever is kept."""
        above = [number for number, known in enumerate(self.levels) if known >= level * (1 - SLACK) - 1e-9]
        place = above[-1] if above else 0
        start = self.flags.rindex("1", 0, place + 1)
        return start if self.flags[start + 1 : start + 2] == "0" else None

    def for_run(self, schedule: Sequence[float]) -> str:
        """The flags of a run with one call a step."""
        table, known, flags = self.over(schedule), None, ""
        for level in schedule[:-1]:
            span = table.span(level)
            flags += "0" if span is not None and span == known else "1"
            known = span
        return flags


def falls(schedule: Sequence[float]) -> bool:
    """Whether every noise level lies below the one before it, as tables over levels need it."""
    return all(high > low for high, low in zip(schedule, schedule[1:], strict=False))


def spread(schedule: Sequence[float], count: int) -> tuple[float, ...]:
    """``count`` levels at equal shares of a run's steps, between two steps in proportion."""
    steps, levels = len(schedule) - 1, []
    for number in range(count):
        place = number * steps / count
        low = min(int(place), steps - 1)
        levels.append(schedule[low] + (schedule[low + 1] - schedule[low]) * (place - low))
    return tuple(levels)


def read_table(text: str) -> StepTable:
    """A table from plain text: flags as ``1110 1010`` or JSON, ``{"steps": "1110", "levels": [1.0, 0.9, 0.7, 0.4]}``.

    JSON may leave the levels away, and may name the computed steps: ``{"computed": [0, 1, 3], "of": 6}``.
    Raises ValueError with one sentence.
    """
    stripped = text.strip()
    if not stripped.startswith(("{", "[", '"')):
        return StepTable("".join(stripped.replace(",", " ").split()))
    try:
        found = json.loads(stripped)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"The step table is no JSON ({error}); write it like 1111101010 instead.") from error
    return table_from(found)


def table_from(found: Any) -> StepTable:
    """A table from what JSON held. Raises ValueError with one sentence."""
    if isinstance(found, str):
        return StepTable(found)
    if isinstance(found, list):
        if any(flag not in (0, 1) for flag in found):
            raise ValueError("A step table that is a list may hold 1 (computed) and 0 (reused) only, like [1, 1, 0].")
        return StepTable("".join(str(int(flag)) for flag in found))
    if not isinstance(found, Mapping):
        raise ValueError('A step table in JSON looks like {"steps": "11101010"}.')
    levels = _numbers(found.get("levels", []))
    if isinstance(found.get("steps"), str):
        return StepTable(found["steps"], levels)
    return StepTable(_named_steps(found.get("computed"), found.get("of")), levels)


def _named_steps(computed: Any, count: Any) -> str:
    if type(count) is not int or not 1 <= count <= MOST_STEPS or not isinstance(computed, list):
        raise ValueError(
            'A step table in JSON looks like {"steps": "11101010"} or {"computed": [0, 1, 2, 4, 6], "of": 8}.'
        )
    wrong = [step for step in computed if type(step) is not int or not 0 <= step < count]
    if wrong:
        raise ValueError(
            f"The step table computes step {quoted(str(wrong[0]))}, but its steps are numbered 0 to {count - 1}."
        )
    return "".join("1" if step in computed else "0" for step in range(count))


def _numbers(found: Any) -> tuple[float, ...]:
    numbers: list[Any] = found if isinstance(found, list) else [None]
    if any(isinstance(level, bool) or not isinstance(level, (int, float)) for level in numbers):
        raise ValueError("The levels of a step table are a list of numbers, the noise level of each of its steps.")
    return tuple(float(level) for level in numbers)


def _check_flags(flags: str) -> None:
    wrong = next((flag for flag in flags if flag not in "01"), None)
    if wrong is not None:
        raise ValueError(
            f"The step table holds {quoted(wrong)}, but is made of 1 (computed) and 0 (reused), like 1111101010."
        )
    if not flags:
        raise ValueError("The step table is empty; write 1 for a computed and 0 for a reused step, like 1111101010.")
    if len(flags) > MOST_STEPS:
        raise ValueError(f"The step table has {len(flags)} steps, but at most {MOST_STEPS} are allowed.")
    if flags[0] != "1":
        best = f"; the nearest good value is '1{flags[1:]}'" if len(flags) <= MOST_QUOTED else ""
        raise ValueError(f"The first step has nothing to reuse, so a step table begins with 1{best}.")


def _check_levels(levels: Sequence[float], steps: int) -> None:
    if not levels:
        return
    if len(levels) != steps:
        raise ValueError(f"The step table has {steps} steps, but {len(levels)} levels; every step needs its own.")
    if not falls(levels) or not all(math.isfinite(level) and level > 0 for level in levels):
        raise ValueError("The levels of a step table must be numbers above 0 that fall from step to step.")
