"""What a file system refuses, said in one sentence that names the path and what to do."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..messages.printable import printable
from ..messages.quoting import shown_path

ELSEWHERE = "start ComfyUI with --output-directory and a folder it may write to"

_REASONS = {
    "ENOSPC": ("the disk is full", "free some space and run again"),
    "EDQUOT": ("the quota of this disk is used up", "free some space and run again"),
    "EROFS": ("the disk is read-only", ELSEWHERE),
    "EACCES": ("ComfyUI has no permission", f"give it the right to write there, or {ELSEWHERE}"),
    "EPERM": ("the system does not permit it", f"give ComfyUI the right to write there, or {ELSEWHERE}"),
    "ENAMETOOLONG": ("the name is too long", "shorten the file name or its folders"),
    "EISDIR": ("a folder lies in its place", "choose another file name"),
    "ELOOP": ("its links lead in a circle", "choose another file name"),
    "EFBIG": ("the file is larger than the file system or a limit allows", "use another disk"),
    "EIO": ("the disk reports an error", "check the disk and run again"),
    "EMFILE": ("too many files are open", "restart ComfyUI and run again"),
    "ENFILE": ("too many files are open", "close other programs and run again"),
    "ENOENT": ("its folder has vanished", "run again"),
    "EINVAL": ("the file system does not take this name", "choose another file name"),
}
REASONS: dict[int, tuple[str, str]] = {
    getattr(errno, name): texts for name, texts in _REASONS.items() if hasattr(errno, name)
}
"""By error number: what is wrong, and what to do."""


class CannotStore(OSError, ValueError):
    """A file could not be written; the text is one sentence for the person who runs the graph."""


@contextmanager
def explained(path: Path | str, kept: str = "") -> Iterator[None]:
    """Errors of the file system inside the block leave as :class:`CannotStore`, about ``path``.

    ``kept`` says, as the end of a sentence, what has not been lost.
    """
    try:
        yield
    except CannotStore:
        raise
    except OSError as error:
        raise CannotStore(_sentence(path, *_reason(error, path), kept)) from error
    except UnicodeEncodeError as error:
        reason = ("the name holds a character that no file can have", "choose another file name")
        raise CannotStore(_sentence(path, *reason, kept)) from error
    except ValueError as error:
        if "null" not in str(error):  # what Python says of "\0" in a path, in several wordings
            raise
        reason = ("the name holds the character NUL", "delete it from the file name")
        raise CannotStore(_sentence(path, *reason, kept)) from error


def _sentence(path: Path | str, reason: str, advice: str, kept: str) -> str:
    return f"'{shown_path(path)}' cannot be written: {reason}; {advice}{f' ({kept})' if kept else ''}."


def _reason(error: OSError, path: Path | str) -> tuple[str, str]:
    if isinstance(error, (NotADirectoryError, FileExistsError)):
        return f"'{shown_path(_in_the_way(Path(path)))}' is no folder", "move it away or choose another folder"
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        reason, advice = REASONS[error.errno or 0]
        return f"{reason}{_free(Path(path))}", advice
    known = REASONS.get(error.errno or 0)
    return known if known else (printable(error).rstrip("."), "check the disk and run again")


def _in_the_way(path: Path) -> Path:
    """The first part of a path that is there and is no folder."""
    for part in [*reversed(path.parents), path]:
        try:
            if not stat.S_ISDIR(os.stat(part).st_mode):
                return part
        except OSError:
            return part
    return path


def _free(path: Path) -> str:
    for folder in path.parents:
        try:
            return f" ({shutil.disk_usage(folder).free / 2**20:.0f} MB free)"
        except OSError:
            continue
    return ""
