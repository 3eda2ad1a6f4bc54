"""Workers on Ray: one actor for each device, on this machine or on a cluster."""

from __future__ import annotations

import contextlib
import importlib
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..console import Problem
from ..places import REPOSITORY, machine_file
from .outputs import Made
from .work import Job, RowFailed, WorkerLost, content_of

CONNECTION = machine_file("parallel/ray_connection.py")
LOCAL: str = CONNECTION.LOCAL
HOST = "devtools.batch.host:Host"
START_SECONDS = 900  # a device may have to be waited for, and ComfyUI loads many packs
ASK_SECONDS = 1.0
CALLS = 3  # at a time to one actor: the row, and meanwhile an interrupt or the end
ANSWER_SECONDS = 40


@dataclass(frozen=True)
class Devices:
    """How many actors, and what each takes of its machine."""

    workers: int | None = None  # None: one for each GPU
    gpus: float = 1.0
    host: str = HOST
    search: tuple[Path, ...] = (REPOSITORY,)  # where the actors find ``host``, on every machine


def connect(address: str) -> Any:
    """Ray, connected: to a Ray of its own on the loopback, or to the cluster at ``address``."""
    try:
        ray = CONNECTION.module_for(address)
    except ImportError:
        raise Problem(f"--ray needs Ray, which is not installed here: {sys.executable} {CONNECTION.INSTALL}") from None
    try:
        CONNECTION.connect_to(ray, address)
    except Exception as error:  # Ray has many kinds of its own
        raise Problem(f"No Ray at {address}: {_line_of(error, 0)}") from None
    return ray


def _line_of(error: Exception, number: int) -> str:
    """A line of what an error says, else its kind."""
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[number] if lines else type(error).__name__


def count_devices(ray: Any, devices: Devices) -> int:
    """How many actors there will be; Problem where there is no GPU and no number was given."""
    if devices.workers:
        return devices.workers
    found = int(ray.cluster_resources().get("GPU", 0))
    if not found:
        raise Problem(
            "Ray sees no GPU. Say how many workers there shall be: --workers 2 (and --cpu, to run without one)"
        )
    return found


class Actors:
    """Starts actors. Their class is sent along; the class that does the work is found by name where they run."""

    def __init__(self, ray: Any, devices: Devices, settings: dict[str, Any]) -> None:
        """``settings`` are given to the host, see :mod:`.host`."""
        self.ray, self._settings = ray, settings
        # Only what stands in the search path must be there on every machine.
        path = os.pathsep.join(map(str, devices.search))
        self._actor = ray.remote(_actor_class(devices.host)).options(
            runtime_env={"env_vars": {"PYTHONPATH": path}},
            num_cpus=0,
            num_gpus=devices.gpus,
            max_concurrency=CALLS,
            max_restarts=0,
            enable_task_events=False,  # the ledger knows it all; they cost a twentieth of a row's time
        )

    def start(self) -> Any:
        """Another actor; it answers once it is there."""
        return self._actor.remote(self._settings)


def _actor_class(host: str) -> type:
    """Defined in here, a class is sent to the actor as it is."""
    module_name, class_name = host.split(":")

    def make(given: dict[str, Any]) -> Any:
        return getattr(importlib.import_module(module_name), class_name)(given)

    class Actor:
        def __init__(self, given: dict[str, Any]) -> None:
            self._host = make(given)

        def call(self, method: str, *arguments: Any) -> Any:
            return getattr(self._host, method)(*arguments)

    return Actor


class RayWorker:
    """See :class:`.work.Worker`: an actor, and another one when it ends."""

    def __init__(self, actors: Actors, number: int) -> None:
        self.name = f"ray-{number}"
        self._actors, self._ray = actors, actors.ray
        self._actor = actors.start()
        self._is_ready = False  # until then a row that is lost has nothing to do with it

    def object_info(self) -> str:
        """What its ComfyUI tells of its nodes, as JSON; WorkerLost where it cannot be started."""
        return str(self._ask("object_info", START_SECONDS))

    def make(self, job: Job) -> list[Made]:
        fields = {name: getattr(job, name) for name in ("name", "prompt_id", "prompt", "settings")}
        if not self._is_ready:
            self._ask("ready", START_SECONDS)
            self._is_ready = True
        files = [vars(replace(file, content=content_of(file))) for file in job.files]
        answer = self._ask("make", None, {**fields, "files": files})
        if "failed" in answer:
            raise RowFailed(answer["failed"])
        if "lost" in answer:
            raise WorkerLost(answer["lost"], answer["began"])
        return [Made(filename, [content]) for filename, content in answer["files"]]

    def recover(self, stopping: Callable[[], bool]) -> bool:
        self.close()  # its ComfyUI may have ended alone; the actor then removes what it left
        self._is_ready = False
        self._actor = self._actors.start()
        ready = self._actor.call.remote("ready")
        end = time.monotonic() + START_SECONDS
        while not stopping() and time.monotonic() < end:
            done, _ = self._ray.wait([ready], timeout=ASK_SECONDS)
            if done:
                try:
                    self._ray.get(ready)
                except Exception:  # whatever keeps it from starting: the worker is gone
                    return False
                return True
        return False

    def interrupt(self) -> None:
        with contextlib.suppress(Exception):
            self._actor.call.remote("interrupt")

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self._ask("close", ANSWER_SECONDS)
        self._kill()

    def _ask(self, method: str, seconds: float | None, *arguments: Any) -> Any:
        try:
            return self._ray.get(self._actor.call.remote(method, *arguments), timeout=seconds)
        except self._ray.exceptions.RayTaskError as error:
            raise WorkerLost(f"{self.name}: {_line_of(error, -1)}", self._is_ready) from None
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(f"{self.name} ended: {type(error).__name__}", self._is_ready) from None

    def _kill(self) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(self._actor)
