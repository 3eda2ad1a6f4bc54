"""What command lines are given, checked before anything is done: the types of their options.

Everything that has a command line takes them from here, so that what cannot be is said in one line by ``argparse``.
"""

from __future__ import annotations

import math
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path

SECONDS_AT_MOST = 10_000_000.0  # some months: what a thread can sleep is limited
LAST_PORT = 65535


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
    """A path, there or not; what reads it says more."""
    return Path(text(given))


def file(given: str) -> Path:
    """A file to read."""
    if not path(given).is_file():
        raise ArgumentTypeError(f"there is no file '{given}'")
    return Path(given)


def folder(given: str) -> Path:
    """A folder that is there."""
    if not path(given).is_dir():
        raise ArgumentTypeError(f"there is no folder '{given}'")
    return Path(given)


def new_folder(given: str) -> Path:
    """A folder to write into, which need not be there."""
    found = path(given)
    if found.exists() and not found.is_dir():
        raise ArgumentTypeError(f"'{given}' is a file; give a folder")
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
    return _whole(given, 1)


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
    if len(parts) != 3 or not all(_is_whole(part) and int(part) > 0 for part in parts):
        raise ArgumentTypeError(f"'{given}' is not three whole numbers from 1 on with an x between each two")
    return int(parts[0]), int(parts[1]), int(parts[2])


def _number(given: str) -> float:
    try:
        return float(given)
    except ValueError:
        return math.nan


def _is_whole(given: str) -> bool:
    return given.isascii() and given.isdecimal()


def _whole(given: str, least: int, most: int | None = None) -> int:
    if not _is_whole(given) or int(given) < least or (most is not None and int(given) > most):
        limits = f"from {least} {'on' if most is None else f'to {most}'}"
        raise ArgumentTypeError(f"'{given}' is not a whole number {limits}")
    return int(given)
