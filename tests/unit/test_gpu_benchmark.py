"""The GPU benchmark in a dry run: every job runs, whatever happens leaves a file, and the budget is kept."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from support.pack import PACK_ROOT


def run(folder: Path, *more: str) -> tuple[int, dict[str, Any], str]:
    """One dry run in a process of its own, as a person starts it: exit status, record, what it said."""
    out = folder / "gpu.json"
    command = [sys.executable, str(PACK_ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--out", str(out), *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder)
    assert out.is_file(), done.stderr[-2000:]
    return done.returncode, json.loads(out.read_text(encoding="utf-8")), done.stdout


def test_every_job_runs_without_a_gpu(tmp_path: Path) -> None:
    code, record, said = run(tmp_path, "--minutes", "5")
    wrong = {job["name"]: job for job in record["jobs"] if job["state"] != "done"}
    assert wrong == {} and code == 0
    assert record["dry_run"] and record["card"] == "CPU (dry run)" and len(record["jobs"]) > 15
    found = {job["name"]: job["result"] for job in record["jobs"]}
    row = found["2.0 256px 129 frames: rows"]["1 row(s)"]
    assert row["run"] == pytest.approx(80 * row["row"]) and "extrapolated" in row["run_is"]
    cache = found["1.2 480p 51 frames: step cache"]
    assert cache["kept_bytes_of_a_row"] == 5 * 2 * 3 * 96 * 4
    assert cache["rows"]["computed"] == 1 <= cache["rows"]["reused"], "what is timed as reused computes its first call"
    kept, reused = cache["computed"]["seconds"], cache["reused"]["seconds"]
    assert cache["run"]["40 %"] == pytest.approx(60 * (0.4 * kept + 0.6 * reused))
    assert cache["run"]["100 %"] == pytest.approx(60 * cache["without"]["seconds"])
    shapes = found["1.3 720p 113 frames: attention"]
    assert shapes and all(each["chosen"] for each in shapes.values())
    assert {job["name"].split(":")[1] for job in record["jobs"]} >= {" autoencoder", " loading", " compiled", " rows"}
    assert said.count("| 1.2 720p 51 frames |") >= 2 and "| 30 s |" in said


def test_without_time_left_jobs_are_named_and_not_begun(tmp_path: Path) -> None:
    code, record, said = run(tmp_path, "--minutes", "0", "--only", "rows")
    assert code == 0 and {job["state"] for job in record["jobs"]} == {"no time"}
    assert len(record["jobs"]) == 4 and "no time" in said


def test_a_word_that_names_no_job_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    command = [sys.executable, str(PACK_ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--only", "1.2,typo"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "no job's name holds 'typo'" in done.stderr
    assert "1.2 480p 51 frames: step cache" in done.stderr and list(tmp_path.iterdir()) == []


def test_a_folder_without_comfyui_is_refused(tmp_path: Path) -> None:
    command = [sys.executable, str(PACK_ROOT / "benchmarks" / "gpu.py"), "--device", "cpu", "--comfyui", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2 and "it has no main.py" in done.stderr and list(tmp_path.iterdir()) == []
