"""Names of new files: the prefix a person types, made into folders and a name that every system can store."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from ..messages.quoting import LONGEST_FILE_NAME, quoted, shown
from .placeholders import NOT_STORABLE

MAX_PART_BYTES = 200
"""Of one folder or name: the 255 of most file systems less number, ending and what a name has while being written."""
MAX_BYTES = 1000
FALLBACK = "opensora"
_FIRST_MARK = 0xE000  # characters without a meaning, each for a placeholder that must not be taken apart

# White space beside a "%" makes it a percent sign.
_PLACEHOLDER = re.compile(r"%([^%\s](?:[^%]*[^%\s])?)%")
_SEPARATOR = re.compile(r"[/\\]")
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z]:[/\\]")
# Windows' names of devices, which are no files whatever follows after a dot.
_DEVICES = ("CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$")
_RESERVED = {*_DEVICES, *(f"{port}{number}" for port in ("COM", "LPT") for number in "123456789¹²³")}


@dataclass(frozen=True)
class OutputName:
    """Folders below the output folder, joined by ``/``, and the beginning of a file's name; ``notes`` tell changes."""

    folder: str
    name: str
    notes: tuple[str, ...] = ()

    @property
    def path(self) -> str:
        """Folder and name together."""
        return f"{self.folder}/{self.name}" if self.folder else self.name


def check_prefix(prefix: object) -> None:
    """ValueError, with the nearest good value, for a prefix that cannot name a file in the output folder."""
    if not isinstance(prefix, str):
        raise ValueError(f"The file name prefix must be text, but {shown(prefix)} was given.")
    problem = _problem(prefix)
    if problem is not None:
        raise ValueError(
            f"The file name prefix {quoted(prefix)} {problem}; the nearest good value is '{_nearest(prefix)}'."
        )


def output_name(prefix: str, value_of: Callable[[str], str | None]) -> OutputName:
    """The name for a prefix; ``value_of`` gives what stands for a placeholder, None if it is unknown.

    Raises ValueError as ``check_prefix`` does. What placeholders bring is never refused: too much of it is cut.
    """
    check_prefix(prefix)
    text, unknown = _filled(prefix, value_of)
    notes = [
        f"{quoted(each)} in a file name is no date, size or widget of a node here and stays as written."
        for each in unknown
    ]
    wanted = _parts(text, refuse=False) or []
    short = [_cut(part, MAX_PART_BYTES) for part in wanted]
    parts = [*map(_storable, short[:-1]), _storable(f"{short[-1]}_")[:-1]] if short else [FALLBACK]
    if parts != wanted:
        reason = "cannot be stored everywhere" if short == wanted else "is too long"
        before, after = (quoted("/".join(names), LONGEST_FILE_NAME) for names in (wanted, parts))
        notes.append(f"The file name {before} {reason}; it became {after}.")
    return OutputName("/".join(parts[:-1]), parts[-1], tuple(notes))


def _problem(prefix: str) -> str | None:
    typed = _PLACEHOLDER.sub("%", prefix)  # a name of some kind
    parts = _parts(typed)
    if "\0" in prefix:
        return "holds a NUL character, which no file name can"
    if _ABSOLUTE.match(prefix) or parts is None:
        return "leaves ComfyUI's output folder; name folders inside it"
    if not parts:
        return "names no file"
    longest = max(_bytes(part) for part in parts)
    if longest > MAX_PART_BYTES:
        return f"holds a name of {longest} bytes, where {MAX_PART_BYTES} are allowed"
    if _bytes(prefix) > MAX_BYTES:
        return f"is {_bytes(prefix)} bytes long, where {MAX_BYTES} are allowed"
    return None


def _nearest(prefix: str) -> str:
    """What is left of a prefix once its faults are taken away; without its placeholders if it still has some then."""
    text = prefix.replace("\0", "")
    marks: dict[str, str] = {}

    def mark(found: re.Match[str]) -> str:
        sign = chr(_FIRST_MARK + len(marks))
        marks[sign] = found[0]
        return sign

    marked = _without_faults(_PLACEHOLDER.sub(mark, text))
    restored = "".join(marks.get(sign, sign) for sign in marked)
    plain = _without_faults(_PLACEHOLDER.sub("", text).replace("%", ""))
    return next((each for each in (restored, plain) if _problem(each) is None), FALLBACK)


def _without_faults(text: str) -> str:
    parts = [_cut(part, MAX_PART_BYTES) for part in _SEPARATOR.split(text) if part.strip(" .")]
    if parts and re.fullmatch("[A-Za-z]:", parts[0]):
        parts = parts[1:]
    while _bytes("/".join(parts)) > MAX_BYTES:
        parts = parts[1:]
    return "/".join(parts)


def _filled(prefix: str, value_of: Callable[[str], str | None]) -> tuple[str, list[str]]:
    """The prefix with its placeholders filled in, and those that are unknown."""
    pieces, unknown, done = [], [], 0
    while (found := _PLACEHOLDER.search(prefix, done)) is not None:
        value = value_of(found[1])
        pieces.append(prefix[done : found.start()])
        done = found.end()
        if value is None:
            following = _PLACEHOLDER.match(prefix, done - 1)
            if following is not None and value_of(following[1]) is not None:
                done -= 1  # two percent signs, of which the second opens a placeholder
            else:
                unknown.append(found[0])
        pieces.append(prefix[found.start() : done] if value is None else value)
    return "".join((*pieces, prefix[done:])), unknown


def _parts(text: str, *, refuse: bool = True) -> list[str] | None:
    """The names between separators, ``.`` and ``..`` resolved; a way out gives None, or is left out."""
    parts: list[str] = []
    for part in _SEPARATOR.split(text):
        if part == ".." and not parts and refuse:
            return None
        if part == "..":
            parts = parts[:-1]
        elif part.strip() and part != ".":
            parts.append(part)
    return parts


def _storable(part: str) -> str:
    text = NOT_STORABLE.sub("_", part).rstrip(" .") or "_"
    stem, dot, rest = text.partition(".")
    return f"{stem}_{dot}{rest}" if stem.rstrip().upper() in _RESERVED else text


def _cut(text: str, most: int) -> str:
    """``text`` in at most ``most`` bytes, ending in a whole character."""
    return text.encode("utf-8", "surrogatepass")[:most].decode("utf-8", "ignore") if _bytes(text) > most else text


def _bytes(text: str) -> int:
    return len(text.encode("utf-8", "surrogatepass"))
