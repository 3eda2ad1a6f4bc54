"""People's words inside our sentences: one line, short, and made of signs that can be printed."""

from __future__ import annotations

SHOWN_CHARACTERS = 60


def shortened(text: object, limit: int = SHOWN_CHARACTERS) -> str:
    """``text`` on one line, with a sign where more than ``limit`` characters had to be left out."""
    words = " ".join(str(text).split())
    line = "".join(each if each.isprintable() else ascii(each)[1:-1] for each in words[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit].rstrip()} …"
