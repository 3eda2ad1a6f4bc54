"""A store of pieces that prove themselves: each is used only if it is, bit for bit, what was stored.

Beside every piece lies a record with its checksum, its name, the identity of what it was made from, and facts about it
(shape, dtype, frames). A piece whose record is missing or does not fit is removed, with one log line, and counts as
missing; so does anything else that lies in its place.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from ..messages.quoting import shortened, shown_path
from .failures import CannotStore, explained
from .places import clear, is_file, own_folder
from .writing import Write, write_whole

logger = logging.getLogger("opensora")

RECORD = "check_{}.json"
FORMAT = 1
RECORD_BYTES = 1 << 16
ABOUT_CHARACTERS = 120
CHUNK_BYTES = 1 << 22


class Damaged(Exception):
    """Why a piece cannot be used, as the rest of a sentence."""


class Pieces:
    """Pieces in one folder, all made from what ``identity`` names; ``depth`` levels of the folder are our own.

    ``about``: for people who look at the folder, what the pieces belong to.
    """

    def __init__(self, folder: Path, identity: str, depth: int = 1, kept: str = "", about: str = "") -> None:
        self.folder, self.identity, self.depth, self.kept = folder, identity, depth, kept
        self.about = shortened(about, ABOUT_CHARACTERS)
        with explained(folder):
            own_folder(folder, depth)

    def path(self, name: str) -> Path:
        """Where a piece lies."""
        return self.folder / name

    def write(self, name: str, write: Write[Any], facts: Mapping[str, Any]) -> None:
        """Store a piece, all or nothing. Raises CannotStore."""
        path, record = self.path(name), self._record_path(name)
        with explained(path, self.kept):
            own_folder(self.folder, self.depth)
            clear(record)
            if not is_file(path):
                clear(path)

        def write_with_record(private: Path) -> None:
            # The record comes first: a piece that can be seen is complete, whenever the process dies.
            write(private)
            with private.open("rb") as file:
                size, digest = os.fstat(file.fileno()).st_size, _digest(file)
            content = {"format": FORMAT, "name": name, "identity": self.identity, "sha256": digest, "bytes": size,
                       "facts": dict(facts), "about": self.about}  # fmt: skip
            write_whole(record, lambda draft: draft.write_text(json.dumps(content), encoding="utf-8"), self.kept)

        for last in (False, False, True):
            try:
                return write_whole(path, write_with_record, self.kept)
            except CannotStore as error:  # without locks another process may just have removed the folder
                if last or not isinstance(error.__cause__, FileNotFoundError):
                    raise
            with explained(path, self.kept):
                own_folder(self.folder, self.depth)

    def write_bytes_of(self, name: str, content: bytes, facts: Mapping[str, Any]) -> None:
        """Store a piece that is in memory, all or nothing. Raises CannotStore."""
        self.write(name, lambda path: path.write_bytes(content), facts)

    def facts(self, name: str) -> dict[str, Any] | None:
        """The facts of a piece that is there and whole; None for any other, which is removed."""
        found = self._checked(name, keep=False)
        return None if found is None else found[0]

    def content(self, name: str) -> tuple[dict[str, Any], bytes] | None:
        """Facts and bytes of a piece that is there and whole; None for any other, which is removed."""
        return self._checked(name, keep=True)

    def remove(self, name: str, why: str = "") -> None:
        """Remove a piece and its record; with ``why``, the rest of a sentence, a log line says so."""
        if why:
            logger.warning("'%s' in '%s' %s; it is removed and made again.", name, shown_path(self.folder), why)
        with explained(self.path(name), self.kept):
            clear(self.path(name))
            clear(self._record_path(name))

    def _record_path(self, name: str) -> Path:
        return self.folder / RECORD.format(name)

    def _checked(self, name: str, keep: bool) -> tuple[dict[str, Any], bytes] | None:
        if not os.path.lexists(self.path(name)):
            return None
        try:
            record = self._record(name)
            with _opened(self.path(name)) as file:
                if os.fstat(file.fileno()).st_size != record["bytes"]:
                    raise Damaged("has another length than was stored")
                content = file.read() if keep else b""
                digest = hashlib.sha256(content).hexdigest() if keep else _digest(file)
            if digest != record["sha256"]:
                raise Damaged("does not match its checksum")
            return dict(record["facts"]), content
        except Damaged as damage:
            self.remove(name, str(damage))
        except OSError as error:
            self.remove(name, f"cannot be read ({error.strerror or type(error).__name__})")
        return None

    def _record(self, name: str) -> dict[str, Any]:
        try:
            with _opened(self._record_path(name)) as file:
                record = json.loads(file.read(RECORD_BYTES))
            known = (record["format"], record["name"], record["identity"]) == (FORMAT, name, self.identity)
            if not known or not isinstance(record["facts"], dict) or not isinstance(record["bytes"], int):
                raise Damaged("belongs to something else")
            return record
        except FileNotFoundError:
            raise Damaged("has no record of what it holds") from None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            raise Damaged("has a damaged record") from None


def about_in(record: Path) -> str:
    """What the record of a piece says that it belongs to; "" where it says nothing, or is none."""
    try:
        with _opened(record) as file:
            about = json.loads(file.read(RECORD_BYTES))["about"]
    except (Damaged, OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
    return shortened(about, ABOUT_CHARACTERS) if isinstance(about, str) else ""


def _opened(path: Path) -> BinaryIO:
    """A regular file, opened without following a link and without waiting for a pipe."""
    if not is_file(path):
        if os.path.lexists(path):
            raise Damaged("is no file")
        raise FileNotFoundError(path)
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0)
    return os.fdopen(os.open(path, flags), "rb")


def _digest(file: BinaryIO) -> str:
    digest = hashlib.sha256()
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
