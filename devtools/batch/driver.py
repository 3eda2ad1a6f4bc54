"""The driver: a thread for each worker, and one that watches, until every row is made or nothing can be done."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from .board import Board, Listener
from .ledger import Ledger
from .order import Group
from .outputs import write_parts
from .work import Job, RowFailed, Worker, WorkerLost

WATCH_SECONDS = 0.25
END_SECONDS = 30  # how long rows under way may take to give up


@dataclass(frozen=True)
class Ended:
    """How a run ended. ``why``: finished, cancelled, interrupted or stuck; ``error``: the driver's own."""

    why: str
    error: BaseException | None = None


class Driver:
    """Brings rows and workers together."""

    def __init__(
        self,
        ledger: Ledger,
        workers: Sequence[Worker],
        groups: Mapping[str, Group],
        job: Callable[[str, str], Job],
        listener: Listener,
        *,
        needs_files: bool = True,
    ) -> None:
        """``job(name, prompt_id)`` makes the job of a row. ``needs_files``: a row that gives no file has failed."""
        self.ledger, self.workers = ledger, list(workers)
        self.board = Board(ledger, [worker.name for worker in workers], groups, listener)
        self._job, self._needs_files = job, needs_files
        self._error: BaseException | None = None
        # Not asked of the threads: Ctrl-C in `Thread.join` makes Python up to 3.12 take a thread for ended.
        self._at_work = {worker.name: False for worker in workers}
        self._somebody_ended = threading.Event()

    def run(self, watch: Callable[[], None] = lambda: None) -> Ended:
        """Make all rows; ``watch`` is called a few times a second. After Ctrl-C the rows under way wait again."""
        why = "finished"
        try:
            for worker in self.workers:
                self._at_work[worker.name] = True
                threading.Thread(target=self._work, args=(worker,), daemon=True).start()
            why = self._watch(watch)
        except KeyboardInterrupt:
            why = "interrupted"
        finally:
            self._end()
        if why == "cancelled":
            self.ledger.cancel()
        if why == "finished" and self.ledger.counts()["waiting"]:
            why = "stuck"
        return Ended(why, self._error)

    def _watch(self, watch: Callable[[], None]) -> str:
        version = self.ledger.version()
        while any(self._at_work.values()):
            watch()
            self._somebody_ended.wait(WATCH_SECONDS)
            self._somebody_ended.clear()
            now = self.ledger.version()
            if now != version:
                version = now
                if self.ledger.wished("cancel"):
                    return "cancelled"
                self.board.take_in()
        return "finished"

    def _end(self) -> None:
        """Whatever is under way is given up, and every thread ends."""
        self.board.stop()
        end = time.monotonic() + END_SECONDS
        while any(self._at_work.values()) and time.monotonic() < end:
            for worker in self.workers:
                if self.board.members[worker.name].row is not None:
                    worker.interrupt()
            self._somebody_ended.wait(WATCH_SECONDS / 4)
            self._somebody_ended.clear()

    # ---- in the thread of a worker ----

    def _work(self, worker: Worker) -> None:
        try:
            while (taken := self.board.take(worker.name)) is not None:
                self._make(worker, *taken)
        except BaseException as error:  # the driver's own fault, or a full disk: nothing goes on
            self._error = self._error or error
            self.board.stop()
            with contextlib.suppress(Exception):
                row = self.board.members[worker.name].row
                if row is not None:
                    self.board.give_back(worker.name, row)
        finally:
            self._at_work[worker.name] = False
            self._somebody_ended.set()

    def _make(self, worker: Worker, name: str, prompt_id: str) -> None:
        job = self._job(name, prompt_id)
        started = time.monotonic()
        try:
            made = worker.make(job)
            if self._needs_files and not made:
                raise RowFailed("the workflow ended without a file; it needs a node that saves one")
            outputs = write_parts(self.ledger.out, name, made, job.settings)
        except RowFailed as error:
            if self.board.stopping:
                self.board.give_back(worker.name, name)
            else:
                self.board.fail(worker.name, name, str(error), time.monotonic() - started)
        except WorkerLost as error:
            if self.board.stopping:
                self.board.give_back(worker.name, name)
                return
            self.board.lose(worker.name, name, str(error), error.began)
            if self.board.members[worker.name].active and not worker.recover(lambda: self.board.stopping):
                self.board.set_aside(worker.name, f"it did not come back: {error}")
        else:
            self.board.save(worker.name, name, time.monotonic() - started, outputs)
