"""One writer a folder: a lock of the operating system, which a process that dies gives back.

Where a file system has no locks, processes of one machine meet at a file in its folder for temporary files. Where that
fails too, nobody waits; whoever writes there must get along with others (private names, pieces that prove themselves).
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..messages.quoting import shown_path
from .failures import explained
from .places import clear, is_file, is_folder, own_folder
from .temporary import LOCK, try_lock

logger = logging.getLogger("opensora")

WANTED = "wanted"
"""A file in the folder that tells its worker that somebody waits."""
POLL_SECONDS = 0.2
TRIES = 50


class FolderLock:
    """The lock of a folder; the folder is made, with ``depth`` levels that are this pack's own, when it is taken.

    ``certain`` is False where nothing could be locked: then somebody else may work there as well.
    """

    def __init__(self, folder: Path, depth: int = 1) -> None:
        self.folder, self.depth, self.certain = folder, depth, False
        self._handle: int | None = None

    def take(self) -> bool:
        """Take the lock if nobody has it; True also where there are no locks. Raises OSError."""
        for _ in range(TRIES):
            own_folder(self.folder, self.depth)
            for path in (self.folder / LOCK, _beside(self.folder)):
                locked = self._try(path)
                if locked is not None:
                    break
            else:
                logger.info("'%s' lies on a file system without locks.", shown_path(self.folder))
                return True
            # Whoever had the lock may have removed the folder, with the file that has just been locked.
            if locked and (path.parent != self.folder or _is_still(path, self._handle)):
                self.certain = True
                return True
            self.release()
            if not locked:
                return False
        raise OSError(errno.ENOENT, "the folder vanishes again and again")

    def release(self) -> None:
        """Give the lock back."""
        if self._handle is not None:
            os.close(self._handle)
            self._handle, self.certain = None, False

    def _try(self, path: Path) -> bool | None:
        """Lock this file, as :func:`try_lock` does; its handle is kept if it is ours."""
        try:
            handle = _opened(path)
        except FileNotFoundError:
            return True  # the folder has just gone, which the caller finds out
        except OSError:
            if path.parent == self.folder:
                raise
            return None
        locked = try_lock(handle)
        if locked:
            self._handle = handle
        else:
            os.close(handle)
        return locked


def _beside(folder: Path) -> Path:
    """A place on this machine's own disk for the lock of a folder whose file system has none."""
    name = hashlib.sha256(os.fsencode(os.path.realpath(folder))).hexdigest()[:20]
    return Path(tempfile.gettempdir()) / f"opensora-{name}.lock"


def _opened(path: Path) -> int:
    flags = os.O_CREAT | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    if os.path.lexists(path) and not is_file(path):
        clear(path)
    try:
        return os.open(path, flags | os.O_RDWR, 0o666)
    except PermissionError:
        return os.open(path, flags | os.O_RDONLY, 0o666)


def _is_still(path: Path, handle: int | None) -> bool:
    try:
        return handle is not None and os.path.samestat(os.stat(path), os.fstat(handle))
    except OSError:
        return False


@contextmanager
def one_writer(
    folder: Path,
    depth: int = 1,
    *,
    waiting: Callable[[], None] = lambda: None,
    tell: Callable[[str], None] = logger.info,
    kept: str = "",
) -> Iterator[None]:
    """Be the only one who works in ``folder``; wait for another process, and say so once.

    ``waiting`` is called again and again meanwhile and may raise to give up; ``kept`` as in ``failures.explained``.
    """
    lock = FolderLock(folder, depth)
    with explained(folder, kept):
        ours = lock.take()
    if not ours:
        tell(f"Another ComfyUI works in '{shown_path(folder)}'; waiting until it has finished.")
        with suppress(OSError):
            os.close(os.open(folder / WANTED, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        while not ours:
            waiting()
            time.sleep(POLL_SECONDS)
            with explained(folder, kept):
                ours = lock.take()
    try:
        yield
    finally:
        lock.release()
        with suppress(OSError):
            _remove_if_empty(folder, depth)


def _remove_if_empty(folder: Path, depth: int) -> None:
    """Leave nothing behind where nothing was stored."""
    if set(os.listdir(folder)) <= {LOCK, WANTED} and remove_if_idle(folder, ours=True):
        for level in [*folder.parents][: depth - 1]:
            level.rmdir()


def remove_if_idle(folder: Path, ours: bool = False) -> bool:
    """Remove a folder with all in it unless somebody works there; whether it is gone. Raises OSError.

    Where nothing can be locked, only a folder that is ``ours``.
    """
    if not is_folder(folder):
        clear(folder)
        return True
    lock = FolderLock(folder, depth=0)
    try:
        free = lock.take() and (lock.certain or ours)
        if os.name == "nt":
            lock.release()  # open files cannot be removed there
        if free:
            clear(folder)
        return free
    finally:
        lock.release()
