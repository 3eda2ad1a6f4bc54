"""Workers that an actor of Ray starts: the same calls and sentences, by a Ray of this machine where it is installed."""

from __future__ import annotations

import ast
import importlib.util
import os
import re
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from opensora.devtools.batch import ray_engine
from opensora.devtools.console import Problem
from opensora.opensora_models.parallel import on_ray, ray_connection
from opensora.opensora_models.parallel.on_ray import RayProcess, connected, free_gpus, own_address
from opensora.opensora_models.parallel.ranks import LOOPBACK
from opensora.opensora_models.parallel.workers import Workers, WorkersFailed
from support.parallel_cases import stdit3_inputs
from support.parallel_worker import CASE, TinyTask, program
from support.processes import gone

SETTINGS = {"strength": 1.0}


def test_without_ray_one_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as where it is not installed
    with pytest.raises(ValueError, match=r"^The input address is 'head:1', which needs Ray: .*pip install 'ray>=2.40'"):
        connected("head:1")


def test_batch_connects_to_ray_by_the_same_file_and_needs_nothing_else() -> None:
    """Whose door must open before there is an environment."""
    assert Path(ray_engine.CONNECTION.__file__) == Path(ray_connection.__file__) and ray_engine.LOCAL == on_ray.LOCAL
    tree = ast.parse(Path(ray_connection.__file__).read_text(encoding="utf-8"))
    names = {
        (node.module or "." if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for alias in node.names
    }
    assert names <= set(sys.stdlib_module_names)
    for other in (on_ray, ray_engine):
        text = Path(str(other.__file__)).read_text(encoding="utf-8")
        assert not re.search(r"RAY_AUTH|RAY_USAGE|ray\.init\(|import_module\(.ray.\)|ray>=", text), other.__name__


@contextmanager
def somebody(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """The address of somebody who does ``answer`` with whoever connects."""
    with socket.create_server((LOOPBACK, 0)) as server:

        def take() -> None:
            with suppress(OSError):  # closed
                while True:
                    with server.accept()[0] as connection:
                        answer(connection)

        threading.Thread(target=take, daemon=True).start()
        yield f"{LOOPBACK}:{server.getsockname()[1]}"
        server.shutdown(socket.SHUT_RDWR)


def greet(connection: socket.socket) -> None:
    """As a server of gRPC does: with a frame of settings, and a word that it has no such call; piece by piece."""
    settle(connection)
    for piece in (headers := frame(1, b"\x88\x5f\x10application/grpc\x00\x0bgrpc-status\x0212"))[:5], headers[5:]:
        connection.sendall(piece)
        time.sleep(0.01)


def frame(kind: int, content: bytes) -> bytes:
    """Of HTTP/2, on the stream of a first call where it is of one."""
    return len(content).to_bytes(3, "big") + bytes((kind, 0, 0, 0, 0, int(kind == 1))) + content


def settle(connection: socket.socket) -> None:
    """As a server of HTTP/2 begins: with a frame of settings, here of one."""
    connection.recv(999)
    for piece in (settings := frame(4, b"\0\4\0\x40\0\0"))[:7], settings[7:]:
        connection.sendall(piece)
        time.sleep(0.01)


def answer_a_browser(connection: socket.socket) -> None:
    settle(connection)
    connection.sendall(frame(4, b"") + frame(1, b"\x8d\x5f\x09text/html"))  # 404


def settle_and_drip(connection: socket.socket) -> None:
    """Frames, of which none answers, and no end."""
    settle(connection)
    with suppress(OSError):
        for _ in range(100):
            connection.sendall(frame(6, b"12345678"))
            time.sleep(0.05)


def settle_and_go(connection: socket.socket) -> None:
    settle(connection)
    connection.sendall(frame(7, b"\0" * 8))


@pytest.fixture
def listening() -> Iterator[str]:
    """The address of somebody who greets as Ray does."""
    with somebody(greet) as address:
        yield address


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_an_address_where_nobody_listens_is_refused_before_ray_asks_for_minutes(
    scheme: str, listening: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    asked: list[str] = []
    pretended = SimpleNamespace(init=lambda address, **given: asked.append(address), is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "ray", pretended)
    with socket.create_server((LOOPBACK, 0)) as server:
        closed = f"{LOOPBACK}:{server.getsockname()[1]}"
    told = f"^The input address is '{scheme}{closed}', and no Ray is there: nobody listens at {closed} "
    with pytest.raises(ValueError, match=told):
        connected(scheme + closed)
    with pytest.raises(Problem, match=f"^No Ray at {scheme}{closed}: nobody listens at {closed} "):
        ray_engine.connect(scheme + closed)
    assert asked == []
    for address in (scheme + listening, "auto"):
        assert connected(address) is pretended
    assert asked == [scheme + listening, "auto"]


def refuse(connection: socket.socket) -> None:
    """As a web server does."""
    connection.recv(99)
    connection.sendall(b"HTTP/1.0 400 Bad Request\r\n\r\n")


STRANGERS: dict[str, tuple[Callable[[socket.socket], object], str]] = {
    "a web server": (refuse, "a web server listens at {}; the port of a cluster is 6379 unless another was chosen"),
    "who says nothing": (lambda connection: time.sleep(1), "whoever listens at {} gives no answer within 0.3 s"),
    "who hangs up": (lambda connection: None, "whoever listens at {} does not answer as Ray does"),
    "a web server of HTTP/2": (answer_a_browser, "a web server listens at {}; the port of a cluster is 6379"),
    "who speaks HTTP/2 and answers no call": (settle_and_drip, "whoever listens at {} gives no answer within 0.3 s"),
    "who speaks HTTP/2 and goes": (settle_and_go, "whoever listens at {} does not answer as Ray does"),
    "another": (lambda connection: connection.sendall(b"SSH-2.0-x\r\n"), "whoever listens at {} does not answer as"),
}


@pytest.mark.parametrize("who", STRANGERS)
def test_an_address_where_another_than_ray_listens_is_refused_before_ray_asks_it_for_minutes(
    who: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", dict(os.environ))
    answer, told = STRANGERS[who]
    for part in (ray_connection, ray_engine.CONNECTION):
        assert part.GREETING <= 5
        if "0.3 s" in told:
            monkeypatch.setattr(part, "GREETING", 0.3)
    asked: list[str] = []
    pretended = SimpleNamespace(init=lambda address, **given: asked.append(address), is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "ray", pretended)
    with somebody(answer) as address:
        said = re.escape(told.format(address))
        with pytest.raises(ValueError, match=f"^The input address is '{address}', and no Ray is there: {said}"):
            connected(address)
        with pytest.raises(Problem, match=f"^No Ray at {address}: {said}"):
            ray_engine.connect(address)
        assert asked == []
        os.environ["RAY_USE_TLS"] = "1"  # none of them speaks it
        with pytest.raises(ValueError, match=f"whoever listens at {re.escape(address)} (does not|gives no) answer"):
            connected(address)
        assert asked == []


def test_who_is_asked_is_whom_ray_would_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which for ``auto`` may be the head of a cluster that is gone, and for localhost is this machine's address."""
    monkeypatch.setattr(os, "environ", dict(os.environ))
    with socket.create_server((LOOPBACK, 0)) as server:
        closed = f"{LOOPBACK}:{server.getsockname()[1]}"
    services = SimpleNamespace(canonicalize_bootstrap_address={"auto": closed, "local": None}.get)
    asked: list[str] = []
    pretended = SimpleNamespace(init=lambda address, **given: asked.append(address), is_initialized=lambda: False)
    pretended._private = SimpleNamespace(services=services)
    monkeypatch.setitem(sys.modules, "ray", pretended)
    with pytest.raises(ValueError, match=f"auto is {closed} for Ray, and nobody listens at {closed} \\("):
        connected("auto")
    assert connected("local") is pretended and asked == ["local"]


@pytest.mark.parametrize("place", ["local", "cluster"])
def test_a_ray_of_our_own_stays_on_the_loopback(place: str, listening: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_USAGE_STATS_ENABLED"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    asked: list[dict[str, Any]] = []
    pretended = SimpleNamespace(init=lambda **given: asked.append(given), is_initialized=lambda: False)
    monkeypatch.setitem(sys.modules, "ray", pretended)
    address = place if place == "local" else listening
    assert ray_engine.connect(address) is connected(address) is pretended
    own = place == "local"
    assert [("include_dashboard" in each, each["address"]) for each in asked] == [(own, address)] * 2
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0" and ("RAY_AUTH_TOKEN" in os.environ) == own
    assert os.environ.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER") == ("0" if own else None)


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    if importlib.util.find_spec("ray") is None:  # not imported yet: its token comes first
        pytest.skip("Ray is not installed: pip install -r requirements-dev.txt")
    before = dict(os.environ)
    module = connected(on_ray.LOCAL)
    yield module
    module.shutdown()
    os.environ.clear()
    os.environ.update(before)


def test_a_real_ray_is_taken_for_one_and_found_where_it_would_be_asked(
    ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = str(ray.get_runtime_context().gcs_address)
    ray_connection._expect_ray(ray, here)
    # Without it "auto" is any Ray of the machine, and other tests start some meanwhile.
    monkeypatch.setenv("RAY_ADDRESS", here)
    assert ray_connection._asked(ray, here) == ray_connection._asked(ray, "auto") == here


def test_another_cluster_is_refused_while_one_is_there(ray: Any) -> None:
    with pytest.raises(ValueError, match="^The input address is 'head:1', but this ComfyUI is connected") as refused:
        connected("head:1")
    assert (
        connected(str(refused.value).rpartition(" ")[2].rstrip(".")) is connected("auto") is connected("local") is ray
    )


def test_calls_are_those_of_one_process_and_an_actor_that_ends_is_replaced(ray: Any) -> None:
    assert free_gpus(ray) == torch.cuda.device_count() and own_address(ray, on_ray.LOCAL) == LOOPBACK
    workers = Workers(lambda rank: RayProcess(ray, program(rank), {}, 0, LOOPBACK), 1, host="localhost")
    task, inputs = TinyTask(SETTINGS), stdit3_inputs(CASE)
    alone = task.compute(None, inputs)

    def together(**fault: Any) -> torch.Tensor:
        workers.prepare(SETTINGS, "1.0")
        with workers.call({**inputs, **fault}, task.fingerprint) as crew:
            return task.compute(crew, {**inputs, **fault})

    assert torch.equal(together(), alone)
    (first,) = workers.pids
    began = time.monotonic()
    with pytest.raises(WorkersFailed, match="^Worker 1 (was ended by signal 9|failed)"):
        together(fault="kill", who=1)
    assert time.monotonic() - began < 30 and gone([first])
    assert torch.equal(together(), alone)
    pids = workers.pids
    workers.close()
    assert os.getpid() not in pids != [first] and gone(pids)
