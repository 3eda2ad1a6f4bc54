"""How fast networks were computed on this machine: a small file, kept from one start of ComfyUI to the next."""

from __future__ import annotations

import json
import math
from pathlib import Path

from .writing import text_writer, write_whole

MOST_BYTES = 100_000
MOST_KEPT = 200
SAME = 0.02
"""Two speeds that differ by less are one, so that not every run writes."""


def speeds_in(file: Path) -> dict[str, float]:
    """Operations a second by what was measured, the last one last; empty for a file that is missing or damaged."""
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(MOST_BYTES))
    except (OSError, ValueError, RecursionError):
        return {}
    known = found.items() if isinstance(found, dict) else ()
    return {name: float(rate) for name, rate in known if _is_speed(rate)}


def keep_speed(file: Path, name: str, rate: float) -> None:
    """Note what ``name`` was computed with, in operations a second. Raises CannotStore."""
    known = speeds_in(file)
    last = next(reversed(known), None)
    if not _is_speed(rate) or (last == name and math.isclose(known[name], rate, rel_tol=SAME)):
        return
    kept = {other: speed for other, speed in known.items() if other != name} | {name: rate}
    text = json.dumps(dict(list(kept.items())[-MOST_KEPT:]), indent=1)
    write_whole(file, text_writer(text))


def _is_speed(rate: object) -> bool:
    return isinstance(rate, (int, float)) and not isinstance(rate, bool) and 0 < rate < math.inf
