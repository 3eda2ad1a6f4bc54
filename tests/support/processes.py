"""Further processes with the pack loaded, for tests of what two of them do to each other."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from support.patience import HANGS_SECONDS

PRELUDE = """
import sys
sys.path.insert(0, sys.argv.pop(1))
from support.pack import load_pack
load_pack()
import torch
torch.set_num_threads(1)
"""


def python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a process that runs ``code``; arguments are ``sys.argv[1:]`` there."""
    tests = Path(__file__).resolve().parents[1]
    command = [sys.executable, "-c", PRELUDE + textwrap.dedent(code), str(tests), *map(str, arguments)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def output(process: subprocess.Popen[str]) -> str:
    """What a process printed; it must end well."""
    printed, errors = process.communicate(timeout=HANGS_SECONDS)
    assert process.returncode == 0, errors[-3000:]
    return printed


def gone(pids: Iterable[int]) -> bool:
    """Whether all of these processes have ended; waits for it."""
    pids, end = list(pids), time.monotonic() + HANGS_SECONDS
    while any(map(_lives, pids)) and time.monotonic() < end:
        time.sleep(0.05)
    return not any(map(_lives, pids))


def children(pid: int) -> list[int]:
    """Processes that a process has started and that have not ended."""
    started = Path(f"/proc/{pid}/task").glob("*/children")
    return [child for each in started for child in map(int, each.read_text(encoding="utf-8").split()) if _lives(child)]


def _lives(pid: int) -> bool:
    with suppress(ProcessLookupError, FileNotFoundError):
        os.kill(pid, 0)
        with open(f"/proc/{pid}/stat", encoding="utf-8") as stat:  # a zombie is dead, whoever has not looked yet
            return stat.read().rpartition(")")[2].split()[0] != "Z"
    return False
