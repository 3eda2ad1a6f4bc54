"""Files of rows: written under a temporary name, checked, renamed, and found again after a crash."""

from __future__ import annotations

import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .ledger import FOLDER, Ledger, Output
from .naming import file_name

PART = ".part-"
IS_PART = re.compile(re.escape(PART) + "[0-9a-f]{8}$")
SETTINGS = "settings"  # folder beside the ledger, for files that cannot hold their own
MARK = "opensora_batch"  # the key under which a file's metadata holds the row's settings


@dataclass(frozen=True)
class Made:
    """A file as a worker gives it: its name there, and its bytes piece by piece."""

    filename: str
    chunks: Iterable[bytes]


def write_parts(out: Path, name: str, made: Sequence[Made], settings: dict[str, Any]) -> list[Output]:
    """Write a row's files under temporary names and flush them to the disk.

    ComfyUI puts the settings into the files it saves. Where a file has none (a format without metadata, a server that
    was told to write none) they are written as one more file, below the ledger's folder.
    """
    outputs: list[Output] = []
    try:
        for number, file in enumerate(made, 1):
            final = file_name(name, number, Path(file.filename).suffix.lower())
            output, has_settings = _write(out, final, file.chunks, str(settings["key"]).encode())
            outputs.append(output)
            if not has_settings:
                content = json.dumps(settings, ensure_ascii=False, indent=1).encode()
                outputs.append(_write(out, f"{FOLDER}/{SETTINGS}/{final}.json", [content], b"")[0])
    except BaseException:
        for output in outputs:
            (out / output.part).unlink(missing_ok=True)
        raise
    return outputs


def _write(out: Path, final: str, chunks: Iterable[bytes], wanted: bytes) -> tuple[Output, bool]:
    """One file; also whether ``wanted`` is in it."""
    part = f"{final}{PART}{uuid.uuid4().hex[:8]}"
    (out / part).parent.mkdir(parents=True, exist_ok=True)
    digest, tail, found = hashlib.sha256(), b"", not wanted
    try:
        with open(out / part, "wb") as file:
            for chunk in chunks:
                file.write(chunk)
                digest.update(chunk)
                found = found or wanted in tail + chunk
                tail = (tail + chunk)[-len(wanted) :]
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        (out / part).unlink(missing_ok=True)
        raise
    return Output(part, final, digest.hexdigest()), found


def rename_parts(out: Path, outputs: Sequence[Output]) -> None:
    """Give the files their final names; those that have them already stay."""
    for output in outputs:
        if (out / output.part).is_file():
            os.replace(out / output.part, out / output.final)
    for folder in {(out / output.final).parent for output in outputs}:
        _flush_folder(folder)


def are_whole(out: Path, outputs: Sequence[Output]) -> bool:
    """Whether all files are there, under the temporary or the final name, with the bytes that were written."""
    return bool(outputs) and all(
        any(_sha256(out / name) == output.sha256 for name in (output.part, output.final)) for output in outputs
    )


def recover(ledger: Ledger) -> None:
    """After a crash: rows whose files are whole are finished, parts that belong to no row are deleted."""
    for entry in ledger.entries("saving"):
        if are_whole(ledger.out, entry.outputs):
            rename_parts(ledger.out, entry.outputs)
            ledger.finish(entry.name)
        else:
            ledger.give_back(entry.name)
    for part in list(ledger.out.rglob(f"*{PART}*")):
        if IS_PART.search(part.name) and part.is_file():
            part.unlink()


class Present:
    """The files that lie in a folder of results; each of its folders is listed once."""

    def __init__(self, out: Path) -> None:
        self._out = out
        self._names: dict[str, dict[str, list[str]]] = {}  # by folder and by name without ending

    def has(self, final: str) -> bool:
        """Whether this file is there."""
        folder, _, filename = final.rpartition("/")
        return filename in self._in(folder).get(Path(filename).stem, ())

    def called(self, name: str) -> list[str]:
        """The files of this name, whatever their ending."""
        folder, _, stem = name.rpartition("/")
        return [f"{folder}/{filename}".lstrip("/") for filename in self._in(folder).get(stem, ())]

    def is_result(self, final: str, key: str) -> bool:
        """Whether this file is the result of a row with this key, left by a ledger that lost its last lines."""
        beside = self._out / FOLDER / SETTINGS / f"{final}.json"
        return any(path.is_file() and key.encode() in path.read_bytes() for path in (self._out / final, beside))

    def _in(self, folder: str) -> dict[str, list[str]]:
        if folder not in self._names:
            found = self._names[folder] = {}
            if (self._out / folder).is_dir():
                for filename in os.listdir(self._out / folder):
                    found.setdefault(Path(filename).stem, []).append(filename)
        return self._names[folder]


def _sha256(path: Path) -> str | None:
    if not path.is_file():
        return None
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    """So that the new names outlast a loss of power; Windows has no such call and needs none."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
