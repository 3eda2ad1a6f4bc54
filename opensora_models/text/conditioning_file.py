"""CONDITIONING on disk: encode a prompt on one day, sample without the text encoder on another.

One safetensors file holds named conditionings (positive, negative). Tensors stand in the file as they are; everything
else (marks, sizes, frame numbers) is JSON in its metadata, so reading never executes anything.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from ..checkpoint.readers import SafetensorsFile
from ..checkpoint.reading import reading
from ..checkpoint.settings import parse_settings, whole_number
from ..messages.quoting import LONGEST_FILE_NAME, quoted, shown
from ..storage.tensors import expect_whole, save_file
from ..storage.writing import Name, write_new, write_whole
from .padding import ENCODED_FOR

FORMAT_KEY = "opensora.conditioning"
FORMAT = 1
"""Raised when a file of an older program could no longer be read correctly."""

TEXT = "text"
"""Name of an entry's own tensor beside those of its dictionary."""

AGAIN = "save it again"
DAMAGED = f"its description does not fit its tensors; {AGAIN}."

NUMBERS: dict[str, int | None] = {
    "frame_rate": 1,
    "opensora_pixel_size": 2,
    "opensora_given_frames": None,
    "opensora_given_pictures": None,
}
"""Values of ours and how many numbers each is; None: a list of any length. Other nodes' values are handed on."""

POOLED = "pooled_output"
"""ComfyUI's name of the state of a whole prompt; null where the encoders give none."""

Conditioning = Sequence[Sequence[Any]]


def save_conditioning(path: Path, conditionings: Mapping[str, Conditioning], note: str = "") -> None:
    """Write named conditionings to ``path``, all or nothing: an interrupted write leaves no half file behind.

    Raises ValueError for an entry that cannot be stored (hooks, ControlNets and other live objects), CannotStore for
    what the disk refuses.
    """
    write_whole(path, _writer(conditionings, note))


def save_new_conditioning(
    choose: Callable[[], Name], conditionings: Mapping[str, Conditioning], note: str = ""
) -> Name:
    """As ``save_conditioning``, under a name that no file has; arguments and errors as those of ``write_new``."""
    return write_new(choose, _writer(conditionings, note))


def _writer(conditionings: Mapping[str, Conditioning], note: str) -> Callable[[Path], None]:
    tensors: dict[str, Tensor] = {}
    entries: dict[str, list[dict[str, Any]]] = {}
    for name, conditioning in conditionings.items():
        if not conditioning:
            raise ValueError(f"The {name} conditioning is empty; encode a prompt first.")
        entries[name] = [_take_apart(f"{name}.{n}", entry, tensors) for n, entry in enumerate(conditioning)]
    description = {FORMAT_KEY: json.dumps({"format": FORMAT, "entries": entries, "note": note})}
    return lambda path: save_file(tensors, path, metadata=description)


def load_conditioning(path: Path, needed: Collection[str] = ()) -> dict[str, list[list[Any]]]:
    """The conditionings of a file, by name; those ``needed`` must be among them.

    Raises ValueError for another kind of file, a newer one, or damage.
    """
    file = SafetensorsFile.open(path)
    with reading(path.name):
        description = _description(file)
        entries = _entries(description)
        if missing := [name for name in needed if name not in entries]:
            raise ValueError(f"it holds no {' and no '.join(missing)} conditioning; save positive and negative again.")
        tensors = dict(file.read())
        expect_whole(tensors, file.metadata)
        return {
            name: [_put_together(f"{name}.{n}", values, tensors) for n, values in enumerate(found)]
            for name, found in entries.items()
        }


def note_of(path: Path) -> str:
    """The note saved with a file."""
    return str(_description(SafetensorsFile.open(path)).get("note", ""))


def _take_apart(prefix: str, entry: Sequence[Any], tensors: dict[str, Tensor]) -> dict[str, Any]:
    """Put an entry's tensors into ``tensors`` and return the rest as JSON values."""
    tensor, extra = entry
    tensors[f"{prefix}.{TEXT}"] = _storable(tensor)
    values = {}
    for key, value in extra.items():
        if isinstance(value, Tensor) and key != TEXT:
            tensors[f"{prefix}.{key}"] = _storable(value)
        elif _is_plain(value):
            values[key] = value
        else:
            raise ValueError(
                f"The conditioning carries '{key}' ({type(value).__name__}), which cannot be stored; save it before "
                "the node that adds this."
            )
    return values


def _entries(description: Mapping[str, Any]) -> dict[str, list[dict[str, Any]]]:
    """The values of every entry under the name of its conditioning."""
    entries = description.get("entries")
    if not isinstance(entries, dict) or not all(isinstance(found, list) and found for found in entries.values()):
        raise ValueError(DAMAGED)
    for values in (values for found in entries.values() for values in found):
        if not isinstance(values, dict):
            raise ValueError(DAMAGED)
        for key, value in values.items():
            fits = value is None if key == POOLED else key != ENCODED_FOR or isinstance(value, str)
            if not fits or (key in NUMBERS and not _are_numbers(value, NUMBERS[key])):
                raise ValueError(f"its entry '{key}' is {shown(value)}, which no node writes; {AGAIN}.")
    return entries


def _are_numbers(value: Any, count: int | None) -> bool:
    """Whether ``value`` is one number (``count`` 1), so many, or any list of whole numbers (``count`` None)."""
    if count == 1:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = isinstance(value, list) and (count is None or len(value) == count)
    return fits and all(type(each) is int and 0 <= each < 2**31 for each in value)


def _put_together(prefix: str, values: dict[str, Any], tensors: Mapping[str, Tensor]) -> list[Any]:
    start = f"{prefix}."
    extra = {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}
    text = extra.pop(TEXT, None)
    if text is None or text.ndim != 3 or 0 in text.shape or not text.is_floating_point():
        raise ValueError(DAMAGED)
    pooled = extra.get(POOLED)
    if pooled is not None and (pooled.ndim != 2 or 0 in pooled.shape or not pooled.is_floating_point()):
        raise ValueError(DAMAGED)
    if pooled is None and ENCODED_FOR in values:
        raise ValueError(f"it lacks the state of CLIP-L that Open-Sora {shown(values[ENCODED_FOR])} reads; {AGAIN}.")
    return [text, {**values, **extra}]


def _storable(tensor: Tensor) -> Tensor:
    # The file format refuses tensors that share memory, such as two cuts of one null text.
    return tensor.detach().to("cpu", copy=True).contiguous()


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, float):
        return math.isfinite(value)
    return value is None or isinstance(value, (bool, int, str))


def _description(file: SafetensorsFile) -> dict[str, Any]:
    text = file.metadata.get(FORMAT_KEY)
    name = quoted(file.path.name, LONGEST_FILE_NAME)
    if text is None:
        raise ValueError(f"{name} is not a conditioning saved by Open-Sora Save Conditioning.")
    try:
        description = parse_settings(text, "its description")
        version = whole_number(description.get("format"), "format", 1, 2**31)
    except ValueError as error:
        raise ValueError(f"{name} has a damaged description; save the conditioning again.") from error
    if version > FORMAT:
        raise ValueError(
            f"{name} was saved by a newer version of this pack (format {version}, this one reads up to {FORMAT}); "
            "update the pack."
        )
    return description
