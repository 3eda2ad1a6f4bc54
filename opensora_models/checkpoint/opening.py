"""Reads weight files safely: what a file holds first, its tensors only when somebody wants them.

``open_checkpoint`` reads names, shapes and dtypes (a few kilobytes of a safetensors file) and decides with
:func:`describe` what the file is; ``Checkpoint.load`` then reads the tensors one by one into fresh memory, so the
peak is one copy of the file. Pickle files are opened with PyTorch's ``weights_only`` reader, which cannot run code.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ..messages.quoting import LONGEST_FILE_NAME, quoted
from .kinds import EMPTY, FULL_CHECKPOINT, OPEN_SORA, FileKind, Shape, describe
from .readers import PICKLE_ENDINGS, SAFETENSORS_ENDINGS, LoadedTensors, PickleFile, SafetensorsFile, TensorInfo
from .reading import expect_plain_file, is_file, is_folder, read_json, reading
from .settings import NAME as SETTINGS
from .settings import expect_object, from_tensor, parse_settings

__all__ = [
    *("CLIP_PARTS", "MODEL_PARTS", "TEXT_PARTS", "VAE_PARTS", "Checkpoint", "FileKind", "checkpoint_of", "describe"),
    "expect_kind",
    *("expect_shapes", "expect_weights", "open_checkpoint", "strip_prefix"),
]

logger = logging.getLogger("opensora")

# Wrappers that training frameworks and all-in-one files put before every name, longest first.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "module.", "model.")
# These mark one part inside a larger file; other wrappers must stand before every name to be one.
MODEL_PARTS = ("model.diffusion_model.", "diffusion_model.")
VAE_PARTS = ("first_stage_model.", "vae.")
TEXT_PARTS, CLIP_PARTS = (
    tuple(f"{outer}{part}.transformer." for outer in ("cond_stage_model.", "text_encoders.", ""))
    for part in ("t5xxl", "clip_l")
)
MOST_WRAPPERS = 8

INDEX_ENDING = ".index.json"
SHARD_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>[0-9]{5})-of-(?P<count>[0-9]{5})(?P<ending>\.\w+)$")

WEIGHT_DTYPES = (
    *(torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.float8_e5m2, torch.float64),
)

Source = SafetensorsFile | PickleFile | LoadedTensors
Convert = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """One opened checkpoint, in one file or many; names are without the wrapper ``prefix``."""

    path: Path
    kind: FileKind
    tensors: Mapping[str, TensorInfo]
    prefix: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[Source, ...] = ()

    @property
    def name(self) -> str:
        """File or folder name, which messages quote."""
        return self.path.name

    @property
    def quoted(self) -> str:
        """The name as messages show it."""
        return quoted(self.name, LONGEST_FILE_NAME)

    @property
    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of all tensors."""
        return {name: info.shape for name, info in self.tensors.items()}

    def load(self, convert: Convert | None = None) -> dict[str, torch.Tensor]:
        """All tensors on the CPU in fresh memory; ``convert(name, tensor)`` may change each one as it arrives."""
        loaded: dict[str, torch.Tensor] = {}
        wanted = {self.prefix + name for name in self.tensors}
        for source in self.sources:
            for full_name, tensor in source.read(wanted):
                name = full_name.removeprefix(self.prefix)
                loaded[name] = tensor if convert is None else convert(name, tensor)
        return loaded

    def only(self, keep: Callable[[str], object]) -> Checkpoint:
        """The same with the tensors whose name ``keep`` says yes to; the others are never read."""
        return replace(self, tensors={name: info for name, info in self.tensors.items() if keep(name)})

    def settings(self) -> dict[str, Any]:
        """What the weights cannot tell: the tensor ``opensora.config``, else that entry of the metadata, else a file.

        The file is ``<name>.json`` or ``config.json`` beside the weights. Returns {} when there is none; damaged
        settings are an error because they were put there on purpose.
        """
        full_name = self.prefix + SETTINGS
        for source in self.sources:
            if full_name in source.tensors:
                with reading(self.name):
                    (_, tensor), *_ = source.read([full_name])
                    return from_tensor(tensor, self.quoted)
        if SETTINGS in self.metadata:
            return parse_settings(self.metadata[SETTINGS], f"metadata of {self.quoted}")
        if any(isinstance(source, LoadedTensors) for source in self.sources):
            return {}  # nothing lies beside what a program holds in memory
        folder = self.path if is_folder(self.path) else self.path.parent
        for candidate in (folder / f"{self.path.stem}.json", folder / "config.json"):
            if is_file(candidate):
                logger.info("Settings of '%s' read from '%s'.", self.name, candidate.name)
                return expect_object(read_json(candidate), quoted(candidate.name, LONGEST_FILE_NAME))
        return {}


def open_checkpoint(path: str | Path, parts: Sequence[str] = MODEL_PARTS) -> Checkpoint:
    """Opens a file, a folder of shards or one shard of a set, reading names and shapes only.

    ``parts`` are the prefixes that mark what is wanted inside a larger file. Raises ValueError with one sentence for a
    missing, empty, truncated, unreadable or unsafe file.
    """
    path = Path(path)
    with reading(path.name):
        sources = tuple(_open_one(file) for file in _files_of(path))
        metadata: dict[str, str] = {}
        for source in sources:
            metadata.update(source.metadata)
        return checkpoint_of(path, sources, metadata, parts)


def checkpoint_of(
    path: Path, sources: tuple[Source, ...], metadata: Mapping[str, str], parts: Sequence[str]
) -> Checkpoint:
    """The checkpoint these sources make up; ``path`` names it in messages."""
    raw = {name: info for source in sources for name, info in source.tensors.items()}
    tensors, prefix = strip_prefix(raw, parts)
    tensors.pop(SETTINGS, None)
    kind = describe({name: info.shape for name, info in tensors.items()})
    if prefix in MODEL_PARTS and kind not in OPEN_SORA:
        whole = describe({name: info.shape for name, info in raw.items()})
        kind = whole if whole is FULL_CHECKPOINT else kind
    return Checkpoint(path, kind, tensors, prefix, metadata, sources)


def strip_prefix(names: Mapping[str, Any], parts: Sequence[str] = MODEL_PARTS) -> tuple[dict[str, Any], str]:
    """Entries without the wrapper before their names, and that wrapper; repeated wrappers are all removed.

    Where the wrapper is one of ``parts`` it marks what is wanted in a larger file, and other entries are left out.
    """
    entries, total = dict(names), ""
    for _ in range(MOST_WRAPPERS):
        found = next((part for part in parts if any(name.startswith(part) for name in entries)), "")
        if not found:
            found = next((prefix for prefix in PREFIXES if entries and all(n.startswith(prefix) for n in entries)), "")
        if not found:
            break
        entries = {name[len(found) :]: value for name, value in entries.items() if name.startswith(found)}
        total += found
    return entries, total


def expect_kind(checkpoint: Checkpoint, allowed: Collection[FileKind], expected: str) -> FileKind:
    """The file's kind if ``allowed``; else ValueError naming the file, what it looks like and what was ``expected``."""
    if checkpoint.kind in allowed:
        return checkpoint.kind
    looks = "is" if checkpoint.kind is EMPTY else "looks like"
    raise ValueError(f"{checkpoint.quoted} {looks} {checkpoint.kind.sentence_part()}; expected {expected}.")


def expect_shapes(checkpoint: Checkpoint, wanted: Mapping[str, Shape], ignore: Collection[str] = ()) -> list[str]:
    """Checks that every ``wanted`` tensor is there in its shape and returns the names that are there but not wanted.

    ``ignore`` lists wanted names that may be missing. Raises ValueError for missing tensors or other shapes.
    """
    found = checkpoint.shapes
    missing = [name for name in wanted if name not in found and name not in ignore]
    if missing:
        raise ValueError(
            f"{checkpoint.quoted} looks like {checkpoint.kind.title} but lacks {len(missing)} of its {len(wanted)} "
            f"tensors, for example {_quoted(missing)}; the file is incomplete, download or export it again."
        )
    wrong = [name for name, shape in wanted.items() if name in found and tuple(found[name]) != tuple(shape)]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"{checkpoint.quoted} looks like {checkpoint.kind.title} but tensor '{name}' is {list(found[name])} where "
            f"{list(wanted[name])} was expected ({len(wrong)} tensors differ)."
        )
    return [name for name in found if name not in wanted]


def expect_weights(checkpoint: Checkpoint, names: Collection[str]) -> None:
    """Checks that the tensors of these names hold numbers with a fraction, as weights do. Raises ValueError."""
    for name in names:
        info = checkpoint.tensors.get(name)
        if info is not None and info.dtype not in WEIGHT_DTYPES:
            raise ValueError(
                f"{checkpoint.quoted} looks like {checkpoint.kind.title} but tensor {quoted(name)} holds "
                f"{info.dtype} where weights in {', '.join(map(str, WEIGHT_DTYPES))} were expected.".replace(
                    "torch.", ""
                )
            )


def _quoted(names: Collection[str], most: int = 3) -> str:
    return ", ".join(quoted(name) for name in list(names)[:most])


def _open_one(path: Path) -> SafetensorsFile | PickleFile:
    ending = path.suffix.lower()
    if ending in SAFETENSORS_ENDINGS:
        return SafetensorsFile.open(path)
    if ending in PICKLE_ENDINGS:
        return PickleFile.open(path)
    allowed = ", ".join((*SAFETENSORS_ENDINGS, *PICKLE_ENDINGS))
    raise ValueError(
        f"{_file(path)} ends in {quoted(ending)}, but weights are read from {allowed} files or a folder of shards."
    )


def _file(path: Path) -> str:
    return quoted(path.name, LONGEST_FILE_NAME)


def _files_of(path: Path) -> list[Path]:
    """The files that together make the checkpoint at ``path``."""
    if is_folder(path):
        return _files_of_folder(path)
    expect_plain_file(path)
    if path.name.endswith(INDEX_ENDING):
        return _files_of_index(path)
    shard = SHARD_NAME.match(path.name)
    if shard:
        return _all_shards(path, shard)
    return [path]


def _files_of_folder(folder: Path) -> list[Path]:
    indices = sorted(folder.glob(f"*{INDEX_ENDING}"))
    if indices:
        # A folder may offer both forms; safetensors is the safe one.
        return _files_of_index(next((i for i in indices if ".safetensors" in i.name), indices[0]))
    for name in ("model.safetensors", "diffusion_pytorch_model.safetensors", "pytorch_model.bin", "ema.pt"):
        if is_file(folder / name):
            return [folder / name]
    single = [file for file in _weight_files(folder) if not SHARD_NAME.match(file.name)]
    if len(single) == 1:
        return single
    shards = [file for file in _weight_files(folder) if SHARD_NAME.match(file.name)]
    if shards:
        return _files_of(shards[0])
    raise ValueError(
        f"The folder {_file(folder)} holds {len(single)} weight files; expected one model.safetensors, or shards with "
        f"their *{INDEX_ENDING} file."
    )


def _weight_files(folder: Path) -> Iterator[Path]:
    endings = (*SAFETENSORS_ENDINGS, *PICKLE_ENDINGS)
    return (file for file in sorted(folder.iterdir()) if is_file(file) and file.suffix.lower() in endings)


def _files_of_index(index: Path) -> list[Path]:
    weight_map = expect_object(read_json(index), _file(index)).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(v, str) for v in weight_map.values()):
        raise ValueError(
            f"{_file(index)} has no 'weight_map' of tensors and files; expected the index of a sharded checkpoint."
        )
    names = sorted(set(weight_map.values()))
    if any(Path(name).name != name for name in names):
        raise ValueError(f"{_file(index)} names shards outside its own folder; expected plain file names.")
    return _existing(names, index)


def _all_shards(path: Path, shard: re.Match[str]) -> list[Path]:
    number, count = int(shard["number"]), int(shard["count"])
    if not 1 <= number <= count:
        raise ValueError(f"{_file(path)} calls itself part {number} of {count}; give the file its original name.")
    names = [f"{shard['stem']}-{part:05d}-of-{count:05d}{shard['ending']}" for part in range(1, count + 1)]
    return _existing(names, path)


def _existing(names: list[str], origin: Path) -> list[Path]:
    """The files of these names beside ``origin``. ValueError where one is missing."""
    listed = set(os.listdir(origin.parent))
    missing = [name for name in names if name not in listed or not is_file(origin.parent / name)]
    if missing:
        raise ValueError(
            f"{_file(origin)} belongs to a checkpoint of {len(names)} files of which {len(missing)} are missing, for "
            f"example {_quoted(missing)}; put all of them into one folder."
        )
    return [origin.parent / name for name in names]
