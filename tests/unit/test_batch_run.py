"""Tables made on servers that only pretend: every row once, whatever fails, ends or is killed in between."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from opensora.devtools.batch import board, commands
from opensora.devtools.batch.ledger import FOLDER, Ledger, Lock
from opensora.devtools.places import REPOSITORY
from support.fake_comfyui import WORKFLOW, FakeComfyUI
from support.patience import until


def files_of(folder: Path, rows: str, table: str = "table.csv") -> list[str]:
    """Write workflow and table; the first arguments of ``run``."""
    (folder / "workflow.json").write_text(json.dumps(WORKFLOW), encoding="utf-8")
    (folder / table).write_text(rows, encoding="utf-8")
    return ["run", str(folder / "workflow.json"), str(folder / table), "--out", str(folder / "out")]


def run(arguments: list[str], *servers: FakeComfyUI, patience: float = 0.3) -> int:
    urls = [server.url for server in servers]
    return commands.main([*arguments, "--quiet", "--patience", str(patience), "--servers", *urls])


def seeds(count: int) -> str:
    return "seed\n" + "".join(f"{seed}\n" for seed in range(count))


def results(folder: Path) -> dict[str, dict[str, Any]]:
    """What stands inside each result."""
    found = {}
    for path in sorted((folder / "out").rglob("*")):
        if path.is_file() and FOLDER not in path.parts:
            found[path.relative_to(folder / "out").as_posix()] = json.loads(path.read_bytes()[1:].rstrip(b"\xff"))
    return found


def made_seeds(*servers: FakeComfyUI) -> list[int]:
    return sorted(prompt["4"]["inputs"]["seed"] for server in servers for prompt in server.made)


def states(folder: Path) -> dict[str, int]:
    ledger = Ledger(folder / "out")
    try:
        return {state: number for state, number in ledger.counts().items() if number}
    finally:
        ledger.close()


def test_every_row_becomes_one_file_with_its_settings_inside(tmp_path: Path) -> None:
    rows = 'prompt,seed,Sample.steps,cfg,fast\n"a dog, running",5,12,3.5,yes\n,6,,,\n'
    with FakeComfyUI() as one, FakeComfyUI() as two:
        assert run(files_of(tmp_path, rows), one, two) == 0
    found = results(tmp_path)
    assert list(found) == ["00001.mp4", "00002.mp4"]
    first = found["00001.mp4"]
    assert first["prompt"]["2"]["inputs"]["prompt"] == "a dog, running"
    assert (
        first["prompt"]["4"]["inputs"] | {"seed": 5, "steps": 12, "cfg": 3.5, "fast": True}
        == first["prompt"]["4"]["inputs"]
    )
    assert first["opensora_batch"]["values"]["seed"] == "5" and first["opensora_batch"]["line"] == 2
    second = found["00002.mp4"]["prompt"]
    assert second["2"]["inputs"]["prompt"] == "a cat" and second["4"]["inputs"]["steps"] == 4
    assert not list((tmp_path / "out").rglob("*.part-*"))


def test_running_again_makes_only_what_is_missing(tmp_path: Path) -> None:
    with FakeComfyUI() as server:
        assert run(files_of(tmp_path, seeds(3)), server) == 0
        assert run(files_of(tmp_path, seeds(5)), server) == 0
        assert run(files_of(tmp_path, seeds(5)), server) == 0
        assert made_seeds(server) == [0, 1, 2, 3, 4]


def test_a_finished_row_is_not_overwritten_by_other_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeComfyUI() as server:
        assert run(files_of(tmp_path, "seed\n1\n2\n"), server) == 0
        assert run(files_of(tmp_path, "seed\n1\n3\n"), server) == 2
        assert "line 3" in capsys.readouterr().out and made_seeds(server) == [1, 2]


BAD = """prompt,seed,steps,cfg,model_name,image
good,1,4,7,a.safetensors,example.png
bad,x,4,7,a.safetensors,example.png
bad,1.5,0,7,a.safetensors,example.png
bad,1,4,nan,c.safetensors,example.png
"two
lines",1,4,7,a.safetensors,nowhere.png
bad,1,4,7,a.safetensors,example.png,more
"""


def test_all_bad_rows_are_told_with_their_lines_and_nothing_is_queued(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeComfyUI() as server:
        assert run(files_of(tmp_path, BAD), server) == 2
        assert not server.begun
    said = capsys.readouterr().out
    lines = [line.split(":")[1].strip() for line in said.splitlines() if "line " in line]
    assert lines == ["line 3", "line 4", "line 4", "line 5", "line 5", "line 6", "line 8"]
    assert "the nearest is 2" in said and "the least is 1" in said and "nowhere.png" in said
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("channel", [True, False], ids=["events", "only asking"])
def test_errors_of_a_row_do_not_stop_the_others(tmp_path: Path, channel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensora.devtools.batch.servers.POLL_SECONDS", 0.01)

    def fails(prompt: dict[str, Any]) -> str | None:
        return "too bright" if prompt["4"]["inputs"]["seed"] == 1 and not mended else None

    def refuses(prompt: dict[str, Any]) -> str | None:
        return "seed 3 is cursed" if prompt["4"]["inputs"]["seed"] == 3 and not mended else None

    mended = False
    with FakeComfyUI(fails=fails, refuses=refuses, channel=channel) as server:
        arguments = files_of(tmp_path, seeds(6))
        assert run(arguments, server) == 1
        assert states(tmp_path) == {"done": 4, "failed": 2}
        errors = {entry.name: entry.error for entry in Ledger(tmp_path / "out").entries("failed")}
        assert "too bright" in str(errors["00002"]) and "cursed" in str(errors["00004"])
        mended = True
        assert run(arguments, server) == 1, "what failed is made again only when it is asked for"
        assert commands.main(["retry", "--failed", str(tmp_path / "out")]) == 0
        assert run(arguments, server) == 0
        assert made_seeds(server) == list(range(6))


def test_a_worker_that_fails_three_rows_in_a_row_is_set_aside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with FakeComfyUI(fails=lambda prompt: "broken card") as sick, FakeComfyUI(seconds=0.25) as well:
        assert run(files_of(tmp_path, seeds(12)), sick, well) == 0
        assert len(sick.begun) == board.STRIKES and made_seeds(well) == list(range(12))
        assert f"worker {sick.url} is set aside" in capsys.readouterr().out


def test_rows_that_fail_everywhere_cost_no_worker(tmp_path: Path) -> None:
    def fails(prompt: dict[str, Any]) -> str | None:
        return "bad row" if prompt["4"]["inputs"]["seed"] < 7 else None

    with FakeComfyUI(fails=fails) as one, FakeComfyUI(fails=fails) as two:
        assert run(files_of(tmp_path, seeds(30)), one, two) == 1
        assert states(tmp_path) == {"done": 23, "failed": 7}


def test_the_only_worker_that_fails_leaves_the_rest_waiting(tmp_path: Path) -> None:
    with FakeComfyUI(fails=lambda prompt: "broken card") as sick:
        arguments = files_of(tmp_path, seeds(10))
        assert run(arguments, sick) == 1
        assert states(tmp_path) == {"waiting": 7, "failed": 3}


def test_a_server_that_dies_gives_its_row_to_others(tmp_path: Path) -> None:
    with FakeComfyUI(seconds=0.05) as mortal, FakeComfyUI(seconds=0.05) as other:
        killer = threading.Thread(target=lambda: (until(lambda: len(mortal.made) > 2), mortal.die()))
        killer.start()
        assert run(files_of(tmp_path, seeds(20)), mortal, other) == 0
        killer.join()
        assert states(tmp_path) == {"done": 20} and len(results(tmp_path)) == 20
        assert not list((tmp_path / "out").rglob("*.part-*"))
        assert len(made_seeds(mortal, other)) <= 21


def test_servers_that_were_never_there_do_not_count_against_a_row(tmp_path: Path) -> None:
    dead = [FakeComfyUI() for _ in range(4)]
    for server in dead:
        server.die()
    with FakeComfyUI(seconds=0.3) as server:
        assert run(files_of(tmp_path, seeds(6)), server, *dead) == 0
        assert made_seeds(server) == list(range(6)) and states(tmp_path) == {"done": 6}


def test_a_server_that_comes_back_goes_on(tmp_path: Path) -> None:
    with FakeComfyUI(seconds=0.02) as server:

        def restart() -> None:
            until(lambda: len(server.made) > 2)
            server.die()
            time.sleep(0.3)
            server.rise()

        thread = threading.Thread(target=restart)
        thread.start()
        assert run(files_of(tmp_path, seeds(10)), server, patience=10) == 0
        thread.join()
        assert states(tmp_path) == {"done": 10}


# A shell's background job ignores Ctrl-C, and so would every program it starts.
LISTENING = None if os.name == "nt" else partial(signal.signal, signal.SIGINT, signal.SIG_DFL)


def drive(arguments: list[str], *servers: FakeComfyUI) -> subprocess.Popen[str]:
    """The driver as a process of its own, which Ctrl-C reaches even where the tests run in the background."""
    command = [sys.executable, str(REPOSITORY / "batch.py"), *arguments, "--json", "--servers"]
    return subprocess.Popen(
        [*command, *(s.url for s in servers)], stdout=subprocess.PIPE, text=True, preexec_fn=LISTENING
    )


@pytest.mark.skipif(os.name == "nt", reason="has no kill -9")
def test_a_driver_killed_again_and_again_makes_every_row_once(tmp_path: Path) -> None:
    arguments = files_of(tmp_path, seeds(40))
    with FakeComfyUI(seconds=0.02) as one, FakeComfyUI(seconds=0.02) as two:
        for share in (8, 16, 24, 32):
            driver = drive(arguments, one, two)
            until(lambda goal=share: len(one.made) + len(two.made) >= goal)  # type: ignore[misc]
            driver.send_signal(signal.SIGKILL)
            driver.communicate()
        driver = drive(arguments, one, two)
        printed, _ = driver.communicate()
        assert driver.returncode == 0, printed
        assert json.loads(printed.splitlines()[-1])["counts"]["done"] == 40
        assert len(results(tmp_path)) == 40
        # What was under way when the driver died was asked for by its name, not made a second time.
        assert made_seeds(one, two) == list(range(40))


@pytest.mark.skipif(os.name == "nt", reason="sends SIGINT")
def test_ctrl_c_gives_back_what_is_under_way(tmp_path: Path) -> None:
    with FakeComfyUI(seconds=30) as server:
        driver = drive(files_of(tmp_path, seeds(3)), server)
        until(lambda: bool(server.begun))
        driver.send_signal(signal.SIGINT)
        driver.communicate()
        assert driver.returncode == 130 and server.interrupts == 1
    assert states(tmp_path) == {"waiting": 3}


def test_cancel_ends_a_run_from_outside(tmp_path: Path) -> None:
    with FakeComfyUI(seconds=0.1) as server:
        driver = drive(files_of(tmp_path, seeds(200)), server)
        until(lambda: len(server.made) > 1)
        assert commands.main(["cancel", str(tmp_path / "out")]) == 0
        driver.communicate()
        found = states(tmp_path)
        assert (
            driver.returncode == 1 and found["done"] + found["cancelled"] == 200 and set(found) == {"done", "cancelled"}
        )


def test_rows_retried_from_outside_are_taken_by_the_run_that_goes_on(tmp_path: Path) -> None:
    mended = threading.Event()

    def fails(prompt: dict[str, Any]) -> str | None:
        return "dark" if prompt["4"]["inputs"]["seed"] == 0 and not mended.is_set() else None

    with FakeComfyUI(seconds=0.1, fails=fails) as server:
        driver = drive(files_of(tmp_path, seeds(30)), server)
        until(lambda: len(server.made) > 1)
        mended.set()
        assert commands.main(["retry", "--failed", "--out", str(tmp_path / "out")]) == 0
        driver.communicate()
        assert driver.returncode == 0 and states(tmp_path) == {"done": 30}


def test_two_drivers_do_not_work_in_one_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lock = Lock(tmp_path / "out" / FOLDER)
    with FakeComfyUI() as server:
        assert run(files_of(tmp_path, seeds(1)), server) == 2
        assert "Another batch.py" in capsys.readouterr().out
        lock.release()
        assert run(files_of(tmp_path, seeds(1)), server) == 0


def test_equal_models_and_prompts_are_put_together(tmp_path: Path) -> None:
    rows = [
        f"{p},{m},{s}\n" for s in range(4) for p in ("cat", "dog", "owl") for m in ("a.safetensors", "b.safetensors")
    ]
    with FakeComfyUI() as server:
        assert run(files_of(tmp_path, "prompt,model_name,seed\n" + "".join(rows)), server) == 0
        assert server.ran["Loader"] == 2 and server.ran["Encode"] == 6 and server.ran["Sampler"] == 24
        with FakeComfyUI() as apart:  # the same rows as the table has them
            for prompt in sorted(server.made, key=lambda prompt: prompt["4"]["inputs"]["seed"]):
                apart.count(prompt)
        assert apart.ran["Loader"] == 8 and apart.ran["Encode"] == 24


def test_files_named_in_the_table_are_sent_along_once(tmp_path: Path) -> None:
    (tmp_path / "start.png").write_bytes(b"a picture")
    with FakeComfyUI() as server:
        assert run(files_of(tmp_path, "First frame.image,seed\nstart.png,1\nstart.png,2\nexample.png,3\n"), server) == 0
        assert list(server.uploaded.values()) == [b"a picture"]
        names = [prompt["3"]["inputs"]["image"] for prompt in server.made]
        assert sorted(names) == ["example.png"] + ["opensora-batch/" + next(iter(server.uploaded))] * 2


def test_files_that_cannot_hold_settings_get_them_beside_the_ledger(tmp_path: Path) -> None:
    with FakeComfyUI(metadata=False) as server:
        assert run(files_of(tmp_path, "seed\n9\n"), server) == 0
    settings = json.loads((tmp_path / "out" / FOLDER / "settings" / "00001.mp4.json").read_text(encoding="utf-8"))
    assert settings["values"] == {"seed": "9"} and (tmp_path / "out" / "00001.mp4").is_file()


def test_the_layout_that_vbench_reads(tmp_path: Path) -> None:
    rows = "prompt,seed\n" + "".join(
        f"{prompt},{seed}\n" for prompt in ("a cat", "a person's hat") for seed in range(3)
    )
    with FakeComfyUI() as server:
        assert run([*files_of(tmp_path, rows), "--name", "vbench"], server) == 0
    assert list(results(tmp_path)) == [f"{p}-{i}.mp4" for p in ("a cat", "a person's hat") for i in range(3)]


def test_json_tells_every_row_and_status_knows_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeComfyUI() as server:
        commands.main([*files_of(tmp_path, "a\n\nb\n", "prompts.txt"), "--json", "--servers", server.url])
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert sorted(e["name"] for e in events if e["event"] == "row" and e["state"] == "done") == ["00001", "00002"]
    assert events[-1] == {"event": "end", "why": "finished", "counts": events[-1]["counts"]}
    assert commands.main(["status", str(tmp_path / "out"), "--json"]) == 0
    told = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(row["line"], row["state"], row["outputs"]) for row in told] == [
        (1, "done", ["00001.mp4"]),
        (3, "done", ["00002.mp4"]),
    ]
    assert commands.main(["status", str(tmp_path / "out")]) == 0
    assert "2 done" in capsys.readouterr().out


def test_without_a_server_that_answers_nothing_begins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with FakeComfyUI() as server:
        server.die()
        assert run(files_of(tmp_path, seeds(1)), server) == 2
    assert "No server answers" in capsys.readouterr().out
