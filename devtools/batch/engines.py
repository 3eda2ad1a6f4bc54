"""The workers a person asked for: servers by address, or Ray; and what their ComfyUI tells of its nodes."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ..console import Problem
from ..places import REPOSITORY
from .ray_engine import Actors, Devices, RayWorker, connect, count_devices
from .servers import PATIENCE_SECONDS, ServerWorker, checked_url, machine_of
from .work import Worker, WorkerLost

Engine = tuple[list[Worker], dict[str, Any]]  # the workers, and what their ComfyUI tells of its nodes


@contextlib.contextmanager
def engine(options: argparse.Namespace) -> Iterator[Engine]:
    """The workers; ended when the block is left."""
    if bool(options.servers) == (options.ray is not None):
        raise Problem("Name the workers, one of the two: --servers http://127.0.0.1:8188 … or --ray.")
    _check_read(options)
    if options.servers:
        yield _servers(options)
        return
    with _on_ray(options) as found:
        yield found


def _check_read(options: argparse.Namespace) -> None:
    """Nothing that was asked for is left out silently."""
    if options.servers:
        unread = [name for name in options.of_ray if getattr(options, name)]
        reason = "is for --ray, whose workers batch.py starts; servers stay as they were started"
    else:
        unread = [] if options.patience is None else ["patience"]
        reason = "is for --servers; what --ray started and lost is started again"
    if unread:
        raise Problem(f"--{unread[0].replace('_', '-')} {reason}. Leave it out.")


def _servers(options: argparse.Namespace) -> Engine:
    """Those that do not answer now are waited for like those that go away later; one must answer."""
    urls = [checked_url(server) for server in options.servers]
    known: dict[str, str] = {}
    for url in urls:
        if (twice := known.setdefault(machine_of(url), url)) is not url:
            raise Problem(f"{twice} and {url} are one server; name it once.")
    patience = PATIENCE_SECONDS if options.patience is None else options.patience
    workers = [ServerWorker(url, options.row_seconds, patience) for url in urls]
    silent = []
    for worker in workers:
        try:
            return list(workers), worker.object_info()
        except (OSError, ValueError) as error:
            silent.append(f"{worker.name} ({error})")
    raise Problem(f"No server answers: {'; '.join(silent)}. Start ComfyUI there, or name another one.")


@contextlib.contextmanager
def _on_ray(options: argparse.Namespace) -> Iterator[Engine]:
    root = comfyui_folder(options.comfyui)
    arguments = ["--cpu"] if options.cpu else []
    settings = {
        "python": str(options.python.absolute() if options.python else sys.executable),
        "comfyui": str(root),
        "base": str(options.base.resolve()) if options.base else None,
        "arguments": arguments + list(options.comfyui_argument),
        "row_seconds": options.row_seconds,
    }
    devices = Devices(options.workers, 0.0 if options.cpu else 1.0)
    ray = connect(options.ray)
    workers: list[RayWorker] = []
    try:
        actors = Actors(ray, devices, settings)
        workers = [RayWorker(actors, number) for number in range(1, count_devices(ray, devices) + 1)]
        yield list(workers), _first_info(workers)
    finally:
        close_all(workers)
        ray.shutdown()


def close_all(workers: Sequence[Worker]) -> None:
    """End them, all at once: each takes some seconds."""
    if workers:
        with ThreadPoolExecutor(len(workers)) as pool:
            list(pool.map(lambda worker: worker.close(), workers))


def _first_info(workers: list[RayWorker]) -> dict[str, Any]:
    lost = ""
    for worker in workers:
        try:
            return dict(json.loads(worker.object_info()))
        except WorkerLost as error:
            lost = str(error)
    raise Problem(f"No worker could start ComfyUI. {lost}")


def comfyui_folder(given: Path | None, environment: Mapping[str, str] = os.environ) -> Path:
    """The ComfyUI that workers start: the one named, that of ``COMFYUI_PATH``, or the one this pack is installed in."""
    named = given or environment.get("COMFYUI_PATH") or REPOSITORY.parents[1]
    root = Path(named).expanduser().resolve()
    if not ((root / "main.py").is_file() and (root / "comfy").is_dir()):
        raise Problem(f"{root} is no ComfyUI folder (with main.py and comfy in it); name one: --comfyui PATH.")
    return root
