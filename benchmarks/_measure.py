"""Timing two ways of doing one thing fairly, on a machine that is shared.

The ways run in turns, so that a slow minute hits both, and the median counts. On the CPU the clock is the process's
own CPU time; on a GPU the wall clock around a synchronised call.

Memory is told twice: what tensors take by the allocator's count, and what the process really grew by, which on the CPU
includes the convolution library's workspaces and what the C library keeps.
"""

from __future__ import annotations

import ctypes
import re
import statistics
import sys
import time
import warnings
from argparse import ArgumentTypeError
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None
_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass(frozen=True)
class Measured:
    """Median seconds of one call and the peak memory above what was in use before it (None: cannot be known here).

    ``peak_bytes``: growth of the process, on a GPU the allocator's count; ``counted_bytes``: tensors alone.
    """

    seconds: float
    peak_bytes: int | None
    counted_bytes: int


def device_here(given: str) -> str:
    """The type of an option: a device of this machine that benchmarks know how to time."""
    cards = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    here = ["cpu", *(["cuda"] if cards else []), *cards]
    if given not in here:
        raise ArgumentTypeError(f"there is no device '{given}' here; there is {', '.join(here)}")
    return given


def measure(ways: Mapping[str, Callable[[], object]], device: torch.device, repeats: int) -> dict[str, Measured]:
    """Run every way once to count its tensors and to warm up, then all in turns ``repeats`` times."""
    counted = {name: _counted(way, device) for name, way in ways.items()}
    runs: dict[str, list[tuple[float, int | None]]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            runs[name].append(_run(way, device))
    return {name: _summary(runs[name], counted[name]) for name in ways}


def _summary(runs: list[tuple[float, int | None]], counted: int) -> Measured:
    peaks = [peak for _, peak in runs if peak is not None]
    return Measured(statistics.median(seconds for seconds, _ in runs), max(peaks, default=None), counted)


def _run(way: Callable[[], object], device: torch.device) -> tuple[float, int | None]:
    """Seconds and peak of one call."""
    if device.type == "cuda":
        before = _fresh_count(device)
        start = time.perf_counter()
        way()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start, torch.cuda.max_memory_allocated(device) - before
    resident = _fresh_resident()
    start = time.process_time()
    way()
    seconds = time.process_time() - start
    return seconds, None if resident is None else (_kilobytes("VmHWM") - resident) * 1024


def _fresh_count(device: torch.device) -> int:
    """Bytes of tensors that are there; the GPU's peak counts from here."""
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    return torch.cuda.memory_allocated(device)


def _fresh_resident() -> int | None:
    """Kilobytes of the process; its high-water mark counts from here. Only Linux tells it."""
    if _LIBC is None:
        return None
    _LIBC.malloc_trim(0)  # else memory kept from earlier calls would hide this call's
    try:
        _RESET.write_text("5")  # Linux: forget the high-water mark of resident memory
    except OSError:
        return None
    return _kilobytes("VmRSS")


def _counted(way: Callable[[], object], device: torch.device) -> int:
    """Most bytes of tensors that exist at once during a call."""
    if device.type == "cuda":
        way()  # libraries take workspaces once and keep them
        before = _fresh_count(device)
        way()
        return torch.cuda.max_memory_allocated(device) - before
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            way()
    now = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


def _kilobytes(field: str) -> int:
    match = re.search(rf"^{field}:\s+(\d+) kB", _STATUS.read_text(), re.MULTILINE)
    assert match is not None
    return int(match[1])
