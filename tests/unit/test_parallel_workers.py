"""Workers that die, hang, run out of memory or hold other weights: one sentence, no hang, and the next call works."""

from __future__ import annotations

import io
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.caching.stack import StackCache
from opensora.opensora_models.caching.tables import StepTable
from opensora.opensora_models.parallel.ranks import LOOPBACK
from opensora.opensora_models.parallel.ranks import PATIENCE as RANKS_PATIENCE
from opensora.opensora_models.parallel.stack import inside
from opensora.opensora_models.parallel.traffic import MEMORY, PCIE
from opensora.opensora_models.parallel.wire import Wire
from opensora.opensora_models.parallel.workers import (
    ANSWERING,
    QUIET,
    SILENCE,
    Workers,
    WorkersFailed,
    _Process,
    clear_leftovers,
    started,
    with_workers,
)
from opensora.opensora_models.transformer.stack import STACK_HOOK
from support.parallel_cases import stdit3_inputs
from support.parallel_worker import CASE, Interrupted, TinyTask, interrupted, start
from support.processes import gone, python

pytestmark = [
    pytest.mark.skipif(os.name == "nt", reason="signals of Unix"),
    pytest.mark.usefixtures("one_thread"),  # as the workers have, for the last bits
]
SETTINGS = {"strength": 1.0}
PATIENCE = 4.0
NO_HANG = 10.0
BUSY = 60.0
"""Seconds for what takes a tenth of it on a machine with nothing else to do; a hang has no end."""


@pytest.fixture(scope="module")
def workers() -> Iterator[Workers]:
    made = Workers(start, 2, PATIENCE, direct=True)  # as if these were GPUs
    made.prepare(SETTINGS, "1.0")
    assert made.note.startswith(
        "GPUs go on through the computer's memory, since between themselves this happened: Rank"
    )
    yield made
    pids, folder = made.pids, meeting_place(made)
    made.close()
    assert len(pids) == 2 and gone(pids) and made.pids == [] and not folder.exists()


def meeting_place(workers: Workers) -> Path:
    """Where ranks leave the files by which they find one another."""
    assert workers._folder is not None
    return Path(workers._folder.name)


@pytest.fixture(scope="module")
def tasks() -> dict[float, TinyTask]:
    return {strength: TinyTask({"strength": strength}) for strength in (1.0, 0.5)}


def together(workers: Workers, task: TinyTask, **fault: Any) -> Tensor:
    """One call by all."""
    inputs = {**stdit3_inputs(CASE), **fault}
    with workers.call(inputs, task.fingerprint) as crew:
        return task.compute(crew, inputs)


def works(workers: Workers, task: TinyTask) -> None:
    """The next run does, and gives what one process gives."""
    strength = task.fingerprint.split()[-1]
    workers.prepare({"strength": float(strength)}, strength)
    assert torch.equal(together(workers, task), task.compute(None, stdit3_inputs(CASE)))


def test_calls_give_what_one_process_gives(workers: Workers, tasks: dict[float, TinyTask]) -> None:
    works(workers, tasks[1.0])
    works(workers, tasks[1.0])


def test_an_interrupt_in_mid_step_ends_the_call_and_nobody(workers: Workers, tasks: dict[float, TinyTask]) -> None:
    pids = workers.pids
    with pytest.raises(Interrupted):
        together(workers, tasks[1.0], fault="interrupt", who=0)
    works(workers, tasks[1.0])
    assert workers.pids == pids


def test_who_lets_go_of_an_earlier_meeting_late_finds_its_folder(
    workers: Workers, tasks: dict[float, TinyTask]
) -> None:
    """PyTorch's store opens its file once more when it ends; without the folder it waits 300 s and ends the process."""
    works(workers, tasks[1.0])
    folder, meetings = meeting_place(workers), workers._meetings
    with pytest.raises(Interrupted):
        together(workers, tasks[1.0], fault="interrupt", who=0)
    works(workers, tasks[1.0])
    assert workers._meetings > meetings and meeting_place(workers) == folder and folder.is_dir()


def test_a_meeting_that_is_interrupted_leaves_no_crew(
    workers: Workers, tasks: dict[float, TinyTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 has joined, and whether the others have is not known yet."""
    works(workers, tasks[1.0])
    workers._leave()
    with monkeypatch.context() as patched, pytest.raises(Interrupted):
        patched.setattr(_Process, "answer", lambda *args: interrupted())
        workers.prepare(SETTINGS, "1.0")
    assert workers._crew is None
    works(workers, tasks[1.0])


def test_who_waits_from_card_to_card_is_woken_by_an_interrupt_of_rank_0(
    workers: Workers, tasks: dict[float, TinyTask], tmp_path: Path
) -> None:
    """NCCL does not notice that rank 0 has left, and a helper of a decode is patient for an hour."""
    works(workers, tasks[1.0])
    pids, mark = workers.pids, tmp_path / "waits"
    inputs = {**stdit3_inputs(CASE), "deaf": str(mark)}
    with pytest.raises(Interrupted), workers.call(inputs, tasks[1.0].fingerprint):
        while not mark.exists():
            time.sleep(0.01)
        raise Interrupted
    works(workers, tasks[1.0])
    assert workers.pids == pids


FULL = r"Worker 1 has too little memory for its part: OutOfMemoryError: Tried to allocate 2.00 GiB."


def test_who_says_why_is_quoted_and_who_still_loads_is_left_alone(
    workers: Workers, tasks: dict[float, TinyTask], monkeypatch: pytest.MonkeyPatch
) -> None:
    works(workers, tasks[1.0])
    pids, faults, asked = workers.pids, {"1": "memory", "2": "busy"}, []
    with pytest.raises(WorkersFailed, match=f"^{FULL}$"):
        workers.prepare({**SETTINGS, "faults": faults}, "another")
    assert workers.pids == pids
    ask = _Process.ask

    def noted(process: _Process, word: str, **content: Any) -> None:
        asked.append((word, process.rank))
        ask(process, word, **content)

    monkeypatch.setattr(_Process, "ask", noted)
    workers.prepare(SETTINGS, "another")
    assert [rank for word, rank in asked if word == "load"] == [1], "what was loaded meanwhile is there"
    works(workers, tasks[1.0])
    assert workers.pids == pids


def test_who_says_why_is_quoted_and_who_still_makes_ready_is_left_alone(
    workers: Workers, tasks: dict[float, TinyTask]
) -> None:
    works(workers, tasks[1.0])
    pids = workers.pids
    with pytest.raises(WorkersFailed, match=f"^{FULL}$"):
        together(workers, tasks[1.0], unready={"1": "memory", "2": "busy"})
    works(workers, tasks[1.0])
    assert workers.pids == pids


def test_who_knows_why_is_heard_while_another_computes() -> None:
    silent = [sys.executable, "-c", "import time; time.sleep(60)"]
    workers = Workers(lambda rank: started(silent), 2)
    one, two = (_Process(started(silent), rank) for rank in (1, 2))
    workers._processes.update({1: one, 2: two})
    one.busy = two.busy = "call"
    threading.Timer(0.5, two.answers.put, [("failed", {"kind": "error", "sentence": "ValueError: No."})]).start()
    assert workers._reason() == "Worker 2 failed: ValueError: No." and one.process.poll() is None
    for each in (one, two):
        each.kill()
    workers.close()


@pytest.mark.parametrize(
    ("fault", "who", "sentence"),
    [
        ("memory", 1, FULL),
        ("error", 2, r"Worker 2 failed: ValueError: This block does not like you."),
        ("kill", 1, r"Worker 1 was ended by signal 9."),
        ("stop", 2, r"Worker 2 has given no sign of life for \d+ s and was ended."),
        ("stuck", 1, r"Worker 1 did not answer within \d+ s and was ended."),
    ],
)
def test_a_worker_that_fails_is_named_and_replaced(
    workers: Workers, tasks: dict[float, TinyTask], fault: str, who: int, sentence: str
) -> None:
    pids = workers.pids
    began = time.monotonic()
    with pytest.raises(WorkersFailed, match=f"^{sentence}$"):
        together(workers, tasks[1.0], fault=fault, who=who)
    assert time.monotonic() - began < BUSY
    works(workers, tasks[1.0])
    kept = [rank for rank, (before, after) in enumerate(zip(pids, workers.pids, strict=True), 1) if before == after]
    assert kept == ([1, 2] if fault in ("memory", "error") else [3 - who])


def test_what_is_waited_for_until_a_fault_is_said_is_no_more_than_ten_seconds() -> None:
    """Beside the time a rank has worked itself: an exchange that nobody answers, then the question why."""
    assert max(RANKS_PATIENCE, QUIET) + ANSWERING <= NO_HANG and SILENCE <= RANKS_PATIENCE


def test_a_step_cache_decides_for_all(workers: Workers, tasks: dict[float, TinyTask]) -> None:
    """What rank 0 reuses is computed by nobody; the run is that of one process with the same cache."""
    task, results = tasks[1.0], []
    workers.prepare(SETTINGS, "1.0")
    for hook in (None, with_workers):
        cache, x = StackCache(StepTable("1010", (1.0, 0.75, 0.5, 0.25))), stdit3_inputs(CASE)["x"]
        for level in (1.0, 0.75, 0.5, 0.25):
            inputs = {**stdit3_inputs(CASE), "x": x, "timestep": torch.tensor([1000 * level])}
            around = cache.around(["a"], level)
            inner = None if hook is None else hook(workers, inputs, task.fingerprint, task.hook)
            both = around if inner is None else inside(around, inner)
            with torch.no_grad():
                out = task.network(**inputs, transformer_options={STACK_HOOK: both})
            x = x + out[:, : x.shape[1]] / 4
        results.append(x)
        assert (cache.computed_rows, cache.reused_rows) == (2, 2)
    assert torch.equal(*results) and results[0].std() > 0.1


def test_the_same_workers_decode_and_stop_where_rank_0_stops(workers: Workers, tasks: dict[float, TinyTask]) -> None:
    task, latents = tasks[1.0], torch.randn(1, 4, 22, 4, 5, generator=torch.Generator().manual_seed(7))
    workers.prepare(SETTINGS, "1.0")
    told: list[tuple[int, int]] = []
    with workers.call({"latents": latents}, task.fingerprint) as crew:
        together = task.decode(crew, latents, lambda done, of: told.append((done, of)))
    assert torch.equal(together, task.decode(None, latents)) and told == [(n + 1, 5) for n in range(5)]

    def cancel(done: int, of: int) -> None:
        if done == 2:
            raise Interrupted

    with pytest.raises(Interrupted), workers.call({"latents": latents}, task.fingerprint) as crew:
        task.decode(crew, latents, cancel)
    works(workers, task)


def test_who_would_cost_more_time_than_it_saves_waits_as_long_as_the_call_takes(tasks: dict[float, TinyTask]) -> None:
    """A tiny clip through the computer's memory; waiting has no patience, which is for those who work."""
    task, inputs = tasks[1.0], stdit3_inputs(CASE)
    weighed = Workers(start, 1, patience=0.5, direct=True, weighed=True)
    assert weighed.link == PCIE
    weighed.prepare(SETTINGS, "1.0")
    assert weighed.link == MEMORY, "the GPUs that are none do not talk to one another"
    alone = task.compute(None, inputs)
    for fault in ({}, {"fault": "slow", "who": 0}):
        assert torch.equal(together(weighed, task, **fault), alone)
        assert weighed.said.startswith("1 rank as 1 x 1") and "by published rates" in weighed.said
        assert weighed.said.endswith("1 more waits, since sharing more would take longer.")
    weighed.close()


def test_an_error_of_rank_0_passes_through(workers: Workers, tasks: dict[float, TinyTask]) -> None:
    with pytest.raises(ValueError, match="This block does not like you"):
        together(workers, tasks[1.0], fault="error", who=0)
    works(workers, tasks[1.0])


def test_a_worker_that_dies_between_calls_is_replaced(workers: Workers, tasks: dict[float, TinyTask]) -> None:
    pid = workers.pids[0]
    os.kill(pid, signal.SIGKILL)
    while pid in workers.pids:
        time.sleep(0.01)
    works(workers, tasks[1.0])


def test_other_weights_are_refused_and_then_loaded(workers: Workers, tasks: dict[float, TinyTask]) -> None:
    pids, changed = workers.pids, tasks[0.5]
    with pytest.raises(WorkersFailed, match="failed: ValueError: This worker holds other weights or settings"):
        together(workers, changed)
    works(workers, changed)
    works(workers, tasks[1.0])
    assert workers.pids == pids


def test_what_cannot_travel_is_named(workers: Workers, tasks: dict[float, TinyTask]) -> None:
    with pytest.raises(ValueError, match="A function cannot be sent to another process"):
        together(workers, tasks[1.0], fault=lambda: None)
    works(workers, tasks[1.0])


PARENT = """
from opensora.opensora_models.parallel.workers import Workers
from support.parallel_worker import start
import time
workers = Workers(start, 1, host=sys.argv[1])
workers.prepare({"strength": 1.0}, "")
print(*workers.pids, flush=True)
time.sleep(120)
"""


def test_a_port_that_nobody_answers_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """As behind a firewall between machines; the worker gives signs of life meanwhile, and is not ended."""
    workers = Workers(start, 1, PATIENCE, host="localhost")
    meet = workers._meeting
    with socket.socket() as nobody, monkeypatch.context() as patched:
        nobody.bind((LOOPBACK, 0))  # and does not listen
        place = {"host": LOOPBACK, "port": nobody.getsockname()[1]}
        patched.setattr(workers, "_meeting", lambda size: (meet(size)[0], place))
        with pytest.raises(WorkersFailed, match=rf"^Worker 1 failed: .*{place['port']}"):
            workers.prepare(SETTINGS, "1.0")
    pids = workers.pids
    workers.prepare(SETTINGS, "1.0")
    assert workers.pids == pids != []
    workers.close()


@pytest.mark.parametrize("host", [LOOPBACK, "localhost"], ids=["by a file", "by a port"])
def test_nothing_is_left_behind_a_killed_parent(
    host: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Its workers end; where they met is cleared by the next start, and said."""
    caplog.set_level("INFO")
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)  # found anew
    parent = python(PARENT, host)
    assert parent.stdout is not None
    pids, folders = [int(pid) for pid in parent.stdout.readline().split()], list(tmp_path.iterdir())
    assert len(folders) == (host == LOOPBACK)
    clear_leftovers()
    assert list(tmp_path.iterdir()) == folders, "it lives"
    parent.kill()
    parent.wait()
    assert len(pids) == 1 and gone(pids)
    clear_leftovers()
    assert list(tmp_path.iterdir()) == []
    assert caplog.messages == [f"'{each}', left by a ComfyUI that was killed, is removed." for each in folders]


def test_messages_arrive_as_they_were_sent() -> None:
    content = {
        "numbers": [1, 2.5, None, True, "é"],
        "pair": (
            torch.arange(6).view(2, 3).t(),
            {"mask": torch.tensor([True]), "half": torch.ones((), dtype=torch.bfloat16)},
        ),
        "nothing": {},
    }
    sent = io.BytesIO()
    Wire(io.BytesIO(), sent).send("call", **content)
    wire = Wire(io.BytesIO(sent.getvalue()), io.BytesIO())
    received = wire.receive()
    assert received is not None and received[0] == "call" and wire.receive() is None
    word, arrived = received
    assert arrived["numbers"] == content["numbers"] and arrived["nothing"] == {}
    tensor, inside = arrived["pair"]
    assert isinstance(arrived["pair"], tuple) and torch.equal(tensor, torch.arange(6).view(2, 3).t())
    assert inside["half"].dtype == torch.bfloat16 and inside["mask"].tolist() == [True]
    assert Wire(io.BytesIO(sent.getvalue()[:-1]), io.BytesIO()).receive() is None, "cut short is an end"


def test_no_thread_outlives_its_worker() -> None:
    before = set(threading.enumerate())
    process = _Process(started([sys.executable, "-c", "import time; time.sleep(60)"]), 1)
    ours = set(threading.enumerate()) - before
    process.kill()
    for thread in ours:
        thread.join(BUSY)
    assert len(ours) == 2 and not any(thread.is_alive() for thread in ours)
