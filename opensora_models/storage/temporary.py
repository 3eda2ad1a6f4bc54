"""Folders of the system that are gone when what they serve has ended, or when the next starts where it was killed.

Nothing but Python's own library: ``devtools/batch/host.py``, which may import nothing else, loads this file by its
path.
"""

from __future__ import annotations

import errno
import os
import shutil
import stat
import tempfile
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]
try:
    import msvcrt
except ImportError:
    msvcrt = None  # type: ignore[assignment]

LOCK = "lock"
"""The file in a folder whose lock says that somebody lives for whom it is there."""
HELD = (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES, errno.EDEADLK)


def try_lock(handle: int) -> bool | None:
    """Lock an open file for this process without waiting.

    True: it is ours until the handle is closed or the process ends. False: somebody else has it. None: there are no
    locks here.
    """
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        elif msvcrt is not None:
            msvcrt.locking(handle, msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        else:
            return None
    except OSError as error:
        return False if error.errno in HELD else None
    return True


class TemporaryFolder:
    """A new folder of nobody else, ``name``; removed by :meth:`cleanup`, when forgotten, and when Python ends.

    ``handle`` is of the file whose lock holds it. A process that is handed it, outside Windows, holds the folder as
    well: the system gives the lock back when the last of them has ended.
    """

    def __init__(self, purpose: str) -> None:
        self.name, self.handle = _held_folder(purpose)
        self._end = weakref.finalize(self, _remove, self.name, self.handle)

    def cleanup(self) -> None:
        """Remove it with all in it."""
        self._end()


def cleared_leftovers(purpose: str) -> list[tuple[Path, str]]:
    """Remove the folders for ``purpose`` that nobody lives for any more; each with why it stays, or "".

    Only those that were held by a lock: without one nobody can tell.
    """
    found = []
    for folder in sorted(Path(tempfile.gettempdir()).glob(f"{_prefix(purpose)}*")):
        handle = _lock_of(folder)
        if handle is None:
            continue
        left = try_lock(handle)
        if os.name == "nt":
            os.close(handle)  # no open file is removed there, nor that of somebody who is just making the folder
        if left:
            found.append((folder, _cleared(folder)))
        if os.name != "nt":
            os.close(handle)
    return found


def _prefix(purpose: str) -> str:
    return f"opensora-{purpose}-"


def _held_folder(purpose: str) -> tuple[str, int]:
    """A new folder and the handle of its lock, which is ours, or where nothing can be locked nobody's."""
    while True:
        folder = tempfile.mkdtemp(prefix=_prefix(purpose))
        path = os.path.join(folder, LOCK)
        handle = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        if try_lock(handle) is not False and os.path.exists(path):
            return folder, handle
        os.close(handle)  # another process that clears leftovers came in between


def _remove(folder: str, handle: int) -> None:
    os.close(handle)  # first: Windows removes no open file
    shutil.rmtree(folder, ignore_errors=True)


def _lock_of(folder: Path) -> int | None:
    """The lock of a folder, opened; None where it has none, or is another person's, or is no folder."""
    try:
        status = os.lstat(folder)
        if not stat.S_ISDIR(status.st_mode) or (hasattr(os, "getuid") and status.st_uid != os.getuid()):
            return None
        return os.open(folder / LOCK, os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0))
    except OSError:
        return None


def _cleared(folder: Path) -> str:
    """Remove a folder; why it stays, as the end of a sentence, or ""."""
    try:
        shutil.rmtree(folder)
    except OSError as error:
        return f"cannot be removed ({error.strerror or type(error).__name__})"
    return ""
