"""``gpu.py --comfyui`` in a dry run: every released clip goes through a real ComfyUI's loader and sampler."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from support.comfyui import comfyui_root
from support.pack import PACK_ROOT

pytestmark = pytest.mark.comfy


@pytest.mark.skipif(comfyui_root() is None, reason="no ComfyUI")
def test_every_clip_runs_through_comfyui_without_a_gpu(tmp_path: Path) -> None:
    out = tmp_path / "gpu.json"
    command = [sys.executable, str(PACK_ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--out", str(out)]
    command += ["--comfyui", str(comfyui_root()), "--only", "ComfyUI,1.2 720p 51 frames: fused"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert out.is_file(), done.stderr[-2000:]
    jobs = json.loads(out.read_text(encoding="utf-8"))["jobs"]
    assert {job["name"]: job.get("error") for job in jobs if job["state"] != "done"} == {} and done.returncode == 0
    through = {job["name"].split(":")[0]: job["result"] for job in jobs if "ComfyUI" in job["name"]}
    assert len(through) == 5 and {name[:3] for name in through} == {"1.2", "1.3", "2.0"}
    for found in through.values():
        rows = found["2 row(s)"]
        assert found["weights_bytes"] > 0 and rows["seconds"] == 2 * rows["row"] > 0
    assert done.stdout.count("| ComfyUI |") == 5 and "| 1.3 720p 113 frames | 2 | ComfyUI |" in done.stdout
