"""The workers as rank 0 has them: started, given the model, watched, told what to compute, and ended.

No call hangs. Whoever is dead closes its connections, which every other rank notices at once; whoever is silent
runs out of the patience of :mod:`.ranks`. Then rank 0 looks for the reason, ends what does not answer, and says it in
one sentence; the next call starts what is missing and lets all meet anew. An exception on rank 0, an interrupt say,
does the same without ending anybody.
"""

from __future__ import annotations

import logging
import os
import queue
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ..messages.quoting import shown_path
from ..storage.temporary import TemporaryFolder, cleared_leftovers
from .ranks import LOOPBACK, PATIENCE, RankLost
from .stack import Crew, Hook, Run
from .traffic import Link, link_between
from .wire import Wire, message
from .worker import BEAT, LEAVE, joined, store_at

logger = logging.getLogger("opensora")

SILENCE = 6 * BEAT
"""Seconds without a sign of life after which a worker that was lost counts as hanging."""

QUIET = 8.0
"""The same for a worker that is to begin or end a call. One that starts or loads may be :data:`LEAVING` quiet, since
libraries that are read in keep its other threads from running."""

STARTING = 180.0
"""Seconds a worker may need to start, and to begin or end a call, while it gives signs of life."""

LOADING = 3600.0
"""Seconds a worker may need to load a model, while it gives signs of life."""

ANSWERING = 2.0
"""Seconds in which workers say why they left a call."""

LOST = "The workers lost touch with one another, and none of them says why; the next run meets anew."
"""Why a call failed that nobody can be blamed for."""

MEETINGS = "ranks"
"""What the folder is for in which workers of one machine meet."""

MODEL, VAE = "model", "vae"
"""Slots: what a worker holds at the same time."""

LEAVING = 30.0
"""Seconds in which workers come to the end of a block and find that a call was left."""


def with_workers(workers: Workers, inputs: Mapping[str, Any], fingerprint: str, shared: Callable[[Crew], Hook]) -> Hook:
    """The stack hook of rank 0: workers are told to compute where its blocks would run, and only then.

    So a cache around it (:func:`.stack.inside`) decides for all ranks, and workers know nothing of it. ``inputs`` are
    what the network of rank 0 was called with, ``shared`` makes the hook that all ranks have.
    """

    def hook(x: Tensor, modulation: Tensor, run: Run) -> Tensor:
        with workers.call(inputs, fingerprint) as crew:
            return shared(crew)(x, modulation, run)

    return hook


COLLECTING = {"load": LOADING, "call": STARTING}
"""How long a worker's late answer is waited for, where it was told to do more than to come to the end of a block."""


def clear_leftovers() -> None:
    """Remove the meeting places of processes that were killed, and say so in the log."""
    for folder, why in cleared_leftovers(MEETINGS):
        logger.info("'%s', left by a ComfyUI that was killed, %s.", shown_path(folder), why or "is removed")


class WorkersFailed(RuntimeError):
    """A call that workers could not finish; the sentence says which and why."""


def started(command: Sequence[str], environment: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """A worker on this machine, with ``environment`` besides this process's own."""
    told = {**os.environ, **(environment or {})}
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=told)


class _Process:
    """One worker, as seen from outside; ``process`` is a ``Popen`` or has its face."""

    def __init__(self, process: Any, rank: int) -> None:
        self.rank, self.began, self.busy = rank, time.monotonic(), ""
        self.loading = MODEL, ""  # the slot of the last "load", and the name of what was to be loaded
        self.process, self.host = process, getattr(process, "host", LOOPBACK)
        self.wire = Wire(self.process.stdout, self.process.stdin)
        self.answers: queue.Queue[tuple[str, dict[str, Any]]] = queue.Queue()
        self.heard: float | None = None
        self._orders: queue.SimpleQueue[list[bytes] | None] = queue.SimpleQueue()  # None: there will be no more
        for work in (self._listen, self._send):
            threading.Thread(target=work, daemon=True).start()

    def _listen(self) -> None:
        while (message := self.wire.receive()) is not None:
            self.heard = time.monotonic()
            if message[0] != "beat":
                self.answers.put(message)

    def _send(self) -> None:
        """In a thread of its own, since a worker that hangs takes nothing out of a full pipe."""
        try:
            while (order := self._orders.get()) is not None:
                self.wire.write(order)
        except (OSError, ValueError):  # it has ended, or the pipe was closed: whoever waits for an answer sees it
            return

    def trouble(self, silence: float) -> str | None:
        """Why nothing more is to be expected of it; None where all is well."""
        code = self.process.poll()
        if code is not None:
            how = f"was ended by signal {-code}" if code < 0 else f"ended with code {code}"
            return f"Worker {self.rank} {how}."
        since = time.monotonic() - (self.heard or self.began)
        if since > (silence if self.heard else STARTING):
            return f"Worker {self.rank} has given no sign of life for {since:.0f} s and was ended."
        return None

    def answer(
        self, seconds: float, silence: float, meanwhile: Callable[[], None] = lambda: None
    ) -> tuple[str, dict[str, Any]]:
        """Its next answer. Raises :class:`WorkersFailed` where none comes within ``seconds``, or no sign of life.

        ``meanwhile`` is called several times a second and may raise.
        """
        until = time.monotonic() + seconds
        while (answer := self.look(until, seconds, silence)) is None:
            meanwhile()
        return answer

    def look(self, until: float, seconds: float, silence: float) -> tuple[str, dict[str, Any]] | None:
        """As :meth:`answer`, a moment of it: None where nothing is there yet."""
        try:
            said, content = self.answers.get(timeout=BEAT / 5)
        except queue.Empty:
            trouble = self.trouble(silence)
            if trouble is None and time.monotonic() > until:
                trouble = f"Worker {self.rank} did not answer within {seconds:.0f} s and was ended."
            if trouble is None or not self.answers.empty():
                return None
            self.kill()
            raise WorkersFailed(trouble) from None
        self.busy = "begun" if said == "begun" else ""
        return said, content

    def ask(self, word: str, **content: Any) -> None:
        """Give an order. Raises ValueError for what cannot travel."""
        self._orders.put(message(word, **content))
        self.busy = "" if word == "end" else word

    def leave(self) -> None:
        """Tell it that the call or the meeting is left; what it is busy with still has its answer."""
        self._orders.put(message(LEAVE))

    def kill(self) -> None:
        """End it, whatever it does."""
        self._orders.put(None)
        self.process.kill()
        self.process.wait()
        self.wire.close()


def _joined(store: Any, host: str, size: int, patience: float, direct: bool, link: Link | None) -> Crew:
    """Rank 0 among the others. Raises :class:`RankLost`.

    GPUs wait for one another without an end; where one of them died the thread that waits is left behind.
    """
    if not direct:
        return joined(store, host, 0, size, patience, direct, link)
    found: queue.SimpleQueue[Crew | Exception] = queue.SimpleQueue()
    device = torch.cuda.current_device() if torch.cuda.is_available() else None

    def join() -> None:
        try:
            if device is not None:
                torch.cuda.set_device(device)  # a thread begins with the first
            found.put(joined(store, host, 0, size, patience, direct, link))
        except Exception as error:
            found.put(error)

    threading.Thread(target=join, daemon=True).start()
    try:
        crew = found.get(timeout=LEAVING)
    except queue.Empty:
        raise RankLost("The GPUs waited for one another in vain.") from None
    if isinstance(crew, Exception):
        raise RankLost(str(crew)) from crew
    return crew


def _end(processes: dict[int, _Process]) -> None:
    """End workers, kindly and then not."""
    for process in processes.values():
        process.ask("end")
    for process in processes.values():
        with suppress(subprocess.TimeoutExpired):
            process.process.wait(timeout=ANSWERING)
        process.kill()
    processes.clear()


def _own(told: Mapping[int, Mapping[str, Any]]) -> str | None:
    """The sentence of the first that failed by itself, and not because others had left."""
    for rank, content in told.items():
        if content.get("kind") != "lost":
            short = "has too little memory for its part" if content["kind"] == "memory" else "failed"
            return f"Worker {rank} {short}: {content['sentence']}"
    return None


class Workers:
    """``count`` workers, made by ``start(rank)`` (rank 1 and up), which run :func:`.worker.serve_pipes`.

    They end with :meth:`close`, when nobody refers to this any more, and with this process. ``start`` gives what
    :func:`started` gives, or something with its face that says by ``host`` where the others reach it; ``host`` is where
    they reach this process. ``meanwhile`` is called while they are waited for, and may raise. ``direct``: all ranks
    have GPUs, which talk to one another; where they do not understand each other ``note`` says so, and they go on
    through the computer's memory. ``weighed``: ranks whose traffic would cost more time than they save wait.
    """

    def __init__(
        self,
        start: Callable[[int], Any],
        count: int,
        patience: float = PATIENCE,
        meanwhile: Callable[[], None] = lambda: None,
        direct: bool = False,
        host: str = LOOPBACK,
        weighed: bool = False,
    ) -> None:
        self._start, self.count, self._patience = start, count, patience
        self._meanwhile, self._direct, self._host, self._weighed = meanwhile, direct, host, weighed
        self.note = ""
        self._processes: dict[int, _Process] = {}
        self._loaded: dict[tuple[int, str], str] = {}
        self._crew: Crew | None = None
        self.said = ""
        self._folder: TemporaryFolder | None = None
        self._meetings = 0
        weakref.finalize(self, _end, self._processes)

    @property
    def pids(self) -> list[int]:
        """Of the workers that live, by rank."""
        living = [each for _, each in sorted(self._processes.items()) if each.process.poll() is None]
        return [each.process.pid for each in living]

    @property
    def link(self) -> Link | None:
        """By which calls are weighed; None where all ranks take part wherever they can."""
        return link_between(self._direct, self._host == LOOPBACK) if self._weighed else None

    def holds(self, slot: str) -> bool:
        """Whether some worker has a model in a slot."""
        return any(held == slot for _, held in self._loaded)

    def prepare(self, settings: Mapping[str, Any], name: str, slot: str = MODEL) -> None:
        """All workers alive, idle, with the model of ``settings``, and in one group. Raises :class:`WorkersFailed`.

        ``name`` tells models apart: workers that have loaded the one of this name keep it. What is in other slots
        stays there.
        """
        self._clear_away()
        for rank in range(1, self.count + 1):
            if rank not in self._processes:
                self._processes[rank] = _Process(self._start(rank), rank)
                self._leave()
        for rank, process in self._processes.items():
            if self._loaded.get((rank, slot)) != name:
                self._loaded.pop((rank, slot), None)
                process.ask("load", slot=slot, settings=dict(settings))
                process.loading = slot, name
        for rank, process in self._processes.items():
            if (rank, slot) not in self._loaded:
                self._expect(process, "done", LEAVING)
                self._loaded[rank, slot] = name
        if self._crew is None:
            self._meet()
        else:
            self._crew.begin()
        self.said = ""

    @contextmanager
    def call(self, inputs: Mapping[str, Any], fingerprint: str, slot: str = MODEL) -> Iterator[Crew]:
        """Workers compute their part of a call meanwhile; rank 0 does its own inside, with the crew it is given.

        Raises :class:`WorkersFailed` where a rank is lost; any exception from inside passes through.
        """
        crew = self._crew
        if crew is None:
            raise ValueError("The workers were not prepared for this call.")
        try:
            for process in self._processes.values():
                process.ask("call", slot=slot, inputs=dict(inputs), fingerprint=fingerprint)
            for process in self._processes.values():
                self._expect(process, "begun", QUIET)
            crew.everybody.clock.restart()
            yield crew
            self.said = crew.said
            for process in self._processes.values():
                self._expect(process, "done", QUIET)
        except RankLost:
            self._leave()
            reason = self._reason()
            if reason == LOST:
                self._not_directly(reason)
            raise WorkersFailed(reason) from None
        except BaseException:  # an interrupt, too
            self._leave()
            raise

    def close(self) -> None:
        """End all workers."""
        self._leave()
        _end(self._processes)
        self._loaded.clear()
        if self._folder is not None:
            self._folder.cleanup()
            self._folder = None

    def _leave(self) -> None:
        """Close the connections to the workers' groups, and have them do so, which ends what they are computing."""
        if self._crew is not None:
            for process in self._processes.values():
                process.leave()
            self._crew.leave()
        self._crew = None

    def _meet(self) -> None:
        """Everybody in a new group."""
        try:
            self._meet_as(self._direct)
        except WorkersFailed as error:
            if not self._direct:
                raise
            self._not_directly(str(error))
            self._clear_away()
            if len(self._processes) < self.count:
                raise
            self._meet_as(self._direct)

    def _not_directly(self, reason: str) -> None:
        if self._direct:
            self.note = f"GPUs go on through the computer's memory, since between themselves this happened: {reason}"
        self._direct = False

    def _meet_as(self, direct: bool) -> None:
        size, link = self.count + 1, self.link
        store, meeting = self._meeting(size)
        for rank, process in self._processes.items():
            told = {"meeting": meeting, "size": size, "patience": self._patience, "direct": direct}
            process.ask("join", rank=rank, host=process.host, link=link and asdict(link), **told)
        try:
            self._crew = _joined(store, self._host, size, self._patience, direct, link)
            for process in self._processes.values():
                self._expect(process, "done", LEAVING)
        except RankLost as error:
            raise WorkersFailed(self._reason(otherwise=str(error), seconds=LEAVING)) from None
        except BaseException:  # an interrupt, too: that all have joined is not known
            self._leave()
            raise

    def _meeting(self, size: int) -> tuple[Any, dict[str, Any]]:
        """A new store and where workers find it: a file, or a port that other machines reach.

        The folder of the files stays as long as the workers do: one that lets go of an earlier meeting's store only
        now signs off in its file. With the folder gone it would stand still for minutes, without a sign of life.
        """
        from torch.distributed import TCPStore

        if self._host != LOOPBACK:
            store = TCPStore(self._host, 0, None, True, wait_for_workers=False)
            return store, {"host": self._host, "port": store.port}
        if self._folder is None:
            self._folder = TemporaryFolder(MEETINGS)
        self._meetings += 1
        meeting = {"file": os.path.join(self._folder.name, f"meeting-{self._meetings}")}
        return store_at(meeting, size), meeting

    def _expect(self, process: _Process, word: str, silence: float) -> None:
        """The next answer is ``word``. Raises :class:`WorkersFailed` with the reason where it is not."""
        seconds = LOADING if process.busy == "load" else STARTING
        said, content = process.answer(seconds, silence, self._meanwhile)
        if said != word:
            self._leave()
            raise WorkersFailed(self._reason({process.rank: content}))

    def _reason(
        self, told: dict[int, dict[str, Any]] | None = None, otherwise: str = LOST, seconds: float = ANSWERING
    ) -> str:
        """Why a call failed: what workers say themselves, else that they are gone.

        All are asked at once, and only until one knows why: the others may still be loading, or computing a block.
        Ends those that are gone, and where nobody knows why, those that do not answer within ``seconds``; who meets
        gets more, since it may be the first thing it does.
        """
        told = dict(told or {})
        gone: list[str] = []
        until = time.monotonic() + seconds
        asked = list(self._processes.values())
        while not gone and _own(told) is None and (asked := [each for each in asked if each.busy]):
            for process in asked:
                try:
                    said, content = process.look(until, seconds, max(SILENCE, seconds)) or ("", {})
                except WorkersFailed as error:
                    gone.append(str(error))
                    continue
                if said == "failed":
                    told[process.rank] = content
        if (own := _own(told)) is not None:
            return own
        return " ".join(gone) or otherwise

    def _clear_away(self) -> None:
        """Take note of late answers of a call that was left, and of workers that are gone."""
        for rank, process in self._processes.items():
            try:
                while order := process.busy:
                    said, _ = process.answer(COLLECTING.get(order, LEAVING), LEAVING, self._meanwhile)
                    if order == "load" and said == "done":
                        slot, name = process.loading
                        self._loaded[rank, slot] = name
            except WorkersFailed:
                continue
        for rank in [rank for rank, process in self._processes.items() if process.trouble(LEAVING)]:
            self._processes.pop(rank).kill()
            self._loaded = {place: name for place, name in self._loaded.items() if place[0] != rank}
            self._leave()
