"""What people and machines do to batch.py: each ends in a sentence, an exit status, and nothing lost or overwritten."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from opensora.devtools.batch import commands, outputs
from opensora.devtools.batch.inputs import find_targets, read_workflow
from opensora.devtools.batch.ledger import FOLDER, Entry, Ledger, Lock, is_driven
from opensora.devtools.batch.outputs import recover
from opensora.devtools.batch.progress import _cut
from opensora.devtools.batch.table import read_table
from opensora.devtools.console import Problem
from opensora.devtools.places import REPOSITORY
from support.fake_comfyui import WORKFLOW, FakeComfyUI

Say = Callable[[], str]


@pytest.fixture
def server() -> Iterator[FakeComfyUI]:
    """A server that pretends."""
    with FakeComfyUI() as fake:
        yield fake


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Say:
    """What was said since the last call."""
    return lambda: capsys.readouterr().out


def job(folder: Path, rows: str, workflow: dict[str, Any] = WORKFLOW, table: str = "table.csv") -> list[str]:
    """The arguments of ``run``; workflow and table are written anew."""
    (folder / "workflow.json").write_text(json.dumps(workflow), encoding="utf-8")
    (folder / table).write_text(rows, encoding="utf-8")
    return ["run", str(folder / "workflow.json"), str(folder / table), "--out", str(folder / "out")]


def run(arguments: list[str], *urls: str) -> int:
    return commands.main([*arguments, "--quiet", "--patience", "0.2", "--servers", *urls])


def changed(**values: Any) -> dict[str, Any]:
    """The workflow with other values in its sampler."""
    workflow: dict[str, Any] = json.loads(json.dumps(WORKFLOW))
    workflow["4"]["inputs"].update(values)
    return workflow


# ---- running again after an edit ----


def test_rows_put_in_at_the_top_are_told_from_rows_that_changed(tmp_path: Path, server: FakeComfyUI, said: Say) -> None:
    assert run(job(tmp_path, "seed\n1\n2\n"), server.url) == 0
    said()
    assert run(job(tmp_path, "seed\n9\n1\n2\n"), server.url) == 2
    first, second, *_ = said().splitlines()
    assert "line 2" in first and "those of line 3: add new rows at the end" in first and "line 3" in second
    assert run(job(tmp_path, "seed\n1\n2\n9\n"), server.url) == 0
    assert [prompt["4"]["inputs"]["seed"] for prompt in server.made] == [1, 2, 9]


def test_a_changed_workflow_is_one_sentence(tmp_path: Path, server: FakeComfyUI, said: Say) -> None:
    rows = "seed\n" + "".join(f"{seed}\n" for seed in range(9))
    assert run(job(tmp_path, rows), server.url) == 0
    said()
    assert run(job(tmp_path, rows, changed(steps=9)), server.url) == 2
    assert [line.count("all 9 finished rows") for line in said().splitlines()] == [1, 0]
    assert run([*job(tmp_path, rows, changed(steps=9)), "--name", "nine-{row}"], server.url) == 0
    assert len(server.made) == 18


def test_results_that_were_deleted_are_made_again(tmp_path: Path, server: FakeComfyUI, said: Say) -> None:
    arguments = job(tmp_path, "seed\n1\n2\n3\n")
    assert run(arguments, server.url) == 0
    (tmp_path / "out" / "00002.mp4").unlink()
    said()
    assert run(arguments, server.url) == 0
    assert "1 finished rows have lost their files" in said() and (tmp_path / "out" / "00002.mp4").is_file()
    assert [prompt["4"]["inputs"]["seed"] for prompt in server.made] == [1, 2, 3, 2]


def test_files_of_others_are_neither_overwritten_nor_deleted(tmp_path: Path, server: FakeComfyUI, said: Say) -> None:
    out = tmp_path / "out"
    out.mkdir()
    others = [out / "00002.webm", out / "film.part-2.mkv", out / "notes.part-final"]
    for path in others:
        path.write_text("mine", encoding="utf-8")
    (out / "00001.mp4.part-0a1b2c3d").touch()  # of a driver that was killed
    arguments = job(tmp_path, "seed\n1\n2\n")
    assert run(arguments, server.url) == 2 and "line 3" in (told := said()) and "00002.webm" in told
    assert not server.begun
    others[0].rename(out / "elsewhere.webm")
    assert run(arguments, server.url) == 0
    assert sorted(path.name for path in out.iterdir() if path.is_file()) == [
        "00001.mp4",
        "00002.mp4",
        "elsewhere.webm",
        "film.part-2.mkv",
        "notes.part-final",
    ]


@pytest.mark.parametrize("metadata", [True, False])
def test_a_result_whose_ledger_lost_it_is_no_file_of_others(tmp_path: Path, metadata: bool) -> None:
    arguments = job(tmp_path, "seed\n1\n")
    with FakeComfyUI(metadata=metadata) as server:
        assert run(arguments, server.url) == 0
        (tmp_path / "out" / FOLDER / "ledger.sqlite").unlink()
        assert run(arguments, server.url) == 0
        assert len(server.made) == 2


# ---- folders and disks ----


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs a folder that takes no files from anybody")
def test_a_folder_that_takes_no_files_is_a_sentence(tmp_path: Path, server: FakeComfyUI, said: Say) -> None:
    arguments = job(tmp_path, "seed\n1\n")
    for out in (Path("/proc/clips"), tmp_path / "table.csv", tmp_path / "table.csv" / "clips"):
        arguments[-1] = str(out)
        assert run(arguments, server.url) == 2
        assert str(out.parent if out.suffix == "" else out) in said()
    assert not server.begun


def test_a_full_disk_ends_the_run_and_the_same_command_continues(
    tmp_path: Path, server: FakeComfyUI, said: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = job(tmp_path, "seed\n1\n2\n3\n")
    with monkeypatch.context() as full:

        def fsync(handle: int) -> None:
            raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path))

        full.setattr(outputs.os, "fsync", fsync)
        assert run(arguments, server.url) == 1
        assert "No space left on device" in (told := said()) and "same command continues" in told
    assert not list((tmp_path / "out").glob("*.part-*"))
    assert run(arguments, server.url) == 0
    assert len(list((tmp_path / "out").glob("*.mp4"))) == 3


def test_a_ledger_that_cannot_be_written_is_a_sentence(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, make=True)
    ledger.plan([Entry("r", "key", 1, 1)])
    ledger._base.execute("PRAGMA query_only=ON")
    for write in (lambda: ledger.start("r", "w", "id"), lambda: ledger.plan([Entry("s", "key", 2, 2)]), ledger.cancel):
        with pytest.raises(Problem, match=r"ledger\.sqlite cannot be used: attempt to write"):
            write()


def test_errors_with_halves_of_characters_are_kept(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, make=True)
    ledger.plan([Entry("r", "key", 1, 1)])
    ledger.fail("r", "the server said \ud83d")
    assert ledger.entry("r").error == "the server said ?"


def test_looking_whether_a_driver_works_keeps_none_from_working(tmp_path: Path, server: FakeComfyUI, said: Say) -> None:
    arguments = job(tmp_path, "seed\n1\n")
    lock = Lock(tmp_path / "out" / FOLDER)
    assert is_driven(tmp_path / "out")
    threading.Timer(0.3, lock.release).start()  # as `status` does, only sooner
    Lock(tmp_path / "out" / FOLDER).release()
    with FakeComfyUI() as never, pytest.MonkeyPatch.context() as patch:
        lock = Lock(tmp_path / "out" / FOLDER)
        patch.setattr(commands, "engine", lambda _: pytest.fail("workers were started for a folder that is taken"))
        assert run(arguments, never.url) == 2
        assert f"cancel {tmp_path / 'out'}" in said()
        lock.release()
    assert run(arguments, server.url) == 0


def test_no_part_of_another_driver_is_deleted_while_it_works(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, make=True)
    recover(ledger)
    assert list(tmp_path.iterdir()) == [tmp_path / FOLDER]


# ---- servers that are none ----


@pytest.mark.parametrize(
    ("address", "text"),
    [
        ("http://127.0.0.1:99999", "Port out of range"),
        ("http://127.0.0.1:eight", "no address"),
        ("http://me:secret@127.0.0.1:8188", "no address"),
        ("http://127.0.0.1:8188/#/", "no address"),
        ("https://127.0.0.1:8188", "tunnel"),
        ("two words", "no address"),
        ("http://127.0.0.1:1", "No server answers"),
    ],
)
def test_addresses_of_nothing(tmp_path: Path, said: Say, address: str, text: str) -> None:
    assert run(job(tmp_path, "seed\n1\n"), address) == 2
    assert text in said() and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "answer", [b"SSH-2.0-OpenSSH_9\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n<html", b""]
)
def test_something_else_that_listens_is_no_server(tmp_path: Path, said: Say, answer: bytes) -> None:
    with socket.create_server(("127.0.0.1", 0)) as door:
        door.settimeout(20)

        def serve() -> None:
            connection, _ = door.accept()
            with connection:
                connection.sendall(answer)
                connection.recv(1 << 12)

        threading.Thread(target=serve, daemon=True).start()
        assert run(job(tmp_path, "seed\n1\n"), f"http://127.0.0.1:{door.getsockname()[1]}") == 2
    assert "No server answers" in said()


def test_servers_are_spoken_to_directly_whatever_proxy_is_named(tmp_path: Path, server: FakeComfyUI) -> None:
    environment = {**os.environ, "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9", "no_proxy": ""}
    command = [sys.executable, str(REPOSITORY / "batch.py"), *job(tmp_path, "seed\n1\n"), "--servers", server.url]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# ---- words of the world ----


def test_a_terminal_that_lacks_the_characters_shows_them_some_other_way(tmp_path: Path) -> None:
    rows = "prompt,seed\n猫 🐈 é,x\n"
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    with FakeComfyUI(fails=lambda prompt: "schlecht: 悪い 🐈") as server:
        for seed, status in (("x", 2), ("1", 1)):
            for form in ("--quiet", "--json"):
                arguments = job(tmp_path, rows.replace("x", seed))
                named = [*arguments, form, "--name", "{prompt}", "--servers", server.url]
                command = [sys.executable, str(REPOSITORY / "batch.py"), *named]
                done = subprocess.run(command, env=environment, capture_output=True)
                assert done.returncode == status and b"Traceback" not in done.stderr, done.stderr
                if form == "--json":
                    assert all(map(json.loads, done.stdout.splitlines()))


def test_names_and_prompts_of_any_script(tmp_path: Path, server: FakeComfyUI) -> None:
    prompts = ["猫が走る", "Größe: 100 %", "🐈‍⬛ cat", "e\u0301 and é", "שלום"]
    rows = "prompt\n" + "".join(f"{prompt}\n" for prompt in prompts)
    assert run([*job(tmp_path, rows), "--name", "{prompt:.40}"], server.url) == 0
    assert sorted(prompt["2"]["inputs"]["prompt"] for prompt in server.made) == sorted(prompts)
    names = sorted(path.stem for path in (tmp_path / "out").glob("*.mp4"))
    assert names == sorted(prompt.replace(":", "-") for prompt in prompts)


def test_wide_characters_do_not_break_the_line_that_lives() -> None:
    assert _cut("ab猫猫c", 6) == "ab猫猫" and _cut("e\u0301x", 2) == "e\u0301x" and _cut("abc", 2) == "ab"


# ---- tables and workflows ----


@pytest.mark.parametrize(
    ("name", "content", "line", "text"),
    [
        ("t.csv", "prompt,seed\na cat\n", 2, "1 cells and the header 2"),
        ("t.csv", "prompt;seed\na cat;1\n", 1, "not divided by a comma"),
        ("t.tsv", "prompt,seed\na cat,1\n", 1, "not divided by a tab"),
        ("t.jsonl", '{"prompt": "\\ud83d"}\n', 1, "half of a character"),
        ("t.jsonl", '{"prompt": ' + "[" * 200_000 + "\n", 1, "no JSON"),
    ],
)
def test_tables_of_another_make(tmp_path: Path, name: str, content: str, line: int, text: str) -> None:
    (tmp_path / name).write_text(content, encoding="utf-8")
    faults = read_table(tmp_path / name).faults
    assert [fault.line for fault in faults] == [line] and text in faults[0].text


def test_faults_are_short_whatever_a_cell_holds_and_json_for_programs(
    tmp_path: Path, server: FakeComfyUI, said: Say
) -> None:
    arguments = job(tmp_path, f"seed,steps,image,model_name\n{'9' * 5000},{'x' * 5000},{'y' * 5000},{'z' * 5000}\n")
    assert commands.main([*arguments, "--json", "--servers", server.url]) == 2
    told = [json.loads(line) for line in said().splitlines()]
    assert [(each["event"], each["line"]) for each in told] == [("fault", 2)] * 4
    assert all(len(each["text"]) < 300 + len(str(tmp_path)) for each in told)


@pytest.mark.parametrize(
    ("workflow", "text"),
    [
        ({"nodes": [], "links": []}, r"Export \(API\)"),
        ({"prompt": WORKFLOW}, "API form"),
        ([], "API form"),
        (changed(positive=["77", 0]), "positive of node 4 comes from node 77"),
    ],
)
def test_workflows_that_are_none(tmp_path: Path, workflow: Any, text: str) -> None:
    (tmp_path / "w.json").write_text(json.dumps(workflow), encoding="utf-8")
    with pytest.raises(Problem, match=text):
        read_workflow(tmp_path / "w.json")


@pytest.mark.parametrize("column", ["mode.strength", "v1.3 model.mode.strength", "4.mode.strength"])
def test_titles_and_inputs_may_have_dots(column: str) -> None:
    workflow = changed(**{"mode": "fast", "mode.strength": 0.5})
    workflow["4"]["_meta"]["title"] = "v1.3 model"
    targets, faults = find_targets(workflow, {column: 1})
    assert not faults and (targets[column].node, targets[column].name) == ("4", "mode.strength")


def test_names_take_values_as_the_inputs_do_and_an_unknown_field_is_told_once(
    tmp_path: Path, server: FakeComfyUI, said: Say
) -> None:
    arguments = job(tmp_path, "seed\n7\n8\n")
    assert run([*arguments, "--name", "{sed}-{row}"], server.url) == 2
    assert said().count("sed") == 1
    assert run([*arguments, "--name", "{seed:04d}"], server.url) == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.mp4")) == ["0007.mp4", "0008.mp4"]


def test_failed_rows_are_told_how_to_be_made_again(tmp_path: Path, said: Say) -> None:
    with FakeComfyUI(fails=lambda prompt: "dark") as server:
        assert run(job(tmp_path, "seed\n1\n"), server.url) == 1
    assert f"retry --failed {tmp_path / 'out'}" in said()
