"""The files below a folder, listed again and again at the price of a look at each folder's time.

ComfyUI asks a node for its choices several times per prompt, and its output folder may hold tens of thousands of files.
A folder is read again only when its time has changed, which it does when a name comes, goes or is replaced, not when a
file is overwritten: whoever needs the state of one file asks the disk (``stamp``). Links, folders that cannot be read,
files that vanish while they are listed and names that are not UTF-8 are all ordinary here.
"""

from __future__ import annotations

import logging
import os
import stat
import time
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ..messages.printable import printable

logger = logging.getLogger("opensora")

# A name that comes within the same tick of a file system's clock as the listing leaves no trace in the folder's time.
# Ticks are up to 10 ms; times of whole seconds come from systems that know no others (FAT: 2 s).
TICK_NS, COARSE_TICK_NS = 20_000_000, 2_500_000_000
SECOND_NS = 1_000_000_000

SKIPPED = frozenset({".git"})
"""Folders that hold no files of ours, as ComfyUI's own lists leave them out."""

Identity = tuple[int, int]
Files = dict[str, tuple[int, int]]
"""Inode and time of change by name."""
UNDATED = (0, 0)


@dataclass
class _Folder:
    """One folder as it was at its ``times``; not ``settled`` while it may have changed since without a trace."""

    times: tuple[int, int]
    settled: bool
    folders: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)
    files: Files = field(default_factory=dict)
    readable: bool = True


class FileTree:
    """Names of the files below ``root`` with one of ``endings`` (lower case; none: all files), and when they changed.

    Args:
        root: need not exist.
        follow_links: enter linked folders and list files wherever their links lead, as ComfyUI does for models.
            Without, links to folders are left alone, and links to files count while they stay below ``root``.
        dated: read when files changed; else 0 stands for every time, and only names are read.
    """

    def __init__(self, root: str, endings: Collection[str] = (), *, follow_links: bool, dated: bool) -> None:
        self.root = root
        self._endings = tuple(endings)
        self._follow = follow_links
        self._dated = dated
        self._folders: dict[str, _Folder] = {}
        self._pieces: list[tuple[str, Files]] = []
        self._files: dict[str, int] = {}

    def files(self) -> dict[str, int]:
        """Names relative to ``root`` and times in nanoseconds; the very same dictionary while nothing has changed."""
        seen: dict[str, _Folder] = {}
        pieces = list(self._walk(seen))
        self._folders = seen
        if pieces != self._pieces:
            self._pieces = pieces
            self._files = {
                os.path.join(folder, name): changed for folder, names in pieces for name, (_, changed) in names.items()
            }
        return self._files

    def _walk(self, seen: dict[str, _Folder]) -> Iterator[tuple[str, Files]]:
        """Relative path and files of every folder; ``seen`` collects the folders."""
        waiting: list[tuple[str, tuple[Identity, ...]]] = [("", ())]
        while waiting:
            relative, above = waiting.pop()
            path = os.path.join(self.root, relative)
            status = _status(path)
            if status is None or not stat.S_ISDIR(status.st_mode):
                continue
            identity = (status.st_dev, status.st_ino)
            if identity in above and status.st_ino:  # a link to a folder in which it lies
                continue
            folder = seen[relative] = self._folder(relative, path, status)
            yield relative, folder.files
            linked_folders, linked_files = self._behind(path, folder.links)
            if linked_files:
                yield relative, linked_files
            below = [*folder.folders, *linked_folders]
            waiting += [(os.path.join(relative, name), (*above, identity)) for name in below]

    def _folder(self, relative: str, path: str, status: os.stat_result) -> _Folder:
        known = self._folders.get(relative)
        times = (status.st_mtime_ns, status.st_ctime_ns)
        if known is not None and known.settled and known.times == times:
            return known
        found = self._read(path, times, known)
        if known is not None and known.files == found.files:
            found.files = known.files  # the same object, by which an unchanged tree is told fast
        return found

    def _read(self, path: str, times: tuple[int, int], known: _Folder | None) -> _Folder:
        changed = max(times)
        tick = TICK_NS if changed % SECOND_NS else COARSE_TICK_NS
        folder = _Folder(times, settled=time.time_ns() - changed > tick)
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    self._take(entry, folder, known.files if known else {})
        except OSError as error:
            folder.settled = folder.readable = False
            if known is None or known.readable:
                reason = error.strerror or error
                logger.warning(
                    "The folder '%s' cannot be read (%s); its files are not listed.", printable(path), reason
                )
        return folder

    def _take(self, entry: os.DirEntry[str], folder: _Folder, known: Files) -> None:
        name = entry.name
        wanted = self._is_wanted(name)
        try:
            if wanted and entry.is_file(follow_symlinks=False):
                folder.files[name] = self._inode_and_time(entry, known.get(name)) if self._dated else UNDATED
            elif entry.is_dir(follow_symlinks=False):
                folder.folders += [name] if name not in SKIPPED else []
            elif (wanted or self._follow) and entry.is_symlink():
                folder.links.append(name)
        except OSError:
            return  # gone while it was looked at

    def _inode_and_time(self, entry: os.DirEntry[str], known: tuple[int, int] | None) -> tuple[int, int]:
        # Linux tells the inode with the name and has to be asked for the time; Windows the other way round.
        inode = entry.inode() if os.name != "nt" else 0
        if known is not None and known[0] == inode != 0:
            return known
        return inode, entry.stat(follow_symlinks=False).st_mtime_ns

    def _behind(self, folder: str, links: list[str]) -> tuple[list[str], Files]:
        """Links to folders that are to be entered, and links to files; where they lead can change at any time."""
        folders, files = [], {}
        for name in links:
            path = os.path.join(folder, name)
            status = _status(path)
            if status is None:
                continue
            if stat.S_ISDIR(status.st_mode):
                folders += [name] if self._follow else []
            elif (
                self._is_wanted(name) and stat.S_ISREG(status.st_mode) and (self._follow or is_inside(path, self.root))
            ):
                files[name] = (status.st_ino, status.st_mtime_ns) if self._dated else UNDATED
        return folders, files

    def _is_wanted(self, name: str) -> bool:
        return not self._endings or name.lower().endswith(self._endings)


def stamp(path: str | Path) -> str:
    """Another text when the file has been overwritten or replaced; "" where there is none."""
    status = _status(path)
    return "" if status is None else f"{status.st_mtime_ns}-{status.st_size}"


def is_inside(path: str, root: str) -> bool:
    """Whether ``path`` lies below ``root`` once links are followed."""
    try:
        real = os.path.realpath(root)
        return os.path.commonpath((real, os.path.realpath(path))) == real
    except ValueError:  # a NUL character, or another drive of Windows
        return False


def _status(path: str | Path) -> os.stat_result | None:
    """What a path leads to; None for nothing, a link to nothing, a loop of links, or what may not be looked at."""
    try:
        return os.stat(path)
    except (OSError, ValueError):
        return None
