"""The parts of batch.py: the ledger under any order of events and kills, tables, columns, names, order."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pytest

from opensora.devtools.batch import host, leash, outputs
from opensora.devtools.batch.inputs import find_targets, plan_rows, read_workflow
from opensora.devtools.batch.ledger import FOLDER, Entry, Ledger, Output
from opensora.devtools.batch.naming import DEFAULT, LAYOUTS, name_rows, template_of
from opensora.devtools.batch.order import Grouping, Order, nodes_behind
from opensora.devtools.batch.outputs import Made, recover, rename_parts, write_parts
from opensora.devtools.batch.ray_engine import connect
from opensora.devtools.batch.servers import checked_url
from opensora.devtools.batch.table import Row, read_table
from opensora.devtools.console import Problem
from support.drivers import processes
from support.fake_comfyui import OBJECT_INFO, WORKFLOW
from support.patience import until
from support.processes import python


def entries(count: int) -> list[Entry]:
    return [Entry(f"r{i}", f"key{i}", i, i + 1) for i in range(count)]


# ---- the ledger ----


class Killed(Exception):
    """Stands for kill -9: nothing after it runs, not even what cleans up."""


@pytest.mark.parametrize("seed", range(12))
def test_whatever_is_killed_when_every_row_has_one_result(
    tmp_path: Path, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A driver killed at a random step, again and again; each life begins with what the last one left."""
    chance = random.Random(seed)
    names = [f"r{i}" for i in range(12)]
    finished: list[str] = []
    real_replace = outputs.os.replace

    def step(*_: Any) -> None:
        if chance.random() < 0.08:
            raise Killed

    def replace(source: Path, target: Path) -> None:
        step()
        real_replace(source, target)
        step()

    monkeypatch.setattr(outputs.os, "replace", replace)
    for _ in range(200):
        ledger = Ledger(tmp_path, make=True)
        try:
            recover(ledger)
            assert ledger.plan(entries(12)) == []
            for entry in ledger.entries("running"):
                ledger.give_back(entry.name)
            for entry in ledger.entries("waiting"):
                step()
                ledger.start(entry.name, "worker", "id")
                step()
                files = [Made("a.MP4", [entry.name.encode()]), Made("b.mp4", [b"second"])]
                parts = write_parts(tmp_path, entry.name, files, {"key": entry.name})
                step()
                ledger.save(entry.name, 1.0, parts)
                step()
                rename_parts(tmp_path, parts)
                step()
                ledger.finish(entry.name)
                finished.append(entry.name)
            break
        except Killed:
            continue
        finally:
            ledger.close()
    assert Ledger(tmp_path).counts()["done"] == 12 and len(finished) == len(set(finished))
    kept = sorted(path.name for path in tmp_path.iterdir() if path.name != FOLDER)
    assert kept == sorted([f"{name}.mp4" for name in names] + [f"{name}~2.mp4" for name in names])
    assert all((tmp_path / f"{name}.mp4").read_bytes() == name.encode() for name in names)


@pytest.mark.parametrize("seed", range(8))
def test_no_order_of_calls_makes_two_results_or_loses_a_row(tmp_path: Path, seed: int) -> None:
    """Random calls on random rows: each is allowed or refused, and a row that is done never becomes anything else."""
    chance = random.Random(seed)
    ledger = Ledger(tmp_path, make=True)
    ledger.plan(entries(5))
    done: set[str] = set()
    calls = {
        "start": lambda name: ledger.start(name, "w", "id"),
        "save": lambda name: ledger.save(name, 1.0, [Output("p", "f", "0")]),
        "finish": lambda name: ledger.finish(name),
        "fail": lambda name: ledger.fail(name, "no"),
        "give_back": lambda name: ledger.give_back(name, died=chance.random() < 0.5),
        "retry": lambda name: ledger.retry(["failed"]),
        "cancel": lambda name: ledger.cancel() if chance.random() < 0.1 else None,
        "plan": lambda name: ledger.plan(entries(5)),
    }
    for _ in range(400):
        name, call = f"r{chance.randrange(5)}", chance.choice(sorted(calls))
        before = ledger.entry(name).state
        try:
            calls[call](name)
        except ValueError as error:
            assert before in str(error), "a refusal says in which state the row is, and changes nothing"
            assert ledger.entry(name).state == before
        done |= {entry.name for entry in ledger.entries("done")}
        assert {entry.name for entry in ledger.entries("done")} == done
        assert sum(ledger.counts().values()) == 5


def test_files_that_are_not_whole_after_a_loss_of_power_are_made_again(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, make=True)
    ledger.plan(entries(2))
    for name in ("r0", "r1"):
        ledger.start(name, "w", "id")
        ledger.save(name, 1.0, write_parts(tmp_path, name, [Made("a.mp4", [b"bytes"])], {"key": "bytes"}))
    (tmp_path / ledger.entry("r1").outputs[0].part).write_bytes(b"byt")
    recover(ledger)
    assert [ledger.entry(name).state for name in ("r0", "r1")] == ["done", "waiting"]
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["r0.mp4"]


def test_a_changed_table_keeps_what_is_done(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path, make=True)
    ledger.plan(entries(3))
    ledger.start("r0", "w", "id")
    ledger.save("r0", 1.0, [])
    ledger.finish("r0")
    changed = [Entry("r1", "other", 1, 2), Entry("r9", "new", 2, 3)]
    assert ledger.plan(changed) == []
    assert {entry.name: entry.state for entry in ledger.entries()} == {"r0": "done", "r1": "waiting", "r9": "waiting"}
    assert [entry.name for entry in ledger.plan([Entry("r0", "other", 0, 1)])] == ["r0"]
    assert ledger.entry("r0").key == "key0" and ledger.counts()["waiting"] == 2, (
        "nothing of a refused table is taken in"
    )


def test_a_damaged_ledger_is_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(Problem, match="no ledger"):
        Ledger(tmp_path)
    (tmp_path / FOLDER).mkdir()
    (tmp_path / FOLDER / "ledger.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(Problem, match="cannot be used"):
        Ledger(tmp_path)


# ---- tables ----


def test_lines_are_those_an_editor_shows(tmp_path: Path) -> None:
    file = tmp_path / "t.csv"
    file.write_text('\ufeffprompt,seed\r\n"two\r\nlines",1\r\n\r\nlast,\r\n', encoding="utf-8", newline="")
    table = read_table(file)
    assert [(row.number, row.line, row.values) for row in table.rows] == [
        (1, 2, {"prompt": "two\r\nlines", "seed": "1"}),
        (2, 5, {"prompt": "last"}),
    ]
    file = tmp_path / "t.jsonl"
    file.write_text('{"prompt": "a\u2028b", "seed": null}\n\n{"seed": 3}\n', encoding="utf-8")
    assert [(row.line, row.values) for row in read_table(file).rows] == [(1, {"prompt": "a\u2028b"}), (3, {"seed": 3})]


@pytest.mark.parametrize(
    ("name", "content", "line", "said"),
    [
        ("t.csv", b"a,a\n1,2\n", 1, "twice"),
        ("t.csv", b"a,\n1,2\n", 1, "no name"),
        ("t.csv", b'a,b\n1,2\n"open,2\n', 3, "CSV"),
        ("t.csv", b"a,b\n1,2\n\xff,2\n", 3, "UTF-8"),
        ("t.csv", b"a,b\n", 0, "no rows"),
        ("t.jsonl", b'{"a": 1}\n{"a": }\n', 2, "no JSON"),
        ("t.jsonl", b'{"a": 1}\n[1]\n', 2, "object"),
        ("t.jsonl", b'{"a": 1, "a": 2}\n', 1, "twice"),
        ("t.xlsx", b"", 0, ".csv"),
        ("t.txt", b"\n\n", 0, "no rows"),
    ],
)
def test_what_is_wrong_with_a_table(tmp_path: Path, name: str, content: bytes, line: int, said: str) -> None:
    (tmp_path / name).write_bytes(content)
    faults = read_table(tmp_path / name).faults
    assert [fault.line for fault in faults] == [line] and said in faults[0].text


# ---- columns ----


@pytest.mark.parametrize(
    ("column", "node", "name"),
    [
        ("prompt", "2", "prompt"),
        ("seed", "4", "seed"),
        ("Sample.steps", "4", "steps"),
        ("Sampler.cfg", "4", "cfg"),
        ("4.fast", "4", "fast"),
    ],
)
def test_a_column_names_an_input(column: str, node: str, name: str) -> None:
    targets, faults = find_targets(WORKFLOW, {column: 1})
    assert not faults and (targets[column].node, targets[column].name) == (node, name)


@pytest.mark.parametrize(
    ("columns", "said"),
    [
        (["sed"], "did you mean 'seed'"),
        (["Sampel.steps"], "did you mean 'Sample'"),
        (["Sample.stepps"], "did you mean 'steps'"),
        (["positive"], "wired"),
        (["seed", "Sample.seed"], "same input"),
    ],
)
def test_a_column_that_names_none_is_told_the_nearest(columns: list[str], said: str) -> None:
    _, faults = find_targets(WORKFLOW, dict.fromkeys(columns, 7))
    assert [fault.line for fault in faults] == [7] and said in faults[0].text


def test_the_prompt_is_the_positive_one_and_other_doubles_must_be_named() -> None:
    workflow = json.loads(json.dumps(WORKFLOW))
    workflow["6"] = {"class_type": "Encode", "inputs": {"prompt": "bad", "model": ["1", 0]}}
    workflow["7"] = {"class_type": "Sampler", "inputs": {"seed": 3}, "_meta": {"title": "Again"}}
    workflow["4"]["inputs"]["negative"] = ["6", 0]
    targets, faults = find_targets(workflow, {"prompt": 1, "seed": 1, "_note": 1})
    assert targets["prompt"].node == "2" and "_note" not in targets
    assert "Sample.seed or Again.seed" in faults[0].text


@pytest.mark.parametrize(
    ("column", "value", "expected"),
    [
        ("seed", "18446744073709551615", 2**64 - 1),
        ("seed", " 7 ", 7),
        ("seed", 7.0, 7),
        ("cfg", "1e1", 10.0),
        ("fast", "No", False),
        ("prompt", 12, "12"),
    ],
)
def test_values_become_what_the_input_takes(tmp_path: Path, column: str, value: Any, expected: Any) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({column: value}), encoding="utf-8")
    planned, faults = plan_rows(WORKFLOW, read_table(tmp_path / "t.jsonl"), tmp_path, OBJECT_INFO)
    assert not faults and planned[0].values[column] == expected and type(planned[0].values[column]) is type(expected)


@pytest.mark.parametrize(
    ("column", "value"),
    [("seed", True), ("seed", -1), ("seed", "1.5"), ("seed", [1]), ("cfg", "inf"), ("fast", "perhaps"), ("prompt", {})],
)
def test_values_that_do_not_fit_are_refused(tmp_path: Path, column: str, value: Any) -> None:
    (tmp_path / "t.jsonl").write_text(json.dumps({column: value}), encoding="utf-8")
    _, faults = plan_rows(WORKFLOW, read_table(tmp_path / "t.jsonl"), tmp_path, OBJECT_INFO)
    assert len(faults) == 1 and faults[0].line == 1 and faults[0].text.startswith(f"{column}: ")


def test_a_node_the_server_lacks_is_found_before_anything_is_queued(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("a\n", encoding="utf-8")
    known = {name: info for name, info in OBJECT_INFO.items() if name != "Sampler"}
    _, faults = plan_rows(WORKFLOW, read_table(tmp_path / "t.txt"), tmp_path, known)
    assert ["Sampler" in str(fault) for fault in faults] == [True]


def test_a_workflow_as_the_page_saves_it_is_refused(tmp_path: Path) -> None:
    (tmp_path / "w.json").write_text('{"nodes": [], "links": []}', encoding="utf-8")
    with pytest.raises(Problem, match=r"Export \(API\)"):
        read_workflow(tmp_path / "w.json")


# ---- names ----


def named(template: str, *prompts: str) -> tuple[list[str], list[str]]:
    rows = [Row(i, i + 1, {"prompt": prompt}) for i, prompt in enumerate(prompts, 1)]
    names, faults = name_rows(template_of(template), rows, {"seed": 3})
    return names, [str(fault) for fault in faults]


def test_names_are_legal_and_differ() -> None:
    assert named(DEFAULT, "a", "b") == (["00001", "00002"], [])
    assert named("vbench", "a", "b", "a") == (["a-0", "b-0", "a-1"], [])
    assert named("{prompt}", 'a/b:c*"') == (["a-b-c--"], [])
    assert [fault.split(":")[0] for fault in named("{prompt}", "a", "A")[1]] == ["line 3"]
    assert "{prompt:.80}" in named("{prompt}", "x" * 300)[1][0]
    assert named("{prompt}", "con")[1] and named("{prompt}", "..")[1] and named("{nothing}", "a")[1]


@pytest.mark.parametrize("template", ["", "same", "../{row}", "/{row}", "{row", "{row}~2", "{row}*"])
def test_templates_that_cannot_name_files(template: str) -> None:
    with pytest.raises(Problem, match="--name"):
        template_of(template)


@pytest.mark.parametrize("field", ["prompt.__class__", "prompt[0]", "0"])
def test_a_field_reaches_nothing_but_values(field: str) -> None:
    assert named("{" + field + "}", "a")[1]
    assert set(LAYOUTS) == {"vbench"}


# ---- order ----


def test_what_is_dear_changes_least() -> None:
    assert [nodes_behind(WORKFLOW, key) for key in "124"] == [4, 3, 2]
    targets, _ = find_targets(WORKFLOW, {"seed": 1, "prompt": 1, "model_name": 1})
    grouping = Grouping(WORKFLOW, targets)
    assert grouping.dear == ["model_name"] and sorted(grouping.kept) == ["model_name", "prompt"]


@pytest.mark.parametrize("seed", range(5))
def test_every_row_is_taken_once_and_workers_stay_together(seed: int) -> None:
    chance = random.Random(seed)
    rows = [(f"{m}{p}{i}", (m, m + p)) for i in range(6) for m in "ab" for p in "xyz"]
    chance.shuffle(rows)
    order = Order()
    for name, group in rows:
        order.add(name, group, first=chance.random() < 0.1)
    groups = dict(rows)
    taken: list[tuple[str, str]] = []
    while True:
        worker = f"w{chance.randrange(2)}"
        name = order.take(worker)
        if name is None:
            break
        taken.append((worker, name))
    assert sorted(name for _, name in taken) == sorted(groups) and len(order) == 0
    for worker in ("w0", "w1"):
        visited = [groups[name] for by, name in taken if by == worker]
        changes = sum(one != two for one, two in zip(visited, visited[1:], strict=False))
        assert changes <= 14, "36 rows at random would change group about 15 times for each worker"


def test_taking_a_row_costs_the_same_for_many_groups() -> None:
    def seconds(count: int) -> float:
        order = Order()
        for i in range(count):
            order.add(str(i), ("", str(i)))
        start = time.process_time()
        for _ in range(500):
            order.take("w")
        return time.process_time() - start

    assert seconds(40_000) < 20 * seconds(400) + 0.05


# ---- engines ----


def test_a_comfyui_that_ends_while_it_starts_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray knows no actor then that could be told to close."""
    (tmp_path / "ComfyUI").mkdir()
    (tmp_path / "ComfyUI" / "main.py").write_text("raise SystemExit('no model here')", encoding="utf-8")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    settings = {"python": sys.executable, "comfyui": str(tmp_path / "ComfyUI"), "base": "", "arguments": []}
    with pytest.raises(Problem, match="(?s)while starting.*no model here"):
        host.Host({**settings, "row_seconds": 1.0})
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_leash_gives_the_programs_exit_status_and_says_nothing(tmp_path: Path) -> None:
    command = [sys.executable, leash.__file__, str(tmp_path / "own"), "-", sys.executable, "-c", "raise SystemExit(7)"]
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert holder.wait(30) == 7 and holder.stdout is not None and holder.stdout.read() == b""


@pytest.mark.parametrize("given", ["https://a", "ftp://a", "http://", "http://a?b=1"])
def test_addresses_that_are_none(given: str) -> None:
    with pytest.raises(Problem, match="http://127.0.0.1:8188"):
        checked_url(given)
    assert checked_url("127.0.0.1:8188/") == "http://127.0.0.1:8188"


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "token")  # so that what is set is taken back
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(Problem, match="pip install 'ray"):
        connect("local")


STARTER = """
import time
from pathlib import Path
from opensora.devtools.batch.host import LeashedServer
server = LeashedServer(Path(sys.executable), Path(sys.argv[1]), Path(sys.argv[1]), [])
server.ready = lambda: True
server.start()
print(server.base, flush=True)
time.sleep(60)
"""


@pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="finds processes in /proc")
def test_what_is_left_when_all_are_killed_is_removed_by_the_next_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """And not before the last of them has ended."""
    places = {name: tmp_path / name for name in ("ComfyUI", "temporary")}
    for place in places.values():
        place.mkdir()
    (places["ComfyUI"] / "main.py").write_text("import time; time.sleep(60)", encoding="utf-8")
    monkeypatch.setenv("TMPDIR", str(places["temporary"]))
    monkeypatch.setattr(tempfile, "tempdir", str(places["temporary"]))

    def next_start() -> Path:
        server = host.LeashedServer(Path(sys.executable), places["ComfyUI"], places["ComfyUI"], [])
        server.remove()
        return server.base

    starter = python(STARTER, places["ComfyUI"])
    assert starter.stdout is not None
    left = Path(starter.stdout.readline().strip())
    until(lambda: len(processes(str(left))) == 3)  # ComfyUI behind two of the leash
    assert next_start() != left and left.exists()
    (comfyui,) = {*processes(str(left))} - {*processes(str(left), "leash.py")}
    for pid in (starter.pid, *processes(str(left), "leash.py")):
        os.kill(pid, signal.SIGKILL)
    starter.wait()
    until(lambda: processes(str(left)) == [comfyui])
    assert next_start() and (left / "output").exists(), "ComfyUI lives"
    os.kill(comfyui, signal.SIGKILL)
    until(lambda: processes(str(left)) == [])
    assert caplog.messages == []
    assert next_start() and list(places["temporary"].iterdir()) == []
    assert caplog.messages == [f"'{left}', left by an actor that was killed, is removed."]


@pytest.mark.skipif(os.name == "nt", reason="has no kill -9")
@pytest.mark.parametrize("how", ["the starter", "the starter and its child, as Ray does"])
def test_a_leashed_program_ends_with_its_starter(tmp_path: Path, how: str) -> None:
    mark = tmp_path / "alive"
    (tmp_path / "own" / "temp").mkdir(parents=True)
    program = f"import time, pathlib\nwhile True:\n    pathlib.Path({str(mark)!r}).touch(); time.sleep(0.05)"
    holder = (
        "import subprocess, sys, time\n"
        f"leash = [{leash.__file__!r}, {str(tmp_path / 'own')!r}, '-']\n"
        f"command = [sys.executable, *leash, sys.executable, '-c', {program!r}]\n"
        "print(subprocess.Popen(command, stdin=subprocess.PIPE).pid, flush=True)\n"
        "time.sleep(60)"
    )
    starter = subprocess.Popen([sys.executable, "-c", holder], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    child = int(starter.stdout.readline())
    until(mark.exists)
    if how != "the starter":
        os.kill(child, signal.SIGKILL)
    starter.kill()
    starter.wait()
    until(lambda: not (tmp_path / "own").exists())  # which is removed last
    mark.unlink(missing_ok=True)
    time.sleep(0.3)
    assert not mark.exists(), "the program still runs"
