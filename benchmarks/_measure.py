"""Timing two ways of doing one thing fairly, on a machine that is shared.

The ways run in turns, so that a slow minute hits both, and the median counts. On the CPU the clock is the process's
own CPU time; on a GPU the wall clock around a synchronised call.
"""

from __future__ import annotations

import ctypes
import re
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """Median seconds of one call and the peak memory above what was in use before it (None: cannot be known here)."""

    seconds: float
    peak_bytes: int | None


def measure(ways: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, Measured]:
    """Run every way once for its memory (and to warm up), then all in turns ``repeats`` times."""
    peaks = {name: _peak(way, device) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            seconds[name].append(_seconds(way, device))
    return {name: Measured(statistics.median(seconds[name]), peaks[name]) for name in ways}


def _seconds(way: Callable[[], object], device: torch.device) -> float:
    if device.type == "cpu":
        start = time.process_time()
        way()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    way()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start


def _peak(way: Callable[[], object], device: torch.device) -> int | None:
    way()
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        way()
        return torch.cuda.max_memory_allocated(device) - before
    if _LIBC is None:
        return None
    _LIBC.malloc_trim(0)  # else memory kept from earlier calls would hide this call's
    try:
        _RESET.write_text("5")  # Linux: forget the high-water mark of resident memory
    except OSError:
        return None
    before = _kilobytes("VmRSS")
    way()
    return (_kilobytes("VmHWM") - before) * 1024


def _kilobytes(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])
