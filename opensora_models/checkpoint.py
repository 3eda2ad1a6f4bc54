"""Reads weight files safely: what a file holds first, its tensors only when somebody wants them.

``open_checkpoint`` reads names, shapes and dtypes (a few kilobytes of a safetensors file) and decides with
:func:`describe` what the file is; ``Checkpoint.load`` then reads the tensors one by one into fresh memory, so the
peak is one copy of the file. Pickle files are opened with PyTorch's ``weights_only`` reader, which cannot run code.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from .checkpoint_kinds import EMPTY, FULL_CHECKPOINT, FileKind, Shape, describe
from .checkpoint_readers import PICKLE_ENDINGS, SAFETENSORS_ENDINGS, PickleFile, SafetensorsFile, TensorInfo

__all__ = ["Checkpoint", "FileKind", "describe", "expect_kind", "expect_shapes", "open_checkpoint", "strip_prefix"]

logger = logging.getLogger("opensora")

# Wrappers that training frameworks and all-in-one files put before every name, longest first.
PREFIXES = ("model.diffusion_model.", "diffusion_model.", "module.", "model.")
# These two mark the diffusion model inside a larger file; the others must stand before every name to be a wrapper.
PART_PREFIXES = ("model.diffusion_model.", "diffusion_model.")

INDEX_ENDING = ".index.json"
SHARD_NAME = re.compile(r"^(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})(?P<ending>\.\w+)$")
METADATA_SETTINGS = "opensora.config"

Convert = Callable[[str, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """One opened checkpoint, in one file or many; names are without the wrapper ``prefix``."""

    path: Path
    kind: FileKind
    tensors: Mapping[str, TensorInfo]
    prefix: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)
    sources: tuple[SafetensorsFile | PickleFile, ...] = ()

    @property
    def name(self) -> str:
        """File or folder name for messages."""
        return self.path.name

    @property
    def shapes(self) -> dict[str, Shape]:
        """Names and shapes of all tensors."""
        return {name: info.shape for name, info in self.tensors.items()}

    def load(self, convert: Convert | None = None) -> dict[str, torch.Tensor]:
        """All tensors on the CPU in fresh memory; ``convert(name, tensor)`` may change each one as it arrives."""
        loaded: dict[str, torch.Tensor] = {}
        for source in self.sources:
            for full_name, tensor in source.read():
                name = full_name.removeprefix(self.prefix)
                if name in self.tensors and full_name.startswith(self.prefix):
                    loaded[name] = tensor if convert is None else convert(name, tensor)
        return loaded

    def settings(self) -> dict[str, Any]:
        """What the weights cannot tell: JSON in the file's ``opensora.config``, else ``<name>.json``, else config.json.

        Returns {} when there is none; a damaged JSON file is an error because it was put there on purpose.
        """
        if METADATA_SETTINGS in self.metadata:
            return parse_settings(self.metadata[METADATA_SETTINGS], f"metadata of '{self.name}'")
        folder = self.path if self.path.is_dir() else self.path.parent
        for candidate in (self.path.with_suffix(".json"), folder / "config.json"):
            if candidate.is_file():
                logger.info("Settings of '%s' read from '%s'.", self.name, candidate.name)
                return parse_settings(candidate.read_text(encoding="utf-8"), f"'{candidate.name}'")
        return {}


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Opens a file, a folder of shards or one shard of a set, reading names and shapes only.

    Raises ValueError with one sentence for a missing, empty, truncated, unreadable or unsafe file.
    """
    path = Path(path)
    sources = tuple(_open_one(file) for file in _files_of(path))
    raw = {name: info for source in sources for name, info in source.tensors.items()}
    metadata: dict[str, str] = {}
    for source in sources:
        metadata.update(source.metadata)
    tensors, prefix = strip_prefix(raw)
    kind = describe({name: info.shape for name, info in tensors.items()})
    if prefix in PART_PREFIXES and not kind.id.startswith("stdit"):
        whole = describe({name: info.shape for name, info in raw.items()})
        kind = whole if whole is FULL_CHECKPOINT else kind
    return Checkpoint(path, kind, tensors, prefix, metadata, sources)


def strip_prefix(names: Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    """Entries without the wrapper before their names, and that wrapper; repeated wrappers are all removed.

    Where the wrapper marks the diffusion model of a larger file the other entries are left out.
    """
    entries, total = dict(names), ""
    while entries:
        prefix = next((p for p in PREFIXES if _is_wrapper(p, entries)), "")
        if not prefix:
            break
        entries = {name[len(prefix) :]: value for name, value in entries.items() if name.startswith(prefix)}
        total += prefix
    return entries, total


def expect_kind(checkpoint: Checkpoint, allowed: Collection[FileKind], expected: str) -> FileKind:
    """The file's kind if ``allowed``; else ValueError naming the file, what it looks like and what was ``expected``."""
    if checkpoint.kind in allowed:
        return checkpoint.kind
    looks = "is" if checkpoint.kind is EMPTY else "looks like"
    raise ValueError(f"'{checkpoint.name}' {looks} {checkpoint.kind.sentence_part()}; expected {expected}.")


def expect_shapes(checkpoint: Checkpoint, wanted: Mapping[str, Shape], ignore: Collection[str] = ()) -> list[str]:
    """Checks that every ``wanted`` tensor is there in its shape and returns the names that are there but not wanted.

    ``ignore`` lists wanted names that may be missing. Raises ValueError for missing tensors or other shapes.
    """
    found = checkpoint.shapes
    missing = [name for name in wanted if name not in found and name not in ignore]
    if missing:
        raise ValueError(
            f"'{checkpoint.name}' looks like {checkpoint.kind.title} but lacks {len(missing)} of its {len(wanted)} "
            f"tensors, for example {_quoted(missing)}; the file is incomplete, download or export it again."
        )
    wrong = [name for name, shape in wanted.items() if name in found and tuple(found[name]) != tuple(shape)]
    if wrong:
        name = wrong[0]
        raise ValueError(
            f"'{checkpoint.name}' looks like {checkpoint.kind.title} but tensor '{name}' is {list(found[name])} where "
            f"{list(wanted[name])} was expected ({len(wrong)} tensors differ)."
        )
    return [name for name in found if name not in wanted]


def _quoted(names: Collection[str], most: int = 3) -> str:
    return ", ".join(f"'{name}'" for name in list(names)[:most])


def _is_wrapper(prefix: str, names: Collection[str]) -> bool:
    if prefix in PART_PREFIXES:
        return any(name.startswith(prefix) for name in names)
    return all(name.startswith(prefix) for name in names)


def parse_settings(text: str, where: str) -> dict[str, Any]:
    """A JSON object from ``text``; ``where`` names its origin in the ValueError for anything else."""
    try:
        settings = json.loads(text)
    except ValueError as error:
        raise ValueError(f"The settings in {where} are not valid JSON ({error}); repair or remove them.") from error
    if not isinstance(settings, dict):
        raise ValueError(f'The settings in {where} must be a JSON object such as {{"kernel_size": [8, 8, -1]}}.')
    return settings


def _open_one(path: Path) -> SafetensorsFile | PickleFile:
    ending = path.suffix.lower()
    if ending in SAFETENSORS_ENDINGS:
        return SafetensorsFile.open(path)
    if ending in PICKLE_ENDINGS:
        return PickleFile.open(path)
    allowed = ", ".join((*SAFETENSORS_ENDINGS, *PICKLE_ENDINGS))
    raise ValueError(
        f"'{path.name}' ends in '{ending}', but weights are read from {allowed} files or a folder of shards."
    )


def _files_of(path: Path) -> list[Path]:
    """The files that together make the checkpoint at ``path``."""
    if path.is_dir():
        return _files_of_folder(path)
    if not path.is_file():
        raise ValueError(f"'{path.name}' does not exist in '{path.parent}'; choose one of the listed files.")
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
        if (folder / name).is_file():
            return [folder / name]
    single = [file for file in _weight_files(folder) if not SHARD_NAME.match(file.name)]
    if len(single) == 1:
        return single
    shards = [file for file in _weight_files(folder) if SHARD_NAME.match(file.name)]
    if shards:
        return _files_of(shards[0])
    raise ValueError(
        f"Folder '{folder.name}' holds {len(single)} weight files; expected one model.safetensors, or shards with "
        f"their *{INDEX_ENDING} file."
    )


def _weight_files(folder: Path) -> Iterator[Path]:
    endings = (*SAFETENSORS_ENDINGS, *PICKLE_ENDINGS)
    return (file for file in sorted(folder.iterdir()) if file.is_file() and file.suffix.lower() in endings)


def _files_of_index(index: Path) -> list[Path]:
    weight_map = parse_settings(index.read_text(encoding="utf-8"), f"'{index.name}'").get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"'{index.name}' has no 'weight_map'; expected the index file of a sharded checkpoint.")
    names = sorted({str(name) for name in weight_map.values()})
    if any(Path(name).name != name for name in names):
        raise ValueError(f"'{index.name}' names shards outside its own folder; expected plain file names.")
    return _existing([index.parent / name for name in names], index.name)


def _all_shards(path: Path, shard: re.Match[str]) -> list[Path]:
    count = int(shard["count"])
    names = [f"{shard['stem']}-{number:05d}-of-{count:05d}{shard['ending']}" for number in range(1, count + 1)]
    return _existing([path.parent / name for name in names], path.name)


def _existing(files: list[Path], origin: str) -> list[Path]:
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise ValueError(
            f"'{origin}' belongs to a checkpoint of {len(files)} files of which {len(missing)} are missing, for "
            f"example {_quoted(missing)}; put all of them into one folder."
        )
    return files
