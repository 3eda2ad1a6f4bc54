"""Tables of rows: CSV (and TSV), JSON lines, or one prompt a line."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FORMS = {".csv": "CSV", ".tsv": "CSV", ".jsonl": "JSON lines", ".ndjson": "JSON lines", ".txt": "one prompt a line"}
OTHER_DELIMITERS = (";", "\t", "|", ",")
MAX_CELL = 1 << 20  # characters; the csv module stops at 131072 by itself


@dataclass(frozen=True)
class Row:
    """A row of the table: its number (1 is the first), the line it starts in, and the value of every filled column.

    Values of CSV are text; those of JSON keep their type. An empty cell, or null, leaves what the workflow says.
    """

    number: int
    line: int
    values: dict[str, Any]


@dataclass(frozen=True, order=True)
class Fault:
    """What is wrong with a line of the table (line 0: with the table as a whole)."""

    line: int
    text: str

    def __str__(self) -> str:
        return f"line {self.line}: {self.text}" if self.line else self.text


@dataclass
class Table:
    """All rows that could be read, the columns they use, and all that was wrong."""

    rows: list[Row]
    columns: dict[str, int]  # and the line each stands in first
    faults: list[Fault]


def read_table(path: Path) -> Table:
    """Read a table; whatever is wrong with it is among the faults, with its line."""
    if path.is_dir():
        return Table([], {}, [Fault(0, f"'{path}' is a folder; a table is a file.")])
    form = FORMS.get(path.suffix.lower())
    if form is None:
        allowed = ", ".join(FORMS)
        return Table(
            [], {}, [Fault(0, f"{path.name} ends in {path.suffix or 'nothing'!r}; a table ends in {allowed}.")]
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except OSError as error:
        return Table([], {}, [Fault(0, f"{path} cannot be read: {error.strerror}.")])
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        return Table([], {}, [Fault(line, "this is not UTF-8; save the table as UTF-8.")])
    if form == "CSV":
        table = _csv(text, "\t" if path.suffix.lower() == ".tsv" else ",")
    else:
        table = _json_lines(text) if form == "JSON lines" else _prompts(text)
    if not table.rows and not table.faults:
        table.faults.append(Fault(0, f"{path.name} has no rows."))
    return table


def _prompts(text: str) -> Table:
    lines = [(number, line.strip()) for number, line in enumerate(text.splitlines(), 1)]
    filled = [(number, line) for number, line in lines if line]
    return Table([Row(i, number, {"prompt": line}) for i, (number, line) in enumerate(filled, 1)], {"prompt": 1}, [])


def _json_lines(text: str) -> Table:
    rows: list[Row] = []
    faults: list[Fault] = []
    columns: dict[str, int] = {}
    number = 0
    for line, content in enumerate(text.split("\n"), 1):  # a JSON text may hold other separators of lines as they are
        if not content.strip():
            continue
        number += 1
        try:
            found = json.loads(content, object_pairs_hook=_once)
            json.dumps(found, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            faults.append(Fault(line, "a text holds half of a character (a lone surrogate)."))
            continue
        except (ValueError, RecursionError) as error:
            faults.append(Fault(line, f"this is no JSON: {error}."))
            continue
        if not isinstance(found, dict):
            faults.append(
                Fault(line, f'a row is an object like {{"prompt": "a cat"}}, this is {content.strip()[:40]}.')
            )
            continue
        for column in found:
            columns.setdefault(column, line)
        rows.append(Row(number, line, {key: value for key, value in found.items() if value is not None}))
    return Table(rows, columns, faults)


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"{key!r} is given twice")
        found[key] = value
    return found


def _csv(text: str, delimiter: str) -> Table:
    csv.field_size_limit(MAX_CELL)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    faults: list[Fault] = []
    header: list[str] | None = None
    number = before = header_line = 0
    while True:
        line = before + 1
        try:
            cells = next(reader)
        except StopIteration:
            return Table(rows, dict.fromkeys(filter(None, header or []), header_line), faults)
        except csv.Error as error:  # what follows an open quote cannot be told apart
            faults.append(Fault(line, f"this cannot be read as CSV: {error}."))
            return Table(rows, dict.fromkeys(filter(None, header or []), header_line), faults)
        before = reader.line_num
        if not any(cell.strip() for cell in cells):
            continue
        if header is None:
            header = [cell.strip() for cell in cells]
            header_line = line
            faults += _header_faults(header, line)
            if len(header) == 1 and any(mark in header[0] for mark in OTHER_DELIMITERS):
                text = f"the columns {header[0]!r} are not divided by a {'tab' if delimiter != ',' else 'comma'}"
                return Table(
                    [], {}, [Fault(line, f"{text}; save the table as .csv with commas, or as .tsv with tabs.")]
                )
            continue
        number += 1
        if len(cells) != len(header):
            what = "an empty cell too needs its comma" if len(cells) < len(header) else "put one with a comma in quotes"
            faults.append(Fault(line, f"this row has {len(cells)} cells and the header {len(header)}; {what}."))
            continue
        filled = {name: cell for name, cell in zip(header, cells, strict=False) if name and cell.strip()}
        rows.append(Row(number, line, filled))


def _header_faults(header: list[str], line: int) -> list[Fault]:
    twice = sorted({name for name in header if name and header.count(name) > 1})
    faults = [Fault(line, f"the column {name!r} is there twice.") for name in twice]
    return faults + [Fault(line, f"column {i} has no name.") for i, name in enumerate(header, 1) if not name]
