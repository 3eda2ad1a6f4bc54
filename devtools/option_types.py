"""What command lines are given, checked before anything is done: the types of their options.

Everything that has a command line takes them from here, so that what cannot be is said in one line by ``argparse``.
"""

from __future__ import annotations

import math
import os
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

SECONDS_AT_MOST = 10_000_000.0  # some months: what a thread can sleep is limited
MOST = 1_000_000_000
LAST_PORT = 65535
SHOWN = 60  # characters of what was given, in an error


def text(given: str) -> str:
    """Any words but none."""
    if not given.strip():
        raise ArgumentTypeError("nothing was given")
    return given


def words(given: str) -> list[str]:
    """Words between commas."""
    found = [word.strip() for word in given.split(",")]
    if not all(found):
        raise ArgumentTypeError(f"'{given}' is not a word, or words with a comma between each two")
    return found


def as_given(given: str) -> str:
    """An argument of another program, which says itself what is wrong with it."""
    return given


def path(given: str) -> Path:
    """A path, there or not; what reads it says more. ``~`` is the person's folder, which not every shell knows."""
    try:
        found = Path(text(given)).expanduser()
        found.exists()
    except (OSError, RuntimeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).rstrip(".")
        raise ArgumentTypeError(f"{_short(given)} cannot be a path ({reason})") from None
    return found


def file(given: str) -> Path:
    """A file to read."""
    found = path(given)
    if not found.is_file():
        raise ArgumentTypeError(f"there is no file '{given}'")
    return found


def folder(given: str) -> Path:
    """A folder that is there."""
    found = path(given)
    if not found.is_dir():
        raise ArgumentTypeError(f"there is no folder '{given}'")
    return found


def new_folder(given: str) -> Path:
    """A folder to write into, which need not be there."""
    found = path(given)
    for each in (found, *found.parents):
        if each.exists():
            if not each.is_dir():
                raise ArgumentTypeError(f"'{each}' is a file; give a folder")
            break
    return found


def new_file(ending: str) -> Callable[[str], Path]:
    """The type of a file to write with this ending, in a folder that is there."""

    def value(given: str) -> Path:
        found = path(given)
        if found.suffix.lower() != ending:
            raise ArgumentTypeError(f"'{given}' does not end in {ending}")
        if found.is_dir():
            raise ArgumentTypeError(f"'{given}' is a folder; give a file")
        if not found.parent.is_dir():
            raise ArgumentTypeError(f"there is no folder '{found.parent}'")
        return found

    return value


def count(given: str) -> int:
    """At least 1."""
    return _whole(given, 1, MOST)


def whole(given: str) -> int:
    """At least 0."""
    return _whole(given, 0, MOST)


def threads(given: str) -> int:
    """As many as there are processors, or fewer."""
    return _whole(given, 1, os.cpu_count() or 1)


def seed(given: str) -> int:
    """At least 0, and no larger than NumPy's and PyTorch's can be when others are made of it."""
    return _whole(given, 0, 2**32 - 1)


def port(given: str) -> int:
    """Of a server."""
    return _whole(given, 1, LAST_PORT)


def amount(given: str) -> float:
    """A finite number, at least 0."""
    value = _number(given)
    if not math.isfinite(value) or value < 0:
        raise ArgumentTypeError(f"'{given}' is not a number from 0 on")
    return value


def seconds(given: str) -> float:
    """A time to wait, 0 included."""
    value = _number(given)
    if not 0 <= value <= SECONDS_AT_MOST:
        raise ArgumentTypeError(f"'{given}' is not a number of seconds from 0 to {SECONDS_AT_MOST:.0f}")
    return value


def above_zero(given: str) -> float:
    """A finite number above 0."""
    value = _number(given)
    if not math.isfinite(value) or value <= 0:
        raise ArgumentTypeError(f"'{given}' is not a number above 0")
    return value


def size(given: str) -> tuple[int, int, int]:
    """``17x64x64`` as frames, height, width, in whatever unit the option names."""
    parts = given.split("x")
    if len(parts) != 3 or not all(_is_whole(part, 1, MOST) for part in parts):
        raise ArgumentTypeError(f"{_short(given)} is not three whole numbers from 1 on with an x between each two")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _number(given: str) -> float:
    """NaN for what is none. Only plain digits count, as in whole numbers."""
    plain = given.isascii() and not set(given) & {"_", " "}
    try:
        return float(given) if plain else math.nan
    except ValueError:
        return math.nan


def _is_whole(given: str, least: int, most: int) -> bool:
    plain = given.isascii() and given.isdecimal() and len(given) <= len(str(most))
    return plain and least <= int(given) <= most


def _whole(given: str, least: int, most: int) -> int:
    if not _is_whole(given, least, most):
        raise ArgumentTypeError(f"{_short(given)} is not a whole number from {least} to {most}")
    return int(given)


def _short(given: str) -> str:
    return f"'{given}'" if len(given) <= SHOWN else f"'{given[:SHOWN]}…'"
