"""What our own folders hold: seen without touching it, and cleared where nobody works.

A store is a folder of pieces (:mod:`.pieces`) with the lock of its writer. Only files that we write are ever removed,
and a link never leads out: it goes, or stays, not what it points to. What cannot be read is said and left alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from .locks import WANTED, FolderLock
from .pieces import RECORD, about_in
from .places import is_file, is_folder
from .temporary import LOCK, try_lock

IN_USE = "in use"
NOT_OURS = "holds files that are not ours, which stay"
NO_LOCKS = "lies on a file system without locks, so that nobody can tell whether it is in use; delete it by hand"

_RECORD = re.compile(RECORD.format("(.+)"))
# Pieces, which may have lost their records; what a process that died was writing; what version 0.1 left.
_PIECE = re.compile(
    r"segment_\d+\.safetensors|\d{5}\.(?:mp4|webm)|row-\d+-\d+\.safetensors|plan|manifest\.json|\.opensora-[\w-]+\.part"
)


@dataclass(frozen=True)
class Stored:
    """One thing that is kept.

    ``size``: bytes. ``changed``: when it last was, in seconds since 1970. ``about``: what it belongs to, "" where
    nothing tells. ``held``: why it cannot be cleared, "" where it can.
    """

    path: Path
    kind: str
    size: int
    changed: float
    about: str = ""
    held: str = ""


def stores(folder: Path, kind: str, depth: int = 1) -> Iterator[Stored]:
    """The stores ``depth`` levels below a folder of ours; anything else there is not ours."""
    for path in _folders(folder):
        if depth > 1:
            yield from stores(path, kind, depth - 1)
        else:
            yield _looked_at(path, kind)


def file_of(path: Path, kind: str, about: str) -> Stored | None:
    """A single file that is kept; None where it has gone, or is none."""
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return Stored(path, kind, status.st_size, status.st_mtime, about) if stat.S_ISREG(status.st_mode) else None


def cleared(stored: Stored) -> Stored:
    """Remove it, as far as it is ours and nobody works in it.

    Gives what was removed: its ``size`` are the bytes that went, and ``held`` says why something is still there.
    """
    if stored.held:
        return replace(stored, size=0)
    try:
        return _cleared_file(stored) if not is_folder(stored.path) else _cleared_store(stored)
    except OSError as error:
        return replace(stored, size=0, held=_cannot(error, "removed"))


def _folders(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if is_folder(path))
    except OSError:
        return []


def _entries(folder: Path) -> Iterator[tuple[str, os.stat_result]]:
    """Names in a store and what lies there, links not followed. Raises OSError."""
    with os.scandir(folder) as entries:
        for entry in entries:
            with suppress(FileNotFoundError):
                yield entry.name, entry.stat(follow_symlinks=False)


def _looked_at(folder: Path, kind: str) -> Stored:
    try:
        found = dict(_entries(folder))
        dated = [status.st_mtime for name, status in found.items() if name not in (LOCK, WANTED)]
        size = sum(status.st_size for status in found.values() if stat.S_ISREG(status.st_mode))
        changed = max(dated, default=os.lstat(folder).st_mtime)
    except OSError as error:
        return Stored(folder, kind, 0, 0.0, held=_cannot(error, "read"))
    records = [folder / name for name in sorted(found) if _RECORD.fullmatch(name)]
    about = next(filter(None, map(about_in, records)), "")
    return Stored(folder, kind, size, changed, about, IN_USE if _is_busy(folder) else "")


def _is_busy(folder: Path) -> bool:
    """Whether a process holds the lock of a store. Nothing is made: where no lock lies, nobody has been."""
    path = folder / LOCK
    if not is_file(path):
        return False
    try:
        handle = os.open(path, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return False
    try:
        return try_lock(handle) is False
    finally:
        os.close(handle)


def _cleared_file(stored: Stored) -> Stored:
    now = file_of(stored.path, stored.kind, stored.about)
    if now is None:
        return replace(stored, size=0)
    if (now.size, now.changed) != (stored.size, stored.changed):
        return replace(stored, size=0, held="has just been written again")
    os.unlink(stored.path)
    return stored


def _cleared_store(stored: Stored) -> Stored:
    lock = FolderLock(stored.path, depth=0)
    try:
        if not lock.take():
            return replace(stored, size=0, held=IN_USE)
        if not lock.certain:
            return replace(stored, size=0, held=NO_LOCKS)
        size = _remove_ours(stored.path)
        if os.name != "nt":
            _remove_lock(stored.path)
    finally:
        lock.release()
    if os.name == "nt":
        _remove_lock(stored.path)  # open files cannot be removed there
    left = os.path.lexists(stored.path)
    return replace(stored, size=size, held=NOT_OURS if left else "")


def _remove_ours(folder: Path) -> int:
    """Remove the pieces and their records; gives the bytes that went."""
    found, size = dict(_entries(folder)), 0
    for name, status in found.items():
        record = _RECORD.fullmatch(name)
        recorded = RECORD.format(name) in found or record and (record[1] in found or _PIECE.fullmatch(record[1]))
        if stat.S_ISDIR(status.st_mode) or not (recorded or _PIECE.fullmatch(name)):
            continue
        with suppress(FileNotFoundError):
            os.unlink(folder / name)
            size += status.st_size if stat.S_ISREG(status.st_mode) else 0
    return size


def _remove_lock(folder: Path) -> None:
    """Remove a store that is empty, and the level above it where that is, too."""
    with suppress(OSError):
        if {name for name, _ in _entries(folder)} <= {LOCK, WANTED}:
            for name in (WANTED, LOCK):
                with suppress(FileNotFoundError):
                    os.unlink(folder / name)
            os.rmdir(folder)
            os.rmdir(folder.parent)


def _cannot(error: OSError, done: str) -> str:
    return f"cannot be {done} ({error.strerror or type(error).__name__})"
