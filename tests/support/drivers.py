"""Drivers of batch.py as processes of their own, and what can be asked about them from outside."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from opensora.devtools.batch.ledger import FOLDER, Ledger
from opensora.devtools.places import HOME, REPOSITORY, venv_python


def processes(mark: str, *more: str) -> list[int]:
    """Ids of processes whose command line holds all of these."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdigit() and int(path.name) != os.getpid():
            with contextlib.suppress(OSError):
                line = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
                if all(text in line for text in (mark, *more)):
                    found.append(int(path.name))
    return found


@contextlib.contextmanager
def driver(python: Path, arguments: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The driver as a process; its words go to a file."""
    with open(folder / "driver.log", "ab") as log:
        process = subprocess.Popen([str(python), str(REPOSITORY / "batch.py"), *arguments], stdout=log, stderr=log)
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def done(folder: Path) -> int:
    """How many rows are done."""
    if not (folder / "out" / FOLDER / "ledger.sqlite").exists():
        return 0
    ledger = Ledger(folder / "out")
    try:
        return ledger.counts()["done"]
    finally:
        ledger.close()


def ray_python() -> Path:
    """An interpreter that has Ray; it need not be the one that runs ComfyUI."""
    if importlib.util.find_spec("ray") is not None:
        return Path(sys.executable)
    apart = venv_python(HOME / "rayvenv")
    if not apart.exists():
        pytest.skip("Ray is not installed: pip install -r requirements-dev.txt")
    return apart
