"""What ComfyUI's page finds in a video file that is dropped on it: its parsers, step for step.

Sources: src/scripts/metadata/isobmff.ts and ebml.ts of the frontend (the same steps in 1.47 and 1.58). Both read only
the beginning of a file, and the second counts braces without knowing what a string is.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

MP4_BYTES, WEBM_BYTES = 64 * 2**20, 2 * 2**20
NAMES = ("prompt", "workflow")


def dropped(path: Path) -> dict[str, Any]:
    """Prompt and workflow by name, as far as the page finds them."""
    if path.suffix == ".webm":
        return _webm(path.read_bytes()[:WEBM_BYTES])
    return _mp4(path.read_bytes()[:MP4_BYTES])


# -- MP4 -------------------------------------------------------------------------------------------------------------


def _uint(data: bytes, position: int) -> int:
    return int.from_bytes(data[position : position + 4], "big", signed=True) if position + 4 <= len(data) else 0


def _box(data: bytes, start: int, end: int, kind: bytes) -> tuple[int, int] | None:
    """Content of the first box of a kind; a size that cannot be is stepped over byte by byte."""
    position = start
    while position < end - 8:
        size = _uint(data, position)
        if size >= 8:
            if data[position + 4 : position + 8] == kind:
                return position + 8, position + size
            if position + size > end:
                return None
            position += size - 1
        position += 1
    return None


def _mp4(data: bytes) -> dict[str, Any]:
    user = _box(data, 0, len(data), b"udta")
    if user is None:
        movie = _box(data, 0, len(data), b"moov")
        user = _box(data, *movie, b"udta") if movie else None
    meta = _box(data, *user, b"meta") if user else None
    if meta is None:
        return {}
    keys, items = (_box(data, meta[0] + 4, meta[1], kind) for kind in (b"keys", b"ilst"))
    return _items(data, items, _keys(data, *keys)) if keys and items else {}


def _keys(data: bytes, start: int, end: int) -> dict[int, str]:
    names, position = {}, start + 8
    for number in range(1, _uint(data, start + 4) + 1):
        size = _uint(data, position)
        if size < 8 or position + size > end:
            break
        names[number] = data[position + 8 : position + size].decode()
        position += size
    return names


def _items(data: bytes, bounds: tuple[int, int], names: dict[int, str]) -> dict[str, Any]:
    found, (position, end) = {}, bounds
    while position < end - 8:
        size = _uint(data, position)
        if size <= 8 or position + size > end:
            break
        name = names.get(_uint(data, position + 4), "").lower()
        box = _box(data, position + 8, position + size, b"data")
        if name in NAMES and box:
            text = data[box[0] + 8 : box[1]]
            if b"{" in text:
                found[name] = _parsed(text[text.index(b"{") :])
        position += size
    return {name: value for name, value in found.items() if value is not None}


def _parsed(text: bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return None


# -- WebM ------------------------------------------------------------------------------------------------------------


def _vint(data: bytes, position: int) -> tuple[int, int] | None:
    """Value and length of a number of EBML."""
    if position >= len(data) or not data[position]:
        return None
    length = 9 - data[position].bit_length()
    if position + length > len(data):
        return None
    value = int.from_bytes(data[position : position + length], "big") & ((1 << 7 * length) - 1)
    return (-1 if value == (1 << 7 * length) - 1 and length > 1 else value), length


def _webm(data: bytes) -> dict[str, Any]:
    found: dict[str, Any] = {}
    position = 0
    while position < len(data) - 2:
        position = data.find(b"\x67\xc8", position)  # a simple tag
        if position < 0:
            break
        size = _vint(data, position + 2)
        end = position + 2 + size[1] + size[0] if size else 0
        if size is None or size[0] <= 0 or end > len(data):
            position += 1
            continue
        start = position + 2 + size[1]
        name, value = (_element(data, start, end, mark) for mark in (b"\x45\xa3", b"\x44\x87"))
        if name is not None and value is not None and name in (b"PROMPT", b"WORKFLOW"):
            parsed = _braced(value)
            if parsed is not None:
                found[name.decode().lower()] = parsed
        position = end
    return found


def _element(data: bytes, start: int, end: int, mark: bytes) -> bytes | None:
    position = data.find(mark, start, end)
    size = _vint(data, position + 2) if position >= 0 else None
    return None if size is None else data[position + 2 + size[1] :][: size[0]].split(b"\0")[0]


def _braced(text: bytes) -> Any:
    """From the first brace to the one that closes it, whatever stands in between."""
    if b"{" not in text:
        return None
    text = text[text.index(b"{") :]
    open_braces = 0
    for end, sign in enumerate(text):
        open_braces += (sign == ord("{")) - (sign == ord("}"))
        if not open_braces:
            return _parsed(text[: end + 1])
    return None
