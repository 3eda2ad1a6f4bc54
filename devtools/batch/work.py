"""What a driver and its workers agree on: the job, what may go wrong with it, and what a worker can do."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from ..client import Prompt
from .outputs import Made


class RowFailed(Exception):
    """The row could not be made by a worker that is still there."""


class WorkerLost(Exception):
    """The worker ended, or cannot be reached; what it was making is not known to be at fault.

    ``began`` is False where the row never got there, so that it has nothing to do with it.
    """

    def __init__(self, text: str, began: bool = True) -> None:
        super().__init__(text)
        self.began = began


@dataclass(frozen=True)
class SentFile:
    """A file of the driver's machine that an input of a node shall name once the server has it."""

    node: str
    name: str
    filename: str
    sha256: str
    path: str
    content: bytes | None = None  # filled where the worker cannot see the path


def content_of(file: SentFile) -> bytes:
    """Its bytes; RowFailed where they cannot be read: they could when the rows were checked."""
    try:
        return Path(file.path).read_bytes() if file.content is None else file.content
    except OSError as error:
        raise RowFailed(f"{file.path} cannot be read: {error.strerror}") from None


@dataclass(frozen=True)
class Job:
    """A row to be made. The worker calls it by ``prompt_id`` (a UUID), so that it can be asked for again later."""

    name: str
    prompt_id: str
    prompt: Prompt
    settings: dict[str, Any]
    files: Sequence[SentFile] = field(default=())


class Worker(Protocol):
    """One device that makes one row at a time. Its own thread calls its methods, ``interrupt`` others do."""

    name: str

    def make(self, job: Job) -> list[Made]:
        """Make the row, or take it over where it is under way or made already; RowFailed or WorkerLost."""

    def recover(self, stopping: Callable[[], bool]) -> bool:
        """After WorkerLost: wait until rows can be made again; False where that will not be."""

    def interrupt(self) -> None:
        """Give up the row under way; ``make`` then ends soon, whichever way. Never raises."""

    def close(self) -> None:
        """The worker is not needed any more. Never raises."""
