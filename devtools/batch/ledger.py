"""The ledger: one SQLite file that knows every row's state, so that a run continues after anything was killed.

A row goes waiting → running → saving → done, or to failed; every step is one committed transaction. Files get their
final names between *saving* and *done*, and *saving* holds the list of them with checksums. Whoever opens the ledger
after a crash therefore knows of every row which of three it is: not made (again waiting), made and perhaps not yet
renamed (finished from the list), or done. One driver writes at a time; its lock ends with its process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from ..console import Problem

FOLDER = ".batch"  # in the folder of results
FILE = "ledger.sqlite"
LOCK = "driver.lock"
LOCK_SECONDS = 1.0
HELD = (errno.EACCES, errno.EAGAIN, errno.EDEADLK)  # what a system says of a lock that another process holds
STATES = ("waiting", "running", "saving", "done", "failed", "cancelled")
SCHEMA = """
CREATE TABLE IF NOT EXISTS rows (
    name TEXT PRIMARY KEY, key TEXT NOT NULL, number INTEGER NOT NULL, line INTEGER NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting', attempts INTEGER NOT NULL DEFAULT 0, deaths INTEGER NOT NULL DEFAULT 0,
    seconds REAL, worker TEXT, prompt_id TEXT, outputs TEXT NOT NULL DEFAULT '[]', error TEXT, changed REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS by_state ON rows (state, number);
CREATE TABLE IF NOT EXISTS wishes (wish TEXT PRIMARY KEY) WITHOUT ROWID;
"""


@dataclass(frozen=True)
class Output:
    """A file of a row: the temporary name it is written under, the final one (both inside the folder), its SHA-256."""

    part: str
    final: str
    sha256: str


@dataclass(frozen=True)
class Entry:
    """A row of the ledger. ``key`` is the fingerprint of its workflow; ``prompt_id`` is what its worker calls it."""

    name: str
    key: str
    number: int
    line: int
    state: str = "waiting"
    attempts: int = 0
    deaths: int = 0
    seconds: float | None = None
    worker: str | None = None
    prompt_id: str | None = None
    outputs: tuple[Output, ...] = field(default=())
    error: str | None = None


_DRIVEN = "Another batch.py works in {out}; wait for it, or end it: python batch.py cancel {out}"


class Driven(Problem):
    """Another driver works in the folder."""


class Lock:
    """Held by the one driver of a folder; the system takes it back when the process ends, however it ends."""

    def __init__(self, folder: Path, patience: float = LOCK_SECONDS) -> None:
        """Driven where another driver holds it; ``status`` holds it too, for less than the ``patience``."""
        folder.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = open(folder / LOCK, "a+b")  # noqa: SIM115  (it is held as long as the driver lives)
        end = time.monotonic() + patience
        while not self._is_ours():
            if time.monotonic() > end:
                self._file.close()
                raise Driven(_DRIVEN.format(out=folder.parent))
            time.sleep(0.05)

    def _is_ours(self) -> bool:
        try:
            _lock(self._file)
        except OSError as error:
            if error.errno in HELD:
                return False
            self._file.close()
            raise Problem(
                f"{self._file.name} cannot be locked ({error.strerror}): write to a disk of this machine instead."
            ) from None
        return True

    def release(self) -> None:
        """Let another driver in."""
        self._file.close()


def _lock(file: IO[bytes]) -> None:
    if sys.platform == "win32":
        import msvcrt

        file.seek(0)
        msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
    else:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)


def check_folder(out: Path) -> None:
    """Problem where nothing can be written there, or another driver works there."""
    if (out / FOLDER).is_dir() and is_driven(out):
        raise Driven(_DRIVEN.format(out=out))
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    if not there.is_dir():
        raise Problem(f"{there} is a file; name a folder for the results: --out DIR.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise Problem(f"{there} may not be written to; name another folder for the results: --out DIR.")


def has_ledger(out: Path) -> bool:
    """Whether something was made into this folder before."""
    return (out / FOLDER / FILE).is_file()


def is_driven(out: Path) -> bool:
    """Whether a driver works in this folder of results."""
    try:
        Lock(out / FOLDER, 0.0).release()
    except Driven:
        return True
    return False


class Ledger:
    """The ledger of a folder of results; its methods may be called from several threads."""

    def __init__(self, out: Path, make: bool = False) -> None:
        """Problem where the folder has none, unless it is to be made."""
        self.out = out
        self.path = path = out / FOLDER / FILE
        if not make and not has_ledger(out):
            raise Problem(f"{out} has no ledger: nothing was made into it yet.")
        path.parent.mkdir(parents=True, exist_ok=True)
        self._guard = threading.RLock()
        with self._told():
            self._base = sqlite3.connect(path, timeout=60, isolation_level=None, check_same_thread=False)
            # A killed process loses nothing with these two; a machine that loses its power may lose the last states,
            # never more, and what was lost is made again under the same name.
            self._base.execute("PRAGMA journal_mode=WAL")
            self._base.execute("PRAGMA synchronous=NORMAL")
            self._base.executescript(SCHEMA)

    def close(self) -> None:
        """Close the file."""
        self._base.close()

    # ---- reading ----

    def counts(self) -> dict[str, int]:
        """How many rows are in each state."""
        found = dict(self._all("SELECT state, count(*) FROM rows GROUP BY state"))
        return {state: int(found.get(state, 0)) for state in STATES}

    def entries(self, *states: str) -> list[Entry]:
        """The rows in these states (all, where none is named), in the table's order."""
        wanted = states or STATES
        marks = ",".join("?" * len(wanted))
        return [_entry(row) for row in self._all(f"{_SELECT} WHERE state IN ({marks}) ORDER BY number", wanted)]

    def entry(self, name: str) -> Entry:
        """One row; KeyError for a name that is not there."""
        found = self._all(f"{_SELECT} WHERE name = ?", (name,))
        if not found:
            raise KeyError(name)
        return _entry(found[0])

    def version(self) -> int:
        """Another number once another process has written."""
        return int(self._all("PRAGMA data_version")[0][0])

    # ---- the table ----

    def plan(self, rows: Iterable[Entry]) -> list[Entry]:
        """Take the table's rows in; gives those that are done with other settings and left as they are.

        Rows that are new wait; rows that changed and are not done wait again; rows that left the table and are not
        done go. Cancelled rows wait again: whoever runs the command wants them.
        """
        differ: list[Entry] = []
        with self._change():
            before = {entry.name: entry for entry in self.entries()}
            for row in rows:
                known = before.pop(row.name, None)
                if known is not None and known.state in ("done", "saving") and known.key != row.key:
                    differ.append(known)
                elif known is None or known.key != row.key:
                    self._do(
                        "INSERT OR REPLACE INTO rows (name, key, number, line, changed) VALUES (?, ?, ?, ?, ?)",
                        (row.name, row.key, row.number, row.line, time.time()),
                    )
                elif (known.number, known.line) != (row.number, row.line):
                    self._do("UPDATE rows SET number=?, line=? WHERE name=?", (row.number, row.line, row.name))
            gone = [(name,) for name, entry in before.items() if entry.state != "done"]
            self._base.executemany("DELETE FROM rows WHERE name=?", gone)
            if differ:
                raise _Undo
            self._do("UPDATE rows SET state='waiting' WHERE state='cancelled'")
            self._do("DELETE FROM wishes")
        return differ

    # ---- the life of a row ----

    def start(self, name: str, worker: str, prompt_id: str) -> None:
        """The row is given to a worker; one more attempt."""
        self._move(
            name, ("waiting", "running"), "running", worker=worker, prompt_id=prompt_id, more="attempts=attempts+1"
        )

    def save(self, name: str, seconds: float, outputs: Sequence[Output]) -> None:
        """All files of the row lie complete under their temporary names; from here on the row is never made again."""
        text = json.dumps([[each.part, each.final, each.sha256] for each in outputs])
        self._move(name, ("running",), "saving", seconds=seconds, outputs=text, error=None)

    def finish(self, name: str) -> None:
        """The files have their final names."""
        self._move(name, ("saving",), "done")

    def fail(self, name: str, error: str, seconds: float | None = None) -> None:
        """The row itself is at fault."""
        self._move(name, ("running", "waiting"), "failed", error=_writable(error), seconds=seconds)

    def give_back(self, name: str, died: bool = False, error: str | None = None) -> None:
        """The row was under way and is not made: it waits again. ``died``: its worker ended while making it."""
        more = "deaths=deaths+1" if died else "attempts=max(attempts-1, 0)" if error is None else ""
        self._move(
            name,
            ("running", "saving", "failed"),
            "waiting",
            error=_writable(error),
            prompt_id=None,
            outputs="[]",
            more=more,
        )

    def forget(self, names: Sequence[str]) -> None:
        """Done rows whose files are gone: they wait again."""
        with self._change():
            for name in names:
                self._move(name, ("done",), "waiting", prompt_id=None, outputs="[]", more="attempts=0, deaths=0")

    def retry(self, states: Sequence[str]) -> int:
        """Rows in these states wait again, as if never tried; gives how many."""
        marks = ",".join("?" * len(states))
        with self._change():
            return self._do(
                "UPDATE rows SET state='waiting', attempts=0, deaths=0, error=NULL, prompt_id=NULL, changed=? "
                f"WHERE state IN ({marks})",
                (time.time(), *states),
            )

    def cancel(self) -> int:
        """Rows that are not made are not to be made; gives how many. For the driver, or where there is none."""
        with self._change():
            return self._do(
                "UPDATE rows SET state='cancelled', prompt_id=NULL, changed=? WHERE state IN ('waiting', 'running')",
                (time.time(),),
            )

    def wish(self, wish: str) -> None:
        """Leave a word for the driver: ``cancel``."""
        self._do("INSERT OR IGNORE INTO wishes VALUES (?)", (wish,))

    def wished(self, wish: str) -> bool:
        """Whether that word was left."""
        return bool(self._all("SELECT 1 FROM wishes WHERE wish=?", (wish,)))

    # ---- SQL ----

    def _move(self, name: str, allowed: Sequence[str], state: str, more: str = "", **values: Any) -> None:
        """One change of state, committed; ValueError where the row is in another state than allowed."""
        changes = ", ".join([*(f"{key}=?" for key in values), *([more] if more else [])])
        marks = ",".join("?" * len(allowed))
        sql = (
            f"UPDATE rows SET state=?, changed=?{', ' if changes else ''}{changes} WHERE name=? AND state IN ({marks})"
        )
        if self._do(sql, (state, time.time(), *values.values(), name, *allowed)) != 1:
            raise ValueError(f"row {name!r} cannot become {state}: it is {self.entry(name).state}")

    def _do(self, sql: str, values: Sequence[Any] = ()) -> int:
        with self._guard, self._told():
            return self._base.execute(sql, values).rowcount

    def _all(self, sql: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]]:
        with self._guard, self._told():
            return list(self._base.execute(sql, values))

    @contextlib.contextmanager
    def _told(self) -> Iterator[None]:
        """SQLite's errors as a sentence: a full disk, a folder that may not be written to, a file that is no ledger."""
        try:
            yield
        except sqlite3.Error as error:
            raise Problem(f"The ledger {self.path} cannot be used: {error}.") from None

    @contextlib.contextmanager
    def _change(self) -> Iterator[None]:
        """One transaction."""
        with self._guard, self._told():
            self._base.execute("BEGIN IMMEDIATE")
            try:
                yield
            except BaseException as error:
                if self._base.in_transaction:  # a full disk ends it by itself
                    self._base.execute("ROLLBACK")
                if not isinstance(error, _Undo):
                    raise
            else:
                self._base.execute("COMMIT")


def _writable(text: str | None) -> str | None:
    """Without halves of characters, which servers may send and SQLite does not take."""
    return None if text is None else text.encode("utf-8", "replace").decode("utf-8")


class _Undo(Exception):
    """Ends a transaction without a trace."""


_FIELDS = tuple(field.name for field in dataclasses.fields(Entry))
_SELECT = f"SELECT {', '.join(_FIELDS)} FROM rows"


def _entry(row: tuple[Any, ...]) -> Entry:
    fields = dict(zip(_FIELDS, row, strict=True))
    return Entry(**{**fields, "outputs": tuple(Output(*each) for each in json.loads(fields["outputs"]))})
