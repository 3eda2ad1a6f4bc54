"""Which devices share a clip, as a person writes it: ``all``, ``0,1`` or, for tries, ``cpu x 2``."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..messages.quoting import quoted

ALL = "all"
CPU = "cpu"
GPU = "gpu"
"""One that has no number here, being in a cluster."""
MOST_TRIES = 8
"""Processes on one CPU that can be asked for: it has its own ways to use all cores, so they help nobody."""

_TRIES = re.compile(r"cpu(?:\s*[x×*]\s*(\d{1,9}))?")
_NUMBERS = re.compile(r"\d{1,9}(?:[\s,]+\d{1,9})*")


def shared_devices(text: str, own: str, gpus: int) -> tuple[str, ...]:
    """The devices that compute, ``own`` first: numbers of GPUs as ComfyUI counts them, or "cpu" several times.

    ``own`` is where ComfyUI itself computes, the number of one of ``gpus`` GPUs or "cpu".

    Raises:
        ValueError: for anything else, with the nearest good value.
    """
    wanted = " ".join(text.lower().split())
    everywhere = [str(number) for number in range(gpus)] if own != CPU else [CPU]
    if wanted == ALL:
        return _own_first(own, everywhere)
    if (tries := _TRIES.fullmatch(wanted)) is not None:
        return _tries(text, int(tries[1] or 1), own)
    if _NUMBERS.fullmatch(wanted) is None:
        raise _refused(text, 'must be "all", numbers of GPUs as 0,1, or for tries on a CPU "cpu x 2"', ALL)
    if own == CPU:
        raise _refused(text, "names GPUs, and this ComfyUI computes on the CPU", f"{CPU} x 2")
    numbers = [str(int(number)) for number in wanted.replace(",", " ").split()]
    best = " ".join(sorted({own, *numbers} & {own, *everywhere}, key=int))
    if not set(numbers) <= set(everywhere):
        raise _refused(text, f"names a GPU that is not there; this ComfyUI sees {_counted(everywhere)}", best)
    if own not in numbers:
        raise _refused(text, f"leaves out GPU {own}, where ComfyUI itself computes", best)
    if len(set(numbers)) < len(numbers):
        raise _refused(text, "names a GPU twice", best)
    return _own_first(own, numbers)


def cluster_devices(text: str, own: str, gpus: int) -> tuple[str, ...]:
    """The same where the others are in a cluster with ``gpus`` free GPUs, which have no numbers.

    Raises:
        ValueError: for anything but ``all`` and tries, with the nearest good value; ``all`` is for an ``own`` GPU.
    """
    wanted = " ".join(text.lower().split())
    if wanted == ALL and own == CPU:
        rule = "is for a ComfyUI that computes on a GPU where address names a cluster, and this one does on the CPU"
        raise _refused(text, rule, f"{CPU} x 2")
    if wanted == ALL:
        return own, *(GPU for _ in range(gpus))
    if (tries := _TRIES.fullmatch(wanted)) is not None:
        return _tries(text, int(tries[1] or 1), own)
    best = f"{CPU} x 2" if own == CPU else ALL
    raise _refused(text, 'must be "all" where address names a cluster, or for tries "cpu x 2"', best)


def written(devices: Sequence[str]) -> str:
    """Devices as they are asked for."""
    return f"{CPU} x {len(devices)}" if devices[0] == CPU else " ".join(sorted(devices, key=int))


def _tries(text: str, count: int, own: str) -> tuple[str, ...]:
    if own != CPU:
        raise _refused(text, f"is for a ComfyUI that computes on the CPU, and this one does on GPU {own}", ALL)
    if not 1 <= count <= MOST_TRIES:
        rule = f"must be 1 to {MOST_TRIES} processes of the CPU, which they share"
        raise _refused(text, rule, f"{CPU} x {min(max(count, 1), MOST_TRIES)}")
    return (CPU,) * count


def _own_first(own: str, devices: Sequence[str]) -> tuple[str, ...]:
    return own, *(each for each in devices if each != own)


def _counted(gpus: Sequence[str]) -> str:
    return "GPU 0 alone" if len(gpus) == 1 else f"GPUs 0 to {len(gpus) - 1}"


def _refused(text: str, rule: str, best: str) -> ValueError:
    return ValueError(f"The input devices is {quoted(text)}, but {rule}; the nearest good value is {best}.")
