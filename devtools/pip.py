"""Runs pip with signs of life, and turns its failures into sentences a person can act on."""

from __future__ import annotations

import queue
import re
import subprocess
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from .console import Problem, say

HEARTBEAT_SECONDS = 15
KEPT_LINES = 25

NO_NETWORK = re.compile(
    r"NewConnectionError|Failed to establish a new connection|Name or service not known|getaddrinfo failed"
    r"|Temporary failure in name resolution|nodename nor servname|Network is unreachable|ConnectTimeoutError"
    r"|Connection refused|Cannot connect to proxy|ProxyError|No route to host|ReadTimeoutError|NameResolutionError",
)
NO_DISK = re.compile(r"No space left on device|Errno 28|not enough space on the disk", re.I)
NO_VERSION = re.compile(r"No matching distribution found for (\S+)")


class NoVersion(Problem):
    """The index has no file of it for this Python and system."""


def run(python: Path, arguments: Sequence[str], label: str) -> None:
    """Run ``python -m pip ...``, showing downloads as they begin; Problem when it fails."""
    command = [str(python), "-m", "pip", *arguments, "--disable-pip-version-check", "--no-input"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL)
    lines: queue.Queue[str | None] = queue.Queue()
    threading.Thread(target=_read, args=(process, lines), daemon=True).start()
    kept: list[str] = []
    started = time.monotonic()
    try:
        while True:
            try:
                line = lines.get(timeout=HEARTBEAT_SECONDS)
            except queue.Empty:
                say(f"  {label}: still working, {time.monotonic() - started:.0f} s")
                continue
            if line is None:
                break
            kept.append(line)
            if re.match(r"\s*(Downloading|Installing collected|Using cached) ", line):
                say("  " + _shortened(line))
    except BaseException:
        process.kill()
        raise
    if process.wait() != 0:
        raise explain(kept, label)


def explain(lines: Sequence[str], label: str) -> Problem:
    """What went wrong, from pip's own words."""
    text = "\n".join(lines)
    end = "\n".join(lines[-KEPT_LINES:])
    if NO_DISK.search(text):
        return Problem(f"{label}: the disk is full. Free some space and run the same command again: it continues.")
    if NO_NETWORK.search(text):
        return Problem(
            f"{label}: the Python package index cannot be reached. Check the network (or the proxy set for pip) and "
            f"run the same command again: it continues.\n{end}"
        )
    missing = NO_VERSION.search(text)
    if missing:
        return NoVersion(
            f"{label}: there is no {missing.group(1)} for this Python and system. Python 3.10 to 3.13 on Linux, "
            f"Windows or Apple silicon have one; or use a ComfyUI you already have: --comfyui PATH.\n{end}"
        )
    return Problem(f"{label}: pip failed.\n{end}")


def _read(process: subprocess.Popen[bytes], lines: queue.Queue[str | None]) -> None:
    assert process.stdout is not None
    for raw in process.stdout:
        lines.put(raw.decode("utf-8", "replace").rstrip())
    lines.put(None)


def _shortened(line: str) -> str:
    line = line.strip()
    if line.startswith("Installing collected"):
        return f"Installing {line.count(',') + 1} packages"
    return re.sub(r"(Downloading|Using cached) (?:\S*/)?", r"\1 ", line)
