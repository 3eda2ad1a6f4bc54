"""A ComfyUI server that runs already, as a worker: rows are queued there, waited for, and their files fetched."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import quote, urlsplit

from ..client import FINAL_EVENTS, HTTP_SECONDS, QUIET_SECONDS, ComfyClient, Prompt, PromptRefused, Run
from ..console import Problem
from ..websocket import WebSocket
from .outputs import MARK, Made
from .work import Job, RowFailed, SentFile, WorkerLost, content_of

HISTORY_TRIES = 40  # the final event is sent a moment before the history is written
POLL_SECONDS = 0.5  # where the progress channel cannot be opened
PATIENCE_SECONDS = 300  # how long a server that went away may take to come back
ASK_SECONDS = 2
INPUT_FOLDER = "opensora-batch"  # below the server's input folder
KEPT = "output"  # type of the files that are results; "temp" are previews


def checked_url(given: str) -> str:
    """The address of a server without a slash at its end; Problem for anything else."""
    example = "one looks like http://127.0.0.1:8188"
    try:
        parts = urlsplit(given if "://" in given else f"http://{given}")
        is_one = bool(parts.hostname) and parts.port != 0 and not (parts.query or parts.fragment or parts.username)
    except ValueError as error:  # a port that is none
        raise Problem(f"{given} is no address of a server ({error}); {example}") from None
    if parts.scheme == "https":
        raise Problem(f"{given}: https is not spoken; make a tunnel to the machine (ssh -L) and name that, {example}")
    if parts.scheme != "http" or not is_one or any(character.isspace() for character in given):
        raise Problem(f"{given} is no address of a server; {example}")
    return f"http://{parts.netloc}{parts.path.rstrip('/')}"


def machine_of(url: str) -> str:
    """The same for two addresses that are certainly one server's."""
    parts = urlsplit(url)
    host = "127.0.0.1" if parts.hostname in ("localhost", "::1") else parts.hostname
    return f"{host}:{parts.port or 80}{parts.path}"


class ServerWorker:
    """See :class:`.work.Worker`."""

    def __init__(self, url: str, row_seconds: float = 0.0, patience: float = PATIENCE_SECONDS) -> None:
        """``row_seconds``: a row that takes longer counts as a lost worker; 0 for no limit."""
        self.name = url
        self.client = ComfyClient(url)
        self._row_seconds, self._patience = row_seconds, patience
        self._sent: set[str] = set()
        self._under_way: str | None = None
        self._given_up: str | None = None
        self._began = False

    def object_info(self) -> dict[str, Any]:
        """What the server tells of its nodes; OSError where it does not answer."""
        return self.client.object_info()

    def make(self, job: Job) -> list[Made]:
        self._under_way, self._began = job.prompt_id, False
        try:
            made = self._results(self._run(job))
        except PromptRefused as error:
            raise RowFailed(refusal(error.errors)) from None
        except (OSError, ValueError) as error:
            raise WorkerLost(f"{self.name} does not answer as ComfyUI: {error}", self._began) from None
        finally:
            self._given_up, self._under_way = self._under_way, None
        self._given_up = None
        return made

    def recover(self, stopping: Callable[[], bool]) -> bool:
        end = time.monotonic() + self._patience
        while not stopping():
            if self.client.ready():
                self._sent.clear()
                self._drop(self._given_up)  # else it keeps the server from the next row
                return True
            if time.monotonic() > end:
                return False
            time.sleep(min(ASK_SECONDS, self._patience / 10))
        return False

    def interrupt(self) -> None:
        self._drop(self._under_way)

    def _drop(self, prompt_id: str | None) -> None:
        if prompt_id is not None:
            with contextlib.suppress(OSError, ValueError):
                self.client.post("/queue", {"delete": [prompt_id]})
                self.client.interrupt(prompt_id)

    def close(self) -> None:
        """Nothing is held open between rows."""

    # ---- one row ----

    def _run(self, job: Job) -> dict[str, Any]:
        """Queue the row unless the server has it already, and wait for its entry in the history."""
        channel = self._channel(job.prompt_id)
        try:
            if not self._is_queued(job.prompt_id):  # asked first: what leaves the queue is in the history by then
                entry = self._history(job.prompt_id)
                if entry is not None:
                    return entry
                self._queue(job, self._with_files(job))
            self._began = True
            return self._wait(job, channel)
        finally:
            if channel is not None:
                channel.close()

    def _channel(self, client: str) -> WebSocket | None:
        """The progress channel tells at once what asking tells later; where a proxy forbids it, asking is enough."""
        try:
            return WebSocket(f"{self.client.url}/ws?clientId={client}", HTTP_SECONDS)
        except ConnectionRefusedError:
            raise
        except OSError:
            return None

    def _queue(self, job: Job, prompt: Prompt) -> None:
        self.client.queue(
            prompt, job.prompt_id, prompt_id=job.prompt_id, extra_data={"extra_pnginfo": {MARK: job.settings}}
        )

    def _wait(self, job: Job, channel: WebSocket | None) -> dict[str, Any]:
        end = time.monotonic() + self._row_seconds if self._row_seconds else float("inf")
        unknown = 0
        while time.monotonic() < end:
            try:
                is_final = self._next_is_final(channel, job.prompt_id)
            except OSError:  # the channel broke; whether the server did is seen by asking it
                channel, is_final = None, False
            entry = self._history(job.prompt_id, HISTORY_TRIES if is_final else 1)
            if entry is not None:
                return entry
            # Twice, because a prompt is in neither list for a moment when it leaves the queue.
            unknown = 0 if self._is_queued(job.prompt_id) else unknown + 1
            if unknown > 1:
                raise WorkerLost(f"{self.name} no longer knows the row: it was restarted, or its queue cleared")
        self.interrupt()
        raise WorkerLost(f"{self.name} needed more than {self._row_seconds:.0f} s for a row")

    def _next_is_final(self, channel: WebSocket | None, prompt_id: str) -> bool:
        """Wait for the event that ends the row, or until it is time to ask; True for the event."""
        if channel is None:
            time.sleep(POLL_SECONDS)
            return False
        end = time.monotonic() + QUIET_SECONDS
        while time.monotonic() < end:
            try:
                message = channel.receive(max(0.1, end - time.monotonic()))
            except TimeoutError:
                return False
            if message is None:
                raise ConnectionError("the server closed the connection")
            if isinstance(message, str):
                content = json.loads(message)
                mine = (content.get("data") or {}).get("prompt_id") == prompt_id
                if mine and content.get("type") in FINAL_EVENTS:
                    return True
        return False

    def _is_queued(self, prompt_id: str) -> bool:
        queue = self.client.get("/queue")
        return any(item[1] == prompt_id for items in queue.values() for item in items)

    def _history(self, prompt_id: str, tries: int = 1) -> dict[str, Any] | None:
        for turn in range(tries):
            found = self.client.get(f"/history/{quote(prompt_id)}")
            if prompt_id in found:
                return dict(found[prompt_id])
            if turn + 1 < tries:
                time.sleep(0.05)
        return None

    # ---- files ----

    def _with_files(self, job: Job) -> Prompt:
        """The prompt with the names that the server gave to files sent there."""
        prompt = {key: {**node, "inputs": dict(node["inputs"])} for key, node in job.prompt.items()}
        for file in job.files:
            prompt[file.node]["inputs"][file.name] = self._send(file)
        return prompt

    def _send(self, file: SentFile) -> str:
        filename = f"{file.sha256[:12]}-{file.filename}"
        if filename not in self._sent:
            self.client.upload(filename, content_of(file), INPUT_FOLDER)
            self._sent.add(filename)
        return f"{INPUT_FOLDER}/{filename}"

    def _results(self, entry: dict[str, Any]) -> list[Made]:
        status = entry.get("status") or {}
        if status.get("status_str") == "error":
            raise RowFailed(failure(status.get("messages") or []))
        files = Run("", entry.get("outputs") or {}).files()
        return [Made(item["filename"], self._fetched(item)) for item in files if item.get("type") == KEPT]

    def _fetched(self, item: dict[str, Any]) -> Iterator[bytes]:
        try:
            yield from self.client.pieces(item)
        except OSError as error:
            raise WorkerLost(f"{self.name} does not give {item['filename']}: {error}") from None


def refusal(errors: Any) -> str:
    """What a server that refuses a prompt says, in one line."""
    if not isinstance(errors, dict):
        return f"refused: {' '.join(str(errors).split())[:500]}"
    said = []
    for node in (errors.get("node_errors") or {}).values():
        said += [
            f"{node.get('class_type')}: {each.get('message')}: {each.get('details')}" for each in node.get("errors", [])
        ]
    general = errors.get("error")
    if not said and general:
        said = [str(general.get("message", general)) if isinstance(general, dict) else str(general)]
    return " ".join(("refused: " + "; ".join(said)).split())


def failure(messages: list[Any]) -> str:
    """What the node said that ended a prompt, in one line."""
    for event, data in messages:
        if event == "execution_error":
            text = " ".join(str(data.get("exception_message", "")).split())
            return f"{data.get('node_type')} (node {data.get('node_id')}): {data.get('exception_type')}: {text}"
        if event == "execution_interrupted":
            return "interrupted at the server"
    return "the server says only that it failed"
