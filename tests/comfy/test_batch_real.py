"""batch.py with real ComfyUIs and the shipped tiny model: workers and the driver are killed with -9 in between."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from opensora.devtools.server import ComfyServer, prepare_base
from support.comfyui import comfyui_root
from support.drivers import done, driver, processes, ray_python
from support.pack import PACK_ROOT
from support.patience import until

ROWS = 40
WORKFLOW = PACK_ROOT / "workflows" / "api" / "Open-Sora 01 Text to video.json"

pytestmark = [
    pytest.mark.server,
    pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc"),
    pytest.mark.skipif(comfyui_root() is None, reason="no ComfyUI"),
]


def job(folder: Path) -> list[str]:
    """Two steps of the tiny model: four prompts, each with ten seeds."""
    rows = [f"a {shape} moving right,{seed},2,17" for seed in range(10) for shape in ("circle", "square", "bar", "dot")]
    table = folder / "table.csv"
    table.write_text("\n".join(["prompt,seed,Sample.steps,Clip to make.frames", *rows]) + "\n", encoding="utf-8")
    return ["run", str(WORKFLOW), str(table), "--out", str(folder / "out"), "--json"]


def check(folder: Path) -> None:
    """One file for every row, each with the settings of its own row inside, and nothing else."""
    files = sorted(path for path in (folder / "out").iterdir() if path.is_file())
    assert [path.name for path in files] == [f"{number:05d}.mp4" for number in range(1, ROWS + 1)]
    keys = set()
    for number, path in enumerate(files, 1):
        content = path.read_bytes()
        start = content.index(b'"key": "') + 8
        keys.add(content[start : start + 64])
        assert f'"row": {number},'.encode() in content, path.name
    assert len(keys) == ROWS
    assert done(folder) == ROWS


def test_servers_and_the_driver_are_killed(tmp_path: Path) -> None:
    root = comfyui_root()
    assert root is not None
    servers = [ComfyServer(Path(sys.executable), root, tmp_path / f"base{i}", PACK_ROOT) for i in range(2)]
    arguments = [*job(tmp_path), "--patience", "5", "--servers", *(server.url for server in servers)]
    with contextlib.ExitStack() as stack, ThreadPoolExecutor() as pool:
        for server in servers:
            stack.callback(server.stop)
        list(pool.map(lambda server: server.start(), servers))
        with driver(Path(sys.executable), arguments, tmp_path) as process:
            until(lambda: done(tmp_path) >= 8)
            for pid in processes(str(servers[0].base), "main.py"):
                os.kill(pid, signal.SIGKILL)
            until(lambda: done(tmp_path) >= 20)
            process.kill()
        with driver(Path(sys.executable), arguments, tmp_path) as process:
            assert process.wait(300) == 0, (tmp_path / "driver.log").read_text()
    check(tmp_path)


@pytest.mark.slow  # what the ordinary tests leave out of this is in tests/unit/test_batch_ray.py
def test_two_workers_on_ray_are_killed_and_the_driver_too(tmp_path: Path) -> None:
    python = ray_python()
    base = tmp_path / "base"
    prepare_base(base, PACK_ROOT)
    arguments = [*job(tmp_path), "--ray", "--workers", "2", "--cpu", "--comfyui", str(comfyui_root())]
    arguments += ["--python", sys.executable, "--base", str(base)]
    with driver(python, arguments, tmp_path) as process:
        until(lambda: done(tmp_path) >= 8)
        victims = [pid for pid in processes(str(base), "main.py") if pid not in processes(str(base), "leash.py")]
        assert victims, "no ComfyUI was started"
        os.kill(victims[0], signal.SIGKILL)
        until(lambda: done(tmp_path) >= 20)
        process.kill()
    until(lambda: not processes(str(base), "main.py"))  # no ComfyUI outlives its driver
    with driver(python, arguments, tmp_path) as process:
        assert process.wait(600) == 0, (tmp_path / "driver.log").read_text()
    check(tmp_path)
    until(lambda: not processes(str(base), "main.py"))
    told = [json.loads(line) for line in (tmp_path / "driver.log").read_text().splitlines() if line.startswith("{")]
    names = [event["name"] for event in told if event["event"] == "row" and event["state"] == "done"]
    assert len(names) == len(set(names)), "a row was made twice"
