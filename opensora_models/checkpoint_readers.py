"""The two file formats weights come in: safetensors and PyTorch's own, both read without executing anything."""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

Shape = tuple[int, ...]

SAFETENSORS_ENDINGS = (".safetensors", ".sft")
PICKLE_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")

HEADER_LENGTH_BYTES = 8  # a little-endian count of header bytes opens every safetensors file
LARGEST_HEADER = 100_000_000  # the limit of the format's reference reader

_TORCH_NAMES = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "BOOL": "bool",
}
# The format's dtype codes that the installed PyTorch knows.
DTYPES: dict[str, torch.dtype] = {code: getattr(torch, n) for code, n in _TORCH_NAMES.items() if hasattr(torch, n)}

# Where training scripts put the weights inside a saved dictionary; "ema" first, it is the one to sample with.
WRAPPER_KEYS = ("ema", "state_dict", "model_state_dict", "model", "module")


class TensorInfo(NamedTuple):
    """Shape and dtype of a tensor that has not been read."""

    shape: Shape
    dtype: torch.dtype

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Size in memory."""
        return self.elements * self.dtype.itemsize


@dataclass(frozen=True)
class SafetensorsFile:
    """A safetensors file: header read, tensors still on disk at byte ``offsets`` of the file."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    offsets: Mapping[str, int]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> SafetensorsFile:
        """Reads the header. Raises ValueError for an empty, truncated or foreign file."""
        size = path.stat().st_size
        if size == 0:
            raise ValueError(f"'{path.name}' is an empty file (0 bytes); download it again.")
        header, start = _read_header(path, size)
        metadata = header.pop("__metadata__", {})
        tensors, offsets = {}, {}
        for name, entry in header.items():
            tensors[name], offsets[name] = _parse_entry(path, name, entry, start)
        end = max((offsets[name] + info.bytes for name, info in tensors.items()), default=start)
        if end > size:
            raise ValueError(
                f"'{path.name}' is truncated: {size} bytes of the {end} that its header announces; download it again."
            )
        return cls(path, tensors, offsets, metadata)

    def read(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor in file order, each in its own memory, so nothing stays mapped to the file."""
        with open(self.path, "rb") as file:
            for name in sorted(self.offsets, key=self.offsets.__getitem__):
                info = self.tensors[name]
                tensor = torch.empty(info.shape, dtype=info.dtype)
                if info.bytes:
                    file.seek(self.offsets[name])
                    file.readinto(memoryview(tensor.view(-1).view(torch.uint8).numpy()))
                yield name, tensor


@dataclass(frozen=True)
class PickleFile:
    """A file written by ``torch.save``: opened on the meta device, so that shapes cost no memory."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> PickleFile:
        """Reads names and shapes. Raises ValueError for an empty, damaged or unsafe file."""
        if path.stat().st_size == 0:
            raise ValueError(f"'{path.name}' is an empty file (0 bytes); download it again.")
        weights = _load_pickle(path, "meta")
        return cls(path, {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in weights.items()})

    def read(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor; the dictionary is emptied on the way so that converted tensors do not add up."""
        weights = _load_pickle(self.path, "cpu")
        for name in list(weights):
            yield name, weights.pop(name)


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The JSON header and the byte where the tensors begin."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        if size < HEADER_LENGTH_BYTES or length > LARGEST_HEADER:
            raise ValueError(f"'{path.name}' is not a safetensors file, whatever its name says; download it again.")
        start = HEADER_LENGTH_BYTES + length
        if start > size:
            raise ValueError(
                f"'{path.name}' is truncated: {size} bytes, less than its header of {start}; download it again."
            )
        text = file.read(length)
    try:
        header = json.loads(text)
    except ValueError as error:
        raise ValueError(f"'{path.name}' is not a safetensors file, whatever its name says.") from error
    if not isinstance(header, dict):
        raise ValueError(f"'{path.name}' is not a safetensors file, whatever its name says.")
    return header, start


def _parse_entry(path: Path, name: str, entry: Any, start: int) -> tuple[TensorInfo, int]:
    """Shape, dtype and byte offset of one tensor; an entry that contradicts itself is damage."""
    try:
        shape = tuple(int(side) for side in entry["shape"])
        first, last = (int(offset) for offset in entry["data_offsets"])
        dtype = DTYPES[entry["dtype"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"'{path.name}' has a damaged or unknown entry '{name}' in its header; download it again."
        ) from error
    info = TensorInfo(shape, dtype)
    if first < 0 or min(shape, default=0) < 0 or last - first != info.bytes:
        raise ValueError(f"'{path.name}' has a damaged entry '{name}' in its header; download it again.")
    return info, start + first


def _load_pickle(path: Path, device: str) -> dict[str, torch.Tensor]:
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"'{path.name}' is damaged or holds program objects beside its tensors, which are never executed here; "
            "convert it to safetensors with the program that made it."
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"'{path.name}' cannot be read as a PyTorch file ({reason}); download it again.") from error
    return _only_tensors(path, content)


def _only_tensors(path: Path, content: Any) -> dict[str, torch.Tensor]:
    """The weights inside what was saved: the dictionary itself, or the one a training script wrapped them in."""
    for key in WRAPPER_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"'{path.name}' holds a {type(content).__name__}; expected a dictionary of tensors.")
    return {str(name): value for name, value in content.items() if isinstance(value, torch.Tensor)}
