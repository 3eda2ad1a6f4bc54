"""How a run tells what it does: a line that lives in the terminal, quietly, or as JSON for programs."""

from __future__ import annotations

import json
import shutil
import sys
import time
import unicodedata
from collections import deque
from collections.abc import Callable, Mapping
from typing import Protocol

from ..console import say
from .board import Member

RECENT = 200  # rows by whose pace the time left is told
REDRAW_SECONDS = 0.5
LOG_SECONDS = 30  # how often a log gets a line
JSON_SECONDS = 5


class Teller(Protocol):
    """What hears of a run."""

    def listen(self, event: str, data: Mapping[str, object]) -> None:
        """Something happened to a ``row`` or a ``worker``, or there is a ``note`` to be told.

        Called from many threads, one at a time.
        """

    def tick(self, count: Callable[[], Mapping[str, int]], members: Mapping[str, Member]) -> None:
        """Time went by; ``count`` gives the number of rows in each state, and costs something."""

    def end(self, why: str, counts: Mapping[str, int]) -> None:
        """The run is over."""


class Pace:
    """Rows a minute, and the seconds that are left, by the rows made last."""

    def __init__(self) -> None:
        self._times: deque[float] = deque([time.monotonic()], RECENT)

    def made(self) -> None:
        """A row was made now."""
        self._times.append(time.monotonic())

    def per_minute(self) -> float:
        """0 before the first row."""
        seconds = time.monotonic() - self._times[0]
        return 60 * (len(self._times) - 1) / seconds if seconds > 0 else 0.0

    def left(self, rows: int) -> float | None:
        """Seconds for this many rows; None before the first one is made."""
        pace = self.per_minute()
        return 60 * rows / pace if pace else None


def span(seconds: float | None) -> str:
    """A time as people say it: ``2 h 05 min``."""
    if seconds is None:
        return "unknown"
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60:02d} min"


def summary(counts: Mapping[str, int]) -> str:
    """``12 done, 3 waiting``: the states that have rows."""
    return ", ".join(f"{number} {state}" for state, number in counts.items() if number) or "no rows"


class Quiet:
    """Only what went wrong, and the end."""

    def listen(self, event: str, data: Mapping[str, object]) -> None:
        if "error" in data or event != "row":
            self.line(told(event, data))

    def tick(self, count: Callable[[], Mapping[str, int]], members: Mapping[str, Member]) -> None:
        """Nothing."""

    def end(self, why: str, counts: Mapping[str, int]) -> None:
        self.line(f"{why}: {summary(counts)}")

    def line(self, text: str) -> None:
        """One line."""
        say(text)


def told(event: str, data: Mapping[str, object]) -> str:
    """An event as a sentence."""
    if event == "note":
        return str(data["text"])
    error = f": {data['error']}" if data.get("error") else ""
    if event == "worker":
        return f"worker {data['name']} is {'set aside' if data['state'] == 'aside' else 'back'}{error}"
    return f"row {data['name']} {data['state']} ({data['worker']}){error}"


class Terminal(Quiet):
    """A line that is redrawn: rows, pace, time left, and what each worker does; in a log, a line now and then."""

    def __init__(self) -> None:
        self._live = sys.stdout.isatty()
        self._pace = Pace()
        self._next = 0.0
        self._height = 0

    def listen(self, event: str, data: Mapping[str, object]) -> None:
        if event == "row" and data.get("state") == "done":
            self._pace.made()
        super().listen(event, data)

    def tick(self, count: Callable[[], Mapping[str, int]], members: Mapping[str, Member]) -> None:
        now = time.monotonic()
        if now < self._next:
            return
        self._next = now + (REDRAW_SECONDS if self._live else LOG_SECONDS)
        counts = count()
        left = counts["waiting"] + counts["running"] + counts["saving"]
        total = sum(counts.values())
        lines = [
            f"{counts['done']} of {total} rows, {counts['failed']} failed, "
            f"{self._pace.per_minute():.1f} clips a minute, {span(self._pace.left(left))} left"
        ]
        lines += [_worker_line(member) for member in list(members.values())[: self._room()]]
        if self._live:
            self._wipe()
            width = shutil.get_terminal_size().columns - 1
            sys.stdout.write("".join(_cut(line, width) + "\n" for line in lines))
            sys.stdout.flush()
            self._height = len(lines)
        else:
            say(lines[0])

    def line(self, text: str) -> None:
        """A line above the one that lives."""
        self._wipe()
        say(text)

    def _room(self) -> int:
        return max(0, min(16, shutil.get_terminal_size().lines - 4)) if self._live else 0

    def _wipe(self) -> None:
        if self._height:
            sys.stdout.write(f"\x1b[{self._height}A\x1b[J")
            self._height = 0


def _cut(line: str, width: int) -> str:
    """As much of it as fits into one line of a terminal, where some characters are two wide and some none."""
    shown = []
    for character in line:
        width -= 0 if unicodedata.combining(character) else 2 if unicodedata.east_asian_width(character) in "WF" else 1
        if width < 0:
            break
        shown.append(character)
    return "".join(shown)


def _worker_line(member: Member) -> str:
    doing = member.row or (f"set aside: {member.aside}" if member.aside else "idle")
    return f"  {member.name}: {member.made} made, {doing}"


class Json:
    """One JSON object a line: every event, and the counts every few seconds."""

    def __init__(self) -> None:
        self._pace = Pace()
        self._next = 0.0

    def listen(self, event: str, data: Mapping[str, object]) -> None:
        if event == "row" and data.get("state") == "done":
            self._pace.made()
        self._write(event, data)

    def tick(self, count: Callable[[], Mapping[str, int]], members: Mapping[str, Member]) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + JSON_SECONDS
            counts = count()
            left = self._pace.left(counts["waiting"] + counts["running"] + counts["saving"])
            workers = {
                name: {"made": member.made, "row": member.row, "aside": member.aside}
                for name, member in members.items()
            }
            pace = {"clips_per_minute": round(self._pace.per_minute(), 2), "seconds_left": left and round(left)}
            self._write("progress", {"counts": dict(counts), **pace, "workers": workers})

    def end(self, why: str, counts: Mapping[str, int]) -> None:
        self._write("end", {"why": why, "counts": dict(counts)})

    def _write(self, event: str, data: Mapping[str, object]) -> None:
        say(json.dumps({"event": event, **data}))
