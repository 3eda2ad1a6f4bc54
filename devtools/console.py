"""What ``dev.py`` says to the person at the terminal: steps, progress bars and the one kind of error it expects."""

from __future__ import annotations

import shutil
import sys
import time

BAR_WIDTH = 30
REDRAW_SECONDS = 0.1


class Problem(Exception):
    """Something the person can repair. The message says what is wrong and what to do; no traceback is shown."""


def say(text: str) -> None:
    """Print one line at once, also into a pipe."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


class Progress:
    """A bar on a terminal; in a log one line for every tenth of the way."""

    def __init__(self, label: str) -> None:
        self.label = label
        self.started = time.monotonic()
        self._live = sys.stdout.isatty()
        self._drawn_at = 0.0
        self._tenths_said = -1

    def update(self, done: float, total: float, note: str = "") -> None:
        """Show ``done`` of ``total``; cheap enough to be called for every event."""
        share = min(1.0, done / total) if total > 0 else 0.0
        now = time.monotonic()
        if self._live:
            if now - self._drawn_at < REDRAW_SECONDS and share < 1.0:
                return
            self._drawn_at = now
            filled = round(share * BAR_WIDTH)
            bar = "#" * filled + "." * (BAR_WIDTH - filled)
            line = f"{self.label} [{bar}] {share:4.0%} {note}"
            sys.stdout.write("\r" + line[: shutil.get_terminal_size().columns - 1].ljust(79))
            sys.stdout.flush()
        elif int(share * 10) > self._tenths_said:
            self._tenths_said = int(share * 10)
            say(f"{self.label} {share:4.0%} {note}".rstrip())

    def finish(self) -> None:
        """Leave the line and say how long it took."""
        seconds = time.monotonic() - self.started
        if self._live:
            sys.stdout.write("\r" + " " * 79 + "\r")
        say(f"{self.label}: {seconds:.1f} s")
