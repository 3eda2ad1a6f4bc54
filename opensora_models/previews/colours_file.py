"""Fitted colours by the autoencoder they were fitted to: a small file, kept from one start of ComfyUI to the next."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from ..storage.writing import text_writer, write_whole
from .colours import Colours

MOST_BYTES = 2_000_000
MOST_KEPT = 50


def colours_in(file: Path, autoencoder: str) -> dict[str, Colours]:
    """Colours of one kind of autoencoder by fingerprint, the last one last; what is damaged is left out."""
    return {
        name: colours
        for name, entry in _read(file).items()
        if isinstance(entry, dict) and entry.get("autoencoder") == autoencoder and (colours := _colours(entry))
    }


def keep_colours(file: Path, name: str, autoencoder: str, colours: Colours) -> None:
    """Note what was fitted to the autoencoder with the fingerprint ``name``, or used again. Raises CannotStore."""
    known = {other: entry for other, entry in _read(file).items() if other != name}
    entry = {"autoencoder": autoencoder, "factors": colours.factors, "bias": colours.bias}
    kept = dict(list({**known, name: entry}.items())[-MOST_KEPT:])
    write_whole(file, text_writer(json.dumps(kept)))


def _read(file: Path) -> dict[str, Any]:
    try:
        with file.open("rb") as opened:
            # Whole numbers as well: one of hundreds of digits is no float, and infinity is caught below.
            found = json.loads(opened.read(MOST_BYTES), parse_int=float)
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _colours(entry: dict[str, Any]) -> Colours | None:
    """The colours of an entry; None where it holds none."""
    factors = entry.get("factors")
    rows = [*factors, entry.get("bias")] if isinstance(factors, list) else []
    if len(rows) < 2 or not all(isinstance(row, list) and len(row) == 3 and all(map(_is_number, row)) for row in rows):
        return None
    *found, bias = ((float(r), float(g), float(b)) for r, g, b in rows)
    return Colours(tuple(found), bias)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
