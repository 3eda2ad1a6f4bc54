"""The two file formats weights come in: safetensors and PyTorch's own, both read without executing anything."""

from __future__ import annotations

import json
import math
import pickle
import zipfile
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch

from ..messages.quoting import LONGEST_FILE_NAME, LONGEST_QUOTE, one_line, quoted, shown
from .reading import STUMBLES, expect_memory, expect_plain_file, reading

Shape = tuple[int, ...]

SAFETENSORS_ENDINGS = (".safetensors", ".sft")
PICKLE_ENDINGS = (".pt", ".pth", ".bin", ".ckpt")

HEADER_LENGTH_BYTES = 8  # a little-endian count of header bytes opens every safetensors file
LARGEST_HEADER = 100_000_000  # the limit of the format's reference reader
MOST_DIMENSIONS = 16  # twice what any network here has
ARCHIVE_START = b"PK\x03\x04"
TIED = 4  # so many names may share one block of a pickle file, as a T5's embedding has two

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
        """Reads the header. Raises ValueError for an empty, truncated, contradictory or foreign file."""
        size = expect_plain_file(path)
        with reading(path.name):
            header, start = _read_header(path, size)
            metadata = _parse_metadata(header.pop("__metadata__", None))
            tensors, offsets = {}, {}
            for name, entry in header.items():
                tensors[name], offsets[name] = _parse_entry(name, entry, start, size)
            _expect_apart(tensors, offsets)
        return cls(path, tensors, offsets, metadata)

    def read(self, only: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor (or ``only`` some) in file order, each in its own memory: nothing stays mapped to the file."""
        wanted = self.offsets if only is None else [name for name in self.offsets if name in only]
        expect_memory(self.path, sum(self.tensors[name].bytes for name in wanted))
        with reading(self.path.name), open(self.path, "rb") as file:
            for name in sorted(wanted, key=self.offsets.__getitem__):
                yield name, self._tensor(file, name)

    def _tensor(self, file: BinaryIO, name: str) -> torch.Tensor:
        info = self.tensors[name]
        tensor = torch.empty(info.shape, dtype=info.dtype)
        if info.bytes:
            file.seek(self.offsets[name])
            read = file.readinto(memoryview(tensor.view(-1).view(torch.uint8).numpy()))  # type: ignore[attr-defined]
            if read != info.bytes:
                raise ValueError(f"it became shorter while it was read, in tensor {quoted(name)}; try again.")
        return tensor


@dataclass(frozen=True)
class PickleFile:
    """A file written by ``torch.save``: opened on the meta device, so that shapes cost no memory."""

    path: Path
    tensors: Mapping[str, TensorInfo]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path) -> PickleFile:
        """Reads names and shapes. Raises ValueError for an empty, damaged or unsafe file."""
        size = expect_plain_file(path)
        with reading(path.name):
            _expect_stored(path, size)
            weights = _load_pickle(path, "meta")
            _expect_plain_tensors(weights, size)
            return cls(path, {name: TensorInfo(tuple(t.shape), t.dtype) for name, t in weights.items()})

    def read(self, only: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor (or ``only`` some); the dictionary is emptied on the way so that copies do not add up."""
        with reading(self.path.name):
            weights = _load_pickle(self.path, "cpu")
            for name in list(weights):
                tensor = weights.pop(name)
                if tensor.is_meta:
                    raise ValueError(f"tensor {quoted(name)} was saved without its values; export the file again.")
                if only is None or name in only:
                    yield name, tensor.detach()


@dataclass(frozen=True)
class LoadedTensors:
    """Tensors that a program has read already, in the form of a file."""

    values: Mapping[str, torch.Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Names, shapes and dtypes."""
        return {name: TensorInfo(tuple(value.shape), value.dtype) for name, value in self.values.items()}

    def read(self, only: Collection[str] | None = None) -> Iterator[tuple[str, torch.Tensor]]:
        """Every tensor, or ``only`` some."""
        return ((name, value) for name, value in self.values.items() if only is None or name in only)


def _read_header(path: Path, size: int) -> tuple[dict[str, Any], int]:
    """The JSON header and the byte where the tensors begin."""
    foreign = f"{quoted(path.name, LONGEST_FILE_NAME)} is not a safetensors file, whatever its name says"
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(HEADER_LENGTH_BYTES), "little")
        if size < HEADER_LENGTH_BYTES or length > LARGEST_HEADER:
            raise ValueError(f"{foreign}; download it again.")
        start = HEADER_LENGTH_BYTES + length
        if start > size:
            raise ValueError(
                f"{quoted(path.name, LONGEST_FILE_NAME)} is truncated: {size} bytes, less than its header of {start}; "
                "download it again."
            )
        text = file.read(length)
    try:
        header = json.loads(text.decode("utf-8"), object_pairs_hook=_without_repetition)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{foreign} ({one_line(str(error), LONGEST_QUOTE)}); download it again.") from error
    if not isinstance(header, dict):
        raise ValueError(f"{foreign}; download it again.")
    return header, start


def _without_repetition(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in its header")
    return found


def _parse_metadata(value: Any) -> dict[str, str]:
    """The header's free texts; null, as some programs write it, is none at all."""
    if value is None:
        return {}
    if not isinstance(value, dict) or not all(isinstance(text, str) for text in value.values()):
        raise ValueError("its metadata is no list of names and texts; download or export it again.")
    return value


def _parse_entry(name: str, entry: Any, start: int, size: int) -> tuple[TensorInfo, int]:
    """Shape, dtype and byte offset of one tensor; an entry that contradicts itself or the file is damage."""
    if not isinstance(entry, dict) or not entry.keys() >= {"shape", "dtype", "data_offsets"}:
        raise ValueError(f"its header has a damaged entry {quoted(name)}; download it again.")
    shape, offsets, dtype = entry["shape"], entry["data_offsets"], entry["dtype"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise ValueError(f"tensor {quoted(name)} has the type {shown(dtype)}, which is none of {', '.join(DTYPES)}.")
    if not _are_counts(shape) or len(shape) > MOST_DIMENSIONS or not _are_counts(offsets) or len(offsets) != 2:
        raise ValueError(f"its header has a damaged entry {quoted(name)}; download it again.")
    first, last = offsets
    info = TensorInfo(tuple(shape), DTYPES[dtype])
    if last - first != info.bytes:
        raise ValueError(f"its header has a damaged entry {quoted(name)}: {last - first} bytes for a tensor of "
                         f"{shown(info.bytes)}; download it again.")  # fmt: skip
    if start + last > size:
        raise ValueError(f"it is truncated: {size} bytes of the {shown(start + last)} that its header announces; "
                         "download it again.")  # fmt: skip
    return info, start + first


def _are_counts(values: Any) -> bool:
    """True for a list of whole numbers that a 64-bit program can hold."""
    return isinstance(values, list) and all(type(value) is int and 0 <= value < 2**63 for value in values)


def _expect_apart(tensors: Mapping[str, TensorInfo], offsets: Mapping[str, int]) -> None:
    """Tensors may not share bytes: a small file could otherwise announce any amount of memory."""
    end = 0
    for name in sorted(offsets, key=lambda name: (offsets[name], tensors[name].bytes)):
        if tensors[name].bytes and offsets[name] < end:
            raise ValueError(f"its header lays tensor {quoted(name)} over another one; download it again.")
        end = max(end, offsets[name] + tensors[name].bytes)


def _expect_stored(path: Path, size: int) -> None:
    """``torch.save`` never compresses; an archive that does may unpack to any size."""
    with open(path, "rb") as file:
        if file.read(len(ARCHIVE_START)) != ARCHIVE_START:
            return  # the format before archives
        try:
            with zipfile.ZipFile(file) as archive:
                parts = archive.infolist()
        except zipfile.BadZipFile as error:
            raise ValueError(
                f"it cannot be read as a PyTorch file ({one_line(str(error))}); download it again."
            ) from error
    if any(part.compress_type != zipfile.ZIP_STORED for part in parts) or sum(part.file_size for part in parts) > size:
        raise ValueError("it is a compressed archive and no PyTorch file; unpack it and choose what is inside.")


def _load_pickle(path: Path, device: str) -> dict[str, torch.Tensor]:
    name = quoted(path.name, LONGEST_FILE_NAME)
    try:
        content = torch.load(path, map_location=device, weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{name} is damaged or holds program objects beside its tensors, which are never executed here; "
            "convert it to safetensors with the program that made it."
        ) from error
    except STUMBLES as error:
        reason = one_line(str(error) or type(error).__name__, 2 * LONGEST_QUOTE)
        raise ValueError(f"{name} cannot be read as a PyTorch file ({reason}); download it again.") from error
    return _only_tensors(name, content)


def _only_tensors(name: str, content: Any) -> dict[str, torch.Tensor]:
    """The weights inside what was saved: the dictionary itself, or the one a training script wrapped them in."""
    for key in WRAPPER_KEYS:
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict):
        raise ValueError(f"{name} holds a {type(content).__name__}; expected a dictionary of tensors.")
    return {key: value for key, value in content.items() if isinstance(key, str) and isinstance(value, torch.Tensor)}


def _expect_plain_tensors(weights: Mapping[str, torch.Tensor], size: int) -> None:
    """Only ordinary tensors whose values stand in the file; views of one block, such as tied weights, are fine."""
    blocks: dict[int, int] = {}
    total = 0
    for name, tensor in weights.items():
        if tensor.layout is not torch.strided or tensor.is_nested or tensor.dtype not in DTYPES.values():
            kind = "nested" if tensor.is_nested else f"{tensor.layout}, {tensor.dtype}".replace("torch.", "")
            raise ValueError(f"tensor {quoted(name)} is no plain tensor ({kind}); convert the file to safetensors.")
        block = tensor.untyped_storage()
        blocks[block._cdata] = block.nbytes()
        total += tensor.numel() * tensor.element_size()
        if tensor.numel() * tensor.element_size() > block.nbytes():
            raise ValueError(f"tensor {quoted(name)} is larger than what is stored of it; export the file again.")
    if sum(blocks.values()) > size or total > TIED * size:
        raise ValueError(f"it announces {shown(max(total, sum(blocks.values())))} bytes of tensors but has {size}; "
                         "download or export it again.")  # fmt: skip
