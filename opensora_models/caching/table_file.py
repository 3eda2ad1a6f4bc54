"""Calibrated step tables on disk: a small JSON file, read as carefully as any other that came from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..messages.quoting import LONGEST_FILE_NAME, quoted
from ..storage.writing import text_writer, write_new
from .tables import StepTable, table_from

ENDING = ".steptable.json"
FORMAT = "opensora step tables 1"
MOST_BYTES = 1_000_000
Name = TypeVar("Name", bound=Any)


@dataclass(frozen=True)
class CalibratedTables:
    """``tables``: computed rows of a run -> flags, over ``levels``; ``errors``: the largest error of a span of each.

    Errors are root mean squares as a share of the result's, the worst of all prompts.
    """

    release: str
    levels: tuple[float, ...]
    tables: Mapping[int, str]
    errors: Mapping[int, float] = field(default_factory=dict)
    made: Mapping[str, Any] = field(default_factory=dict)
    """How it was measured, for people: size, prompts, sampler settings."""

    def __post_init__(self) -> None:
        if not self.tables or not self.levels:
            raise ValueError("It holds no step table, or no noise levels.")
        for flags in self.tables.values():
            StepTable(flags, self.levels)

    @property
    def rows(self) -> int:
        """Of the run that leaves nothing out."""
        return max(self.tables)

    def of_share(self, percent: float) -> StepTable:
        """The largest table that computes at most so many percent of the rows; the smallest where none is so small."""
        most = percent / 100 * self.rows
        fitting = [count for count in self.tables if count <= most + 1e-9]
        return StepTable(self.tables[max(fitting) if fitting else min(self.tables)], self.levels)


def save_new_tables(choose: Callable[[], Name], tables: CalibratedTables) -> Name:
    """Write a file under a name that none has; arguments and errors as those of :func:`..storage.writing.write_new`."""
    text = json.dumps(
        {
            "format": FORMAT,
            "release": tables.release,
            "levels": list(tables.levels),
            "tables": {str(count): flags for count, flags in tables.tables.items()},
            "errors": {str(count): error for count, error in tables.errors.items()},
            "made": dict(tables.made),
        },
        indent=1,
    )
    return write_new(choose, text_writer(text))


def load_tables(path: Path) -> CalibratedTables:
    """Read a file of :func:`save_new_tables`. Raises ValueError with one sentence."""
    name = quoted(path.name, LONGEST_FILE_NAME)
    again = "make a new one with Open-Sora Calibrate Step Cache"
    try:
        with path.open("rb") as opened:
            text = opened.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"It is larger than {MOST_BYTES // 1_000_000} MB.")
        return _from_json(json.loads(text))
    except OSError as error:
        raise ValueError(f"{name} cannot be read ({error.strerror or error}); choose another file.") from error
    except (ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:200].rstrip(".")
        raise ValueError(f"{name} is no file of step tables ({reason}); {again}.") from error


def _from_json(found: Any) -> CalibratedTables:
    if not isinstance(found, Mapping) or found.get("format") != FORMAT:
        raise ValueError(f'It does not say "format": "{FORMAT}".')
    release, tables, errors, made = (found.get(name) for name in ("release", "tables", "errors", "made"))
    if not isinstance(release, str) or not isinstance(tables, Mapping):
        raise ValueError("It names no release or no tables.")
    levels, flags = found.get("levels"), {}
    for count, text in tables.items():
        if not str(count).isascii() or not str(count).isdigit() or len(str(count)) > 4 or not isinstance(text, str):
            raise ValueError("Its tables are not numbers of computed rows with their flags.")
        flags[int(count)] = table_from({"steps": text, "levels": levels}).flags
    any_table = table_from({"steps": next(iter(flags.values()), ""), "levels": levels})
    return CalibratedTables(release, any_table.levels, flags, _known_errors(errors), _mapping(made))


def _known_errors(errors: Any) -> dict[int, float]:
    return {
        int(count): float(error)
        for count, error in _mapping(errors).items()
        if str(count).isascii() and str(count).isdigit() and isinstance(error, (int, float))
    }


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
