"""Other people's words inside our sentences: one line, short, and made of signs that can be printed.

Prompts are cut at their end, names and sentences of other programs in their middle, where they differ least.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from .printable import printable

SHOWN_CHARACTERS = 60
"""Characters shown of a prompt or a value."""
LONGEST_QUOTE = 80
LONGEST_SENTENCE = 700
LONGEST_FILE_NAME = 255  # what file systems allow, and so what a message must be able to quote
LONGEST_PATH = 200
MOST_ENTRIES = 8
"""Entries of a list from a file that are still written out."""


def shortened(text: object, limit: int = SHOWN_CHARACTERS) -> str:
    """``text`` on one line, with a sign where more than ``limit`` characters had to be left out."""
    line = _signs(" ".join(str(text).split())[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit].rstrip()} …"


def quoted(name: str, longest: int = LONGEST_QUOTE) -> str:
    """A name of a file or tensor in quotes, on one line, printable, and not too long."""
    return f"'{_without_middle(_signs(printable(name[: 2 * longest])), longest)}'"


def one_line(text: str, longest: int = LONGEST_SENTENCE) -> str:
    """The first line of ``text``, printable, with its middle left out where it is too long."""
    line = next((line.strip() for line in printable(text).splitlines() if line.strip()), "")
    return _without_middle(_signs(line), longest)


def shown(value: Any) -> str:
    """A value from a file for a message: short, whatever it is."""
    if isinstance(value, (dict, list, tuple)) and len(value) > MOST_ENTRIES:
        return f"a {type(value).__name__} of {len(value)} entries"
    try:
        text = repr(value)
    except ValueError:  # a number with more digits than Python prints
        text = "a very long number"
    return one_line(text, LONGEST_QUOTE)


def described(value: object) -> str:
    """A value from a wire for a message: plain ones as they are written, others by what they are."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {list(value.shape)}"
    if isinstance(value, (str, int, float, bool, type(None))):
        return _beginning(printable(repr(value) if isinstance(value, str) else value), SHOWN_CHARACTERS)
    return f"a {type(value).__name__}"


def shown_path(path: Path | str) -> str:
    """A path for a message: readable, and of bounded length."""
    return _beginning(printable(path).replace("\0", "\\0"), LONGEST_PATH)


def _signs(text: str) -> str:
    """``text`` with everything that cannot be printed written out."""
    return "".join(each if each.isprintable() else _written(ord(each)) for each in text)


def _written(code: int) -> str:
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def _beginning(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[:limit]} …"


def _without_middle(text: str, longest: int) -> str:
    half = (longest - 3) // 2
    return text if len(text) <= longest else f"{text[:half]} … {text[-half:]}"
