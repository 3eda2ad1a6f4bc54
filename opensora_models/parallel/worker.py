"""The process beside one device that helps with calls: it loads what it is told, joins the others, computes its part.

It ends when its end of the pipe is closed, whatever it is doing then, so that nothing is left behind a process that was
killed. An error ends the call and not the worker: it leaves its groups, which wakes whoever waits for it there, says
what happened, and keeps what it has loaded.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Protocol

import torch

from .ranks import Clock, RankLost, Ranks, direct_ranks, loopback_ranks
from .stack import Crew
from .traffic import Link
from .wire import Wire

BEAT = 0.5
"""Seconds between two signs of life."""

LEAVE = "leave"
"""The order that is followed at once and has no answer: rank 0 has left the call."""

JOINING = 8.0
"""Seconds that ranks which are all ready wait for one another to join a group."""

Message = tuple[str, dict[str, Any]]


class Task(Protocol):
    """What a worker computes with."""

    fingerprint: str
    """Of weights, patches and settings; calls are refused where it is another one than the caller's."""

    def ready(self, crew: Crew, inputs: Mapping[str, Any]) -> None:
        """All that a call needs is on the device, so that ranks begin together."""

    def compute(self, crew: Crew, inputs: Mapping[str, Any]) -> None:
        """This rank's part of one call; the result stays with rank 0."""


def store_at(meeting: Mapping[str, Any], size: int) -> Any:
    """The store in which ranks find one another: ``{"file": path}`` on one machine, ``{"host", "port"}`` on several."""
    from torch.distributed import FileStore, TCPStore

    if "file" in meeting:
        return FileStore(meeting["file"], size)
    # Without one, a port that a firewall keeps silent is tried for five minutes, and nobody says which.
    return TCPStore(meeting["host"], meeting["port"], None, False, timeout=timedelta(seconds=JOINING))


def joined(
    store: Any, host: str, rank: int, size: int, patience: float, direct: bool, link: Link | None = None
) -> Crew:
    """This rank, which the others reach at ``host``, among them; ``direct``: GPUs that talk to one another.

    ``link`` is what :class:`.stack.Crew` is told. Raises :class:`RankLost` where they do not understand each other.
    """
    from torch.distributed import PrefixStore

    clock = Clock()

    def open_group(name: str, place: int, count: int) -> Ranks:
        open_ranks = direct_ranks if direct else loopback_ranks
        ranks = open_ranks(PrefixStore(name, store), place, count, JOINING, patience, host)
        ranks.clock = clock
        return ranks

    everybody = open_group("everybody", rank, size)
    clock.restart()
    everybody.try_out()
    return Crew(everybody, open_group, link)


def serve(wire: Wire, load: Callable[[Mapping[str, Any]], Task]) -> None:
    """Follow orders until told to end; ``load`` makes a task of the settings of a "load" order."""
    orders: queue.SimpleQueue[Message] = queue.SimpleQueue()
    worker = _Worker(wire, load)
    threading.Thread(target=_listen, args=(wire, orders, worker), daemon=True).start()
    threading.Thread(target=_beat, args=(wire,), daemon=True).start()
    while True:
        word, content = orders.get()
        if word == "end":
            return
        worker.follow(word, content)


def serve_pipes(load: Callable[[Mapping[str, Any]], Task]) -> None:
    """:func:`serve` on standard input and output; what is printed meanwhile goes to the error output."""
    reader, writer = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    sys.stdin = None  # type: ignore[assignment]  # nobody else may read orders
    serve(Wire(reader, writer), load)


def _listen(wire: Wire, orders: queue.SimpleQueue[Message], worker: _Worker) -> None:
    while (order := wire.receive()) is not None:
        if order[0] == LEAVE:
            worker.wake()
        else:
            orders.put(order)
    os._exit(0)  # the main thread may be waiting for somebody who is gone, too


def _beat(wire: Wire) -> None:
    while True:
        try:
            wire.send("beat")
        except (OSError, ValueError):  # nobody listens, or the pipe is closed: the other thread sees that as well
            return
        time.sleep(BEAT)


class _Worker:
    def __init__(self, wire: Wire, load: Callable[[Mapping[str, Any]], Task]) -> None:
        self._wire, self._load = wire, load
        self._tasks: dict[str, Task] = {}
        self._crew: Crew | None = None

    def follow(self, word: str, content: dict[str, Any]) -> None:
        """One order; its answer is "done" or "failed" with a kind and a sentence."""
        try:
            work: dict[str, Callable[..., None]] = {"load": self._loaded, "join": self._join, "call": self._call}
            work[word](**content)
        except RankLost as error:
            self._failed("lost", error)
        except torch.OutOfMemoryError as error:
            self._failed("memory", error)
        except Exception as error:  # whatever it is, the one who asked has to be told
            self._failed("error", error)
        else:
            self._wire.send("done", order=word)

    def wake(self) -> None:
        """End the exchange in which the main thread may be waiting, as rank 0 has left.

        Gloo's ends by itself, as connections close; NCCL's goes on for as long as this rank is patient. The thread
        that wakes it is one of its own, since the one that listens must see when the pipe is closed.
        """
        if (crew := self._crew) is not None:
            threading.Thread(target=crew.leave, daemon=True).start()

    def _failed(self, kind: str, error: Exception) -> None:
        self._leave()
        told = str(error).splitlines() or [""]
        self._wire.send("failed", kind=kind, sentence=f"{type(error).__name__}: {told[0]}")

    def _loaded(self, slot: str, settings: dict[str, Any]) -> None:
        self._tasks.pop(slot, None)  # its memory first
        self._tasks[slot] = self._load(settings)

    def _leave(self) -> None:
        if self._crew is not None:
            self._crew.leave()
        self._crew = None

    def _join(
        self, meeting: dict[str, Any], host: str, rank: int, size: int, patience: float, direct: bool, link: Any
    ) -> None:
        self._leave()
        known = None if link is None else Link(**link)
        self._crew = joined(store_at(meeting, size), host, rank, size, patience, direct, known)

    def _call(self, slot: str, inputs: dict[str, Any], fingerprint: str) -> None:
        task = self._tasks.get(slot)
        if task is None or self._crew is None:
            raise ValueError("This worker was asked to compute before it had loaded a model and joined the others.")
        if task.fingerprint != fingerprint:
            raise ValueError("This worker holds other weights or settings than the model that asks.")
        task.ready(self._crew, inputs)
        self._wire.send("begun")
        self._crew.everybody.clock.restart()
        with torch.no_grad():
            task.compute(self._crew, inputs)
