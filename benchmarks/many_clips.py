"""What the driver of batch.py costs per row: workers that only sleep, the ledger committing every change of state.

    python benchmarks/many_clips.py [--ray] [--rows 10000] [--workers 64]

Prints one JSON object. ``overhead_ms`` is (wall - start-up) / rows - sleep / workers; ``grown_mb`` is by how much the
driver is larger at the end than after 1,000 rows. With ``--ray`` a worker is an actor of a local Ray, else a thread.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve()
SLEEP = 0.020
NAME = "opensora"


def _load() -> None:
    """The repository as a package, without its root on the search path: ``nodes/`` would hide ComfyUI's."""
    spec = importlib.util.spec_from_file_location(
        NAME, HERE.parents[1] / "__init__.py", submodule_search_locations=[str(HERE.parents[1])]
    )
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[NAME] = module
    spec.loader.exec_module(module)


class Sleeper:
    """The host of an actor that makes nothing."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """Starts at once."""

    def ready(self) -> str:
        """It is."""
        return ""

    def make(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Sleep."""
        time.sleep(SLEEP)
        return {"files": []}

    def interrupt(self) -> None:
        """Nothing is under way for long."""

    def close(self) -> None:
        """Nothing to end."""


class SleepingWorker:
    """The same in a thread."""

    def __init__(self, number: int) -> None:
        self.name = f"thread-{number}"

    def make(self, job: Any) -> list[Any]:
        """Sleep."""
        time.sleep(SLEEP)
        return []

    def recover(self, stopping: Callable[[], bool]) -> bool:
        """Never lost."""
        return True

    def interrupt(self) -> None:
        """Nothing is under way for long."""

    def close(self) -> None:
        """Nothing to end."""


def resident_mb() -> float:
    """Megabytes of this process; 0 where the system does not tell it so."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        return 0.0
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def on_ray(workers: int) -> tuple[Any, list[Any]]:
    """A Ray of this machine, and workers on it that have started."""
    from opensora.devtools.batch import ray_engine

    ray = ray_engine.connect(ray_engine.LOCAL)
    actors = ray_engine.Actors(ray, ray_engine.Devices(workers, 0.0, f"{HERE.stem}:Sleeper", (HERE.parent,)), {})
    team = [ray_engine.RayWorker(actors, number) for number in range(workers)]
    ray.get([worker._actor.call.remote("ready") for worker in team])
    return ray, team


def measure(rows: int, team: list[Any]) -> dict[str, float]:
    """Make the rows and give the numbers."""
    from opensora.devtools.batch.driver import Driver
    from opensora.devtools.batch.engines import close_all
    from opensora.devtools.batch.ledger import Entry, Ledger
    from opensora.devtools.batch.work import Job

    early: list[float] = []
    made = 0

    def listen(event: str, data: Mapping[str, object]) -> None:
        nonlocal made
        made += event == "row" and data["state"] == "done"
        if made == 1000 and not early:
            early.append(resident_mb())

    def job(name: str, prompt_id: str) -> Job:
        return Job(name, prompt_id, {"1": {"class_type": "Sleep", "inputs": {"seed": 1}}}, {"key": name})

    with tempfile.TemporaryDirectory() as folder:
        ledger = Ledger(Path(folder), make=True)
        ledger.plan(Entry(f"{i:06d}", str(i), i, i) for i in range(rows))
        groups = {f"{i:06d}": ("", str(i // 100)) for i in range(rows)}
        driver = Driver(ledger, team, groups, job, listen, needs_files=False)
        started, worked = time.perf_counter(), time.process_time()
        driver.run()
        worked = time.process_time() - worked
        close_all(team)
        wall = time.perf_counter() - started
        done = ledger.counts()["done"]
        ledger.close()
    return {
        "rows": done,
        "wall_s": round(wall, 2),
        "overhead_ms": round(1000 * (wall / rows - SLEEP / len(team)), 3),
        "driver_cpu_ms": round(1000 * worked / rows, 3),
        "grown_mb": round(resident_mb() - early[0], 1) if early else 0.0,
    }


def main() -> None:
    """Measure and print."""
    _load()
    from opensora.devtools import option_types as option

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ray", action="store_true")
    parser.add_argument("--rows", type=option.count, default=10_000)
    parser.add_argument("--workers", type=option.count, default=64)
    options = parser.parse_args()
    if options.ray and importlib.util.find_spec("ray") is None:
        parser.error("argument --ray: Ray is not installed here; pip install ray")
    ray, team = on_ray(options.workers) if options.ray else (None, [SleepingWorker(i) for i in range(options.workers)])
    print(json.dumps({"workers": len(team), "ray": options.ray, **measure(options.rows, team)}))
    if ray is not None:
        ray.shutdown()


if __name__ == "__main__":
    main()
