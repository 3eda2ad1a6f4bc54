"""Whole files or nothing: written under a private name, flushed to the disk, then given their own name.

A private name belongs to one process, which holds a lock on it. A process that dies leaves its file unlocked, and the
next one that writes into the folder removes it.
"""

from __future__ import annotations

import errno
import os
import secrets
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TypeVar

from ..messages.quoting import shown_path
from .failures import CannotStore, explained
from .places import clear, is_file
from .temporary import try_lock

T = TypeVar("T")
Name = TypeVar("Name", bound="os.PathLike[str]")
Write = Callable[[Path], T]
"""Writes a file that is there already, empty, under the path it gets."""

PRIVATE, PART = ".opensora-", ".part"
TRIES = 100
OLD_SECONDS = 24 * 3600
"""Age at which a private file is nobody's any more where there are no locks to tell."""

UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, getattr(errno, "ENOTSUP", errno.ENOSYS)}
CANNOT_LINK = {errno.EPERM, errno.EACCES, errno.EXDEV, errno.EMLINK, *UNSUPPORTED}


def write_whole(target: Path, write: Write[T], kept: str = "") -> T:
    """Write ``target``, replacing what is there, all or nothing; gives what ``write`` gave.

    Raises CannotStore, one sentence; ``kept`` is its end, see :func:`.failures.explained`.
    """
    with explained(target, kept):
        target.parent.mkdir(parents=True, exist_ok=True)
        with _private_file(target.parent) as private:
            result = write(private.path)
            private.flush()
            os.replace(private.path, target)
            _flush_folder(target.parent)
            return result


def text_writer(text: str) -> Write[int]:
    """What :func:`write_whole` and :func:`write_new` call to write ``text``."""
    return lambda path: path.write_text(text, encoding="utf-8")


def write_new(choose: Callable[[], Name], write: Write[object], kept: str = "") -> Name:
    """Write a file under a name that no file has; gives the name.

    ``choose`` names a free path and is asked again if another process takes that path first. Raises CannotStore.
    """
    name = choose()
    folder = Path(name).parent
    with explained(Path(name), kept):
        folder.mkdir(parents=True, exist_ok=True)
        with _private_file(folder) as private:
            write(private.path)
            private.flush()
            for _ in range(TRIES):
                if _take_name(private.path, Path(name)):
                    _flush_folder(folder)
                    return name
                name = choose()
    raise CannotStore(f"'{shown_path(Path(name))}' cannot be written: every name is taken; choose another file name.")


class _Private:
    def __init__(self, path: Path, handle: int) -> None:
        self.path, self.handle = path, handle

    def flush(self) -> None:
        """To the disk, whoever wrote it."""
        flush(self.handle)
        if os.name == "nt":
            self.close()  # an open file cannot be renamed there

    def close(self) -> None:
        if self.handle >= 0:
            os.close(self.handle)
            self.handle = -1


@contextmanager
def _private_file(folder: Path) -> Iterator[_Private]:
    remove_abandoned(folder)
    private = _claim(folder)
    try:
        yield private
    finally:
        private.close()
        with suppress(OSError):
            os.unlink(private.path)


def _claim(folder: Path) -> _Private:
    """A new, empty, locked file that belongs to this call alone."""
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
    for _ in range(TRIES):
        path = folder / f"{PRIVATE}{os.getpid()}-{secrets.token_hex(6)}{PART}"
        private = _Private(path, os.open(path, flags, 0o666))
        # False: somebody was cleaning up at this very moment and took it for an abandoned one.
        if os.name == "nt" or try_lock(private.handle) is not False:
            return private
        private.close()
    raise OSError(errno.EEXIST, "no private name can be had")


def flush(handle: int) -> None:
    """Bring a file to the disk; file systems that know no flushing are left alone."""
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in UNSUPPORTED:
            raise


def _flush_folder(folder: Path) -> None:
    """Bring a new name to the disk, where folders can be opened."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _take_name(private: Path, target: Path) -> bool:
    """Give a finished file its name; False if some file has it already."""
    try:
        if os.name == "nt":
            os.rename(private, target)
        else:
            os.link(private, target)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in CANNOT_LINK:
            raise
    try:  # a file system without hard links: the name is taken by an empty file first
        os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    try:
        os.replace(private, target)
    except OSError:
        os.unlink(target)
        raise
    return True


def remove_abandoned(folder: Path) -> None:
    """Remove private files of processes that died in this folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(PRIVATE) and entry.name.endswith(PART):
                with suppress(OSError):
                    _remove_if_abandoned(folder / entry.name)


def _remove_if_abandoned(path: Path) -> None:
    if not is_file(path):
        clear(path)
    elif os.name == "nt":
        # Refused while a process has it open; one of this process may be closed, waiting for its name in a thread.
        if not path.name.startswith(f"{PRIVATE}{os.getpid()}-"):
            os.unlink(path)
    else:
        handle = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_NOFOLLOW)
        try:
            locked = try_lock(handle)
            old = time.time() - os.fstat(handle).st_mtime > OLD_SECONDS
            if locked or (locked is None and old):
                os.unlink(path)
        finally:
            os.close(handle)
