"""Names of results: a template with the row's columns, legal on every system, and no two the same."""

from __future__ import annotations

import re
import string
import unicodedata
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from ..console import Problem
from .table import Fault, Row

DEFAULT = "{row:05d}"
LAYOUTS = {
    "vbench": "{prompt}-{repeat}",  # VBench reads prompt and number back out of <prompt>-<0…4>.mp4
}
FIELDS = {"row": "the row's number, 1 is the first", "repeat": "how many earlier rows have the same prompt"}
MORE = "~"  # stands before the number of a second file of one row: name~2.mp4
MAX_BYTES = 200  # of one part of a path; systems take 255, and a temporary name and an ending are added
WIDTH = re.compile(r"(?<![.0-9])[0-9]+")  # of a field; what follows a point cuts it
UNSAFE = re.compile(r'[\x00-\x1f\x7f<>:"/\\|?*~]')
RESERVED = {"con", "prn", "aux", "nul", *(f"{port}{i}" for port in ("com", "lpt") for i in range(1, 10))}


class _Fields(string.Formatter):
    """Plain fields only: nothing of a value but the value itself can be reached."""

    def get_field(self, field_name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[Any, str]:
        if field_name not in kwargs:
            raise KeyError(field_name)
        return kwargs[field_name], field_name


class _Text(str):
    """A value in a name: unsafe characters are replaced after the format, so that a folder is never made of it."""

    def __format__(self, spec: str) -> str:
        return UNSAFE.sub("-", super().__format__(spec))


def template_of(given: str) -> str:
    """The template itself, or that of a layout; Problem for one that cannot name files."""
    template = LAYOUTS.get(given, given)
    try:
        fields = _fields(template)
    except ValueError as error:
        raise Problem(f"--name {given!r} is no template: {error}. An example: {DEFAULT}-{{seed}}") from None
    if not fields:
        raise Problem(f"--name {given!r} names every row alike; put {{row}} into it.")
    if not all(fields):
        raise Problem(f"--name {given!r} has a field without a name. An example: {DEFAULT}-{{seed}}")
    literal = "".join(text for text, *_ in string.Formatter().parse(template))
    if UNSAFE.search(literal.replace("/", "")) or template.startswith("/") or ".." in literal:
        raise Problem(
            f'--name {given!r} has a character that file names cannot have: one of < > : " \\ | ? * ~, or "..".'
        )
    filled = "".join(text + ("" if name is None else "x") for text, name, *_ in string.Formatter().parse(template))
    if not all(_is_part(part.strip().rstrip(".")) for part in filled.split("/")):
        raise Problem(f"--name {given!r} has a part between slashes that no file or folder can be called.")
    widths = [int(width) for _, _, spec, _ in string.Formatter().parse(template) for width in WIDTH.findall(spec or "")]
    if max(widths, default=0) > MAX_BYTES:
        raise Problem(f"--name {given!r} makes a field {max(widths)} wide; a name has at most {MAX_BYTES} bytes.")
    return template


def _is_part(part: str) -> bool:
    """Whether a file or folder can be called so."""
    is_reserved = part.split(".")[0].lower() in RESERVED
    return bool(part) and not UNSAFE.search(part) and not is_reserved and not part.startswith(".")


def _fields(template: str) -> list[str]:
    return [name for _, name, _, _ in string.Formatter().parse(template) if name is not None]


def name_rows(template: str, rows: Sequence[Row], defaults: Mapping[str, Any]) -> tuple[list[str], list[Fault]]:
    """A name for each row, without ending, and what is wrong with them. ``defaults`` stand for empty cells."""
    known = {*FIELDS, *defaults, *(column for row in rows for column in row.values)}
    unknown = [name for name in _fields(template) if name not in known]
    if unknown:
        there = ", ".join(sorted(known))
        return [""] * len(rows), [
            Fault(0, f"--name has a field {unknown[0]!r} and no row such a value; there are {there}.")
        ]
    names: list[str] = []
    faults: list[Fault] = []
    repeats: Counter[str] = Counter()
    owners: dict[str, int] = {}
    for row in rows:
        values = {**defaults, **row.values}
        prompt = str(values.get("prompt", ""))
        try:
            name = _name(template, {**values, "row": row.number, "repeat": repeats[prompt]})
        except ValueError as error:
            faults.append(Fault(row.line, str(error)))
            name = ""
        repeats[prompt] += 1
        names.append(name)
        if name:
            first = owners.setdefault(unicodedata.normalize("NFC", name).casefold(), row.line)
            if first != row.line:
                faults.append(
                    Fault(row.line, f"its result would be called {name!r} like that of line {first}; add {{row}}.")
                )
    return names, faults


def _name(template: str, values: Mapping[str, Any]) -> str:
    safe = {key: _Text(value) if isinstance(value, str) else value for key, value in values.items()}
    try:
        text = _Fields().vformat(template, (), safe)
    except KeyError as missing:
        raise ValueError(f"the name has a field {missing}, and the row no such value.") from None
    except (ValueError, TypeError) as error:
        raise ValueError(f"the name cannot be made: {error}.") from None
    parts = [part.strip().rstrip(".") for part in text.split("/")]
    for part in parts:
        if not _is_part(part):
            raise ValueError(f"{text!r} is no name of a file.")
        size = len(part.encode())
        if size > MAX_BYTES:
            raise ValueError(
                f"the name {part[:30]!r}… has {size} bytes, at most {MAX_BYTES}; cut a field: {{prompt:.80}}."
            )
    return "/".join(parts)


def file_name(name: str, number: int, ending: str) -> str:
    """The name of a row's file; ``number`` counts its files from 1."""
    return f"{name}{ending}" if number == 1 else f"{name}{MORE}{number}{ending}"
