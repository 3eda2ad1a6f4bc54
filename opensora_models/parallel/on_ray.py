"""Workers on the machines of a Ray cluster: an actor starts the same program there and hands its pipes on.

Only for an address that was given. Ray carries bytes: what the actor is made of is sent along and needs nothing but
Python's own library, messages are those of :mod:`.wire`.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from ..messages.quoting import one_line, quoted
from .ranks import LOOPBACK
from .ray_connection import INSTALL, LOCAL, connect_to, module_for

AUTOMATIC = "auto"
"""Ray's own word for the cluster that this machine is part of."""
STARTING = 120.0
"""Seconds an actor may wait for its place in the cluster."""
ANSWERING = 10.0
CALLS = 4
"""At a time to one actor: a read that waits, a write, a question, the end."""


def connected(address: str) -> Any:
    """Ray, connected to the cluster at ``address``. Raises ValueError where there is none, or no Ray here."""
    try:
        ray = module_for(address)
    except ImportError:
        raise ValueError(
            f"The input address is {quoted(address)}, which needs Ray: {sys.executable} {INSTALL}. "
            "Leave it empty for the devices of this machine."
        ) from None
    if ray.is_initialized():
        _expect_the_same(ray, address)
        return ray
    try:
        connect_to(ray, address, configure_logging=False)  # which is ComfyUI's
    except Exception as error:  # Ray has many kinds of its own
        raise ValueError(
            f"The input address is {quoted(address)}, and no Ray is there: {one_line(str(error))}"
        ) from None
    return ray


def _expect_the_same(ray: Any, address: str) -> None:
    """A process has one Ray. Raises ValueError where it is another than the one that is asked for."""
    here = str(ray.get_runtime_context().gcs_address)
    same = here.startswith(f"{LOOPBACK}:") if address == LOCAL else address in (here, AUTOMATIC)
    if not same:
        raise ValueError(
            f"The input address is {quoted(address)}, but this ComfyUI is connected to another Ray until it ends; the "
            f"nearest good value is {here}."
        )


def free_gpus(ray: Any) -> int:
    """GPUs of the cluster that nobody has."""
    return int(ray.available_resources().get("GPU", 0))


def own_address(ray: Any, address: str) -> str:
    """By which the other machines reach this one."""
    return LOOPBACK if address == LOCAL else str(ray.util.get_node_ip_address())


class RayProcess:
    """A worker's program on another machine, with the face of ``subprocess.Popen``."""

    def __init__(self, ray: Any, command: Sequence[str], environment: Mapping[str, str], gpus: int, host: str) -> None:
        """``host``: the loopback for a Ray of this machine alone, else empty: the machine's own address."""
        self._ray = ray
        actor = ray.remote(_program()).options(num_cpus=0, num_gpus=gpus, max_restarts=0, max_concurrency=CALLS)
        self._actor = actor.remote(list(command), dict(environment))
        self._ended, self._code = threading.Event(), -9
        try:
            self.pid, there = ray.get(self._actor.about.remote(), timeout=STARTING)
        except Exception as error:
            self.kill()
            raise ValueError(f"Ray could not start a worker: {one_line(str(error))}") from None
        self.host = host or there
        self.stdin, self.stdout = _Writer(self), _Reader(self)

    def call(self, method: str, *arguments: Any, seconds: float | None = None) -> Any:
        """What the actor answers. Raises OSError where it is gone."""
        try:
            return self._ray.get(getattr(self._actor, method).remote(*arguments), timeout=seconds)
        except self._ray.exceptions.GetTimeoutError:
            raise OSError("the actor does not answer") from None
        except self._ray.exceptions.RayError as error:
            self._ended.set()
            raise OSError(one_line(str(error))) from None

    def ended(self) -> None:
        """Nothing more comes from it: ask why, while there is somebody to ask."""
        with suppress(OSError):
            code = self.call("poll", seconds=ANSWERING)
            self._code = self._code if code is None else code
        self._ended.set()

    def poll(self) -> int | None:
        """The code with which it ended; None while it has not."""
        return self._code if self._ended.is_set() else None

    def wait(self, timeout: float | None = None) -> int:
        """Until it has ended. Raises ``subprocess.TimeoutExpired``."""
        if not self._ended.wait(timeout):
            raise subprocess.TimeoutExpired("a worker on Ray", timeout or 0.0)
        return self._code

    def kill(self) -> None:
        """End it, whatever it does: with the actor its pipes are closed."""
        with suppress(Exception):
            self._ray.kill(self._actor)
        self._ended.set()


class _Writer:
    """The program's standard input."""

    def __init__(self, process: RayProcess) -> None:
        self._process = process
        self._pieces: list[bytes] = []

    def write(self, piece: bytes) -> None:
        self._pieces.append(piece)

    def flush(self) -> None:
        pieces, self._pieces = self._pieces, []
        self._process.call("write", b"".join(pieces))

    def close(self) -> None:
        """The actor closes it when it ends."""


class _Reader:
    """The program's standard output."""

    def __init__(self, process: RayProcess) -> None:
        self._process, self._left = process, b""

    def read(self, count: int) -> bytes:
        """So many bytes; fewer where it has ended."""
        pieces = [self._left]
        missing = count - len(self._left)
        while missing > 0:
            try:
                piece = self._process.call("read")
            except OSError:
                piece = b""
            if not piece:
                self._process.ended()
                break
            pieces.append(piece)
            missing -= len(piece)
        whole = b"".join(pieces)
        self._left = whole[count:]
        return whole[:count]


def _program() -> type:
    """The actor's class; defined in here it is sent along as it is."""

    class Program:
        def __init__(self, command: list[str], environment: dict[str, str]) -> None:
            import os
            import subprocess

            pipe, given = subprocess.PIPE, {**os.environ, **environment}
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, env=given)

        def about(self) -> tuple[int, str]:
            import ray

            return self.process.pid, ray.util.get_node_ip_address()

        def write(self, content: bytes) -> None:
            self.process.stdin.write(content)  # type: ignore[union-attr]
            self.process.stdin.flush()  # type: ignore[union-attr]

        def read(self) -> bytes:
            import os

            return os.read(self.process.stdout.fileno(), 1 << 20)  # type: ignore[union-attr]

        def poll(self) -> int | None:
            try:
                return self.process.wait(timeout=2)
            except Exception:
                return None

    return Program
