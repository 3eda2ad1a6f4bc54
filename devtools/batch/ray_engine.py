"""Workers on Ray: one actor for each device, on this machine or on a cluster. The only file that imports Ray."""

from __future__ import annotations

import contextlib
import importlib
import os
import secrets
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..console import Problem
from ..places import REPOSITORY
from .outputs import Made
from .work import Job, RowFailed, WorkerLost

LOCAL = "local"
HOST = "devtools.batch.host:Host"
START_SECONDS = 900  # a device may have to be waited for, and ComfyUI loads many packs
ASK_SECONDS = 1.0
ANSWER_SECONDS = 40
INSTALL = "--ray needs Ray, which is not installed here: {python} -m pip install 'ray>=2.40'"


@dataclass(frozen=True)
class Devices:
    """How many actors, and what each takes of its machine."""

    workers: int | None = None  # None: one for each GPU
    gpus: float = 1.0
    host: str = HOST
    search: tuple[Path, ...] = (REPOSITORY,)  # where the actors find ``host``, on every machine


def connect(address: str) -> Any:
    """Ray, connected: to a Ray of its own on the loopback, or to the cluster at ``address``."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    if address == LOCAL:
        _stay_on_this_machine()
    try:
        ray = importlib.import_module("ray")
    except ImportError:
        raise Problem(INSTALL.format(python=sys.executable)) from None
    quiet = {"log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address == LOCAL:
            ray.init(address=LOCAL, include_dashboard=False, **quiet)
        else:
            ray.init(address=address, **quiet)
    except (ConnectionError, OSError, RuntimeError, ValueError) as error:
        raise Problem(f"No Ray at {address}: {str(error).splitlines()[0]}") from None
    return ray


def _stay_on_this_machine() -> None:
    """A Ray of our own listens to the loopback alone, and only to those who know its token. Before Ray is imported.

    Left to itself Ray on Linux gives its node the machine's address and opens its ports to everybody; with the first
    variable it does as on other systems, where it stays on the loopback.
    """
    os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token":
        os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # of this run; none is written to a file


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


def _actor(ray: Any, devices: Devices, settings: dict[str, Any]) -> Any:
    """Start an actor. Its class is found by name on the machine where it runs."""
    module_name, class_name = devices.host.split(":")

    def make(given: dict[str, Any]) -> Any:
        return getattr(importlib.import_module(module_name), class_name)(given)

    class Actor:
        def __init__(self, given: dict[str, Any]) -> None:
            self._host = make(given)

        def call(self, method: str, *arguments: Any) -> Any:
            return getattr(self._host, method)(*arguments)

    # The classes of this module are sent along as they are; only ``devtools`` must be there by path.
    path = os.pathsep.join(map(str, devices.search))
    options = {"num_cpus": 0, "num_gpus": devices.gpus, "max_concurrency": 3, "max_restarts": 0}
    return ray.remote(Actor).options(runtime_env={"env_vars": {"PYTHONPATH": path}}, **options).remote(settings)


class RayWorker:
    """See :class:`.work.Worker`: an actor, and another one when it ends."""

    def __init__(self, ray: Any, number: int, devices: Devices, settings: dict[str, Any]) -> None:
        self.name = f"ray-{number}"
        self._ray, self._devices, self._settings = ray, devices, settings
        self._actor = _actor(ray, devices, settings)
        self._is_ready = False  # until then a row that is lost has nothing to do with it

    def object_info(self) -> str:
        """What its ComfyUI tells of its nodes, as JSON; WorkerLost where it cannot be started."""
        return str(self._ask("object_info", START_SECONDS))

    def make(self, job: Job) -> list[Made]:
        fields = {name: getattr(job, name) for name in ("name", "prompt_id", "prompt", "settings")}
        if not self._is_ready:
            self._ask("ready", START_SECONDS)
            self._is_ready = True
        files = [vars(replace(file, content=file.content or Path(file.path).read_bytes())) for file in job.files]
        answer = self._ask("make", None, {**fields, "files": files})
        if "failed" in answer:
            raise RowFailed(answer["failed"])
        if "lost" in answer:
            raise WorkerLost(answer["lost"], answer["began"])
        return [Made(filename, [content]) for filename, content in answer["files"]]

    def recover(self, stopping: Callable[[], bool]) -> bool:
        self.close()  # its ComfyUI may have ended alone; the actor then removes what it left
        self._is_ready = False
        self._actor = _actor(self._ray, self._devices, self._settings)
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
            raise WorkerLost(f"{self.name}: {str(error).splitlines()[-1]}", self._is_ready) from None
        except self._ray.exceptions.RayError as error:
            raise WorkerLost(f"{self.name} ended: {type(error).__name__}", self._is_ready) from None

    def _kill(self) -> None:
        with contextlib.suppress(Exception):
            self._ray.kill(self._actor)
