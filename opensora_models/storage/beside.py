"""Files written beside the work: while one is encoded and flushed to the disk, what comes next is made.

One job at a time, so that memory holds one more part and no more. What a job raises comes out where the next one is
handed over, or at the end; a job that has begun is finished even where the work is interrupted.
"""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager

import torch

logger = logging.getLogger("opensora")

Job = Callable[[], object]


class Beside:
    """The thread of one writer. Made by :func:`beside`."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self._pool = pool
        self._job: Future[object] | None = None

    def start(self, job: Job, patience: float = 0.0) -> None:
        """Begin ``job`` when the one before it has ended. Raises what either has raised by then.

        ``patience``: seconds to look on; what fails often fails at once, and what comes next may cost minutes.
        """
        self.finish()
        inference, context = torch.is_inference_mode_enabled(), contextvars.copy_context()

        def run() -> object:
            with torch.inference_mode(inference):  # belongs to a thread, as does what the running node has said
                return context.run(job)

        self._job = self._pool.submit(run)
        if patience and wait([self._job], patience).done:
            self.finish()

    def finish(self) -> None:
        """Wait until nothing is being written. Raises what the job raised."""
        job, self._job = self._job, None
        if job is not None:
            job.result()


@contextmanager
def beside() -> Iterator[Beside]:
    """A thread for files, which has ended when this ends, however it does."""
    with ThreadPoolExecutor(1, thread_name_prefix="opensora-writer") as pool:
        writer = Beside(pool)
        try:
            yield writer
        except BaseException:
            _finish_behind(writer)
            raise
        writer.finish()


def _finish_behind(writer: Beside) -> None:
    """Where the work has failed or was interrupted, that is what a person hears of; the log has the rest."""
    try:
        writer.finish()
    except Exception as error:
        logger.warning("%s", error)
