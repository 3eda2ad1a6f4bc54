"""CONDITIONING on disk: encode a prompt on one day, sample without the text encoder on another.

One safetensors file holds named conditionings (positive, negative). Tensors stand in the file as they are; everything
else (marks, sizes, frame numbers) is JSON in its metadata, so reading never executes anything.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor

from ..checkpoint_readers import SafetensorsFile

FORMAT_KEY = "opensora.conditioning"
FORMAT = 1
"""Raised when a file of an older program could no longer be read correctly."""

TEXT = "text"
"""Name of an entry's own tensor beside those of its dictionary."""

Conditioning = Sequence[Sequence[Any]]


def save_conditioning(path: Path, conditionings: Mapping[str, Conditioning], note: str = "") -> None:
    """Write named conditionings to ``path``, all or nothing: an interrupted write leaves no half file behind.

    Raises ValueError for an entry that cannot be stored (hooks, ControlNets and other live objects).
    """
    tensors: dict[str, Tensor] = {}
    entries: dict[str, list[dict[str, Any]]] = {}
    for name, conditioning in conditionings.items():
        if not conditioning:
            raise ValueError(f"The {name} conditioning is empty; encode a prompt first.")
        entries[name] = [_take_apart(f"{name}.{n}", entry, tensors) for n, entry in enumerate(conditioning)]
    description = {"format": FORMAT, "entries": entries, "note": note}
    unfinished = path.with_name(f"{path.name}.unfinished")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        save_file(tensors, unfinished, metadata={FORMAT_KEY: json.dumps(description)})
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def load_conditioning(path: Path) -> dict[str, list[list[Any]]]:
    """The conditionings of a file, by name. Raises ValueError for another kind of file, a newer one, or damage."""
    file = SafetensorsFile.open(path)
    description = _description(file)
    tensors = dict(file.read())
    try:
        return {
            name: [_put_together(f"{name}.{n}", values, tensors) for n, values in enumerate(entries)]
            for name, entries in description["entries"].items()
        }
    except (KeyError, AttributeError, TypeError) as error:
        raise ValueError(
            f"'{path.name}' is damaged: its description does not fit its tensors; save it again."
        ) from error


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


def _put_together(prefix: str, values: dict[str, Any], tensors: Mapping[str, Tensor]) -> list[Any]:
    start = f"{prefix}."
    extra = {name[len(start) :]: tensor for name, tensor in tensors.items() if name.startswith(start)}
    text = extra.pop(TEXT)
    return [text, {**values, **extra}]


def _storable(tensor: Tensor) -> Tensor:
    # The file format refuses tensors that share memory, such as two cuts of one null text.
    return tensor.detach().to("cpu", copy=True).contiguous()


def _is_plain(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    if isinstance(value, dict):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    return value is None or isinstance(value, (bool, int, float, str))


def _description(file: SafetensorsFile) -> dict[str, Any]:
    text = file.metadata.get(FORMAT_KEY)
    if text is None:
        raise ValueError(f"'{file.path.name}' is not a conditioning saved by Open-Sora Save Conditioning.")
    try:
        description = json.loads(text)
        version = int(description["format"])
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"'{file.path.name}' has a damaged description; save the conditioning again.") from error
    if version > FORMAT:
        raise ValueError(
            f"'{file.path.name}' was saved by a newer version of this pack (format {version}, this one reads up to "
            f"{FORMAT}); update the pack."
        )
    return description
