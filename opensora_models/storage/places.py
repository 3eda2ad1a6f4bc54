"""Folders and places of our own: whatever else lies there goes, links are never followed out."""

from __future__ import annotations

import logging
import os
import shutil
import stat
from pathlib import Path

from ..messages.quoting import shown_path

logger = logging.getLogger("opensora")

TRIES = 20


def is_file(path: Path) -> bool:
    """Whether a regular file lies there: no link, no folder, no pipe."""
    try:
        return stat.S_ISREG(os.lstat(path).st_mode)
    except OSError:
        return False


def is_folder(path: Path) -> bool:
    """Whether a folder lies there that is no link to one."""
    try:
        return stat.S_ISDIR(os.lstat(path).st_mode)
    except OSError:
        return False


def clear(path: Path) -> None:
    """Make a place free. A link goes, not what it points to. OSError where that is not permitted."""
    try:
        if is_folder(path):
            shutil.rmtree(path)
        else:
            os.unlink(path)
    except FileNotFoundError:
        pass


def own_folder(folder: Path, depth: int = 1) -> None:
    """Make a folder. Anything else in the place of its last ``depth`` levels is removed.

    The level above them may be a person's own link to another disk; anything else there is moved aside. Raises OSError.
    """
    levels = [folder, *folder.parents][: depth + 1]
    for _ in range(TRIES):
        try:
            levels[-1].parent.mkdir(parents=True, exist_ok=True)
            for level in reversed(levels):
                _level(level, ours=level is not levels[-1])
            return
        except FileNotFoundError:  # another process has just removed one of them
            continue
    levels[-1].mkdir(parents=True, exist_ok=True)


def _level(folder: Path, ours: bool) -> None:
    try:
        os.mkdir(folder)
        return
    except FileExistsError:
        if is_folder(folder) or (not ours and folder.is_dir()):
            return
    if ours:
        logger.warning("'%s' is no folder; it is removed and made again.", shown_path(folder))
        clear(folder)
    else:
        number = 1
        while os.path.lexists(aside := folder.with_name(f"{folder.name}.moved-{number}")):
            number += 1
        logger.warning("'%s' is no folder; it is now '%s'.", shown_path(folder), aside.name)
        os.rename(folder, aside)
    os.mkdir(folder)
