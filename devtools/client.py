"""Speaking to a ComfyUI server over HTTP and its progress channel, whoever started it."""

from __future__ import annotations

import contextlib
import http.client
import json
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from .websocket import WebSocket

RUN_SECONDS = 300
HTTP_SECONDS = 60
QUIET_SECONDS = 5  # how long to wait for an event before asking whether the server still lives
CHUNK = 1 << 20
GATEWAY = (502, 503, 504)  # what a proxy answers whose server is away
# A server is spoken to directly, whatever proxy the environment names for the rest of the network.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
FINAL_EVENTS = ("execution_success", "execution_error", "execution_interrupted")

Prompt = dict[str, dict[str, Any]]
Listener = Callable[[str, dict[str, Any]], None]


class PromptRefused(Exception):
    """The server did not accept the prompt; ``errors`` is its answer, the text holds every message in it."""

    def __init__(self, errors: Any) -> None:
        self.errors = errors
        super().__init__(json.dumps(errors, ensure_ascii=False))


class PromptFailed(Exception):
    """A node raised while the prompt ran (or it was interrupted: ``type`` is then ``interrupted``)."""

    def __init__(self, event: dict[str, Any]) -> None:
        self.node_id: str = str(event.get("node_id", ""))
        self.node_type: str = event.get("node_type", "")
        self.type: str = event.get("exception_type", "interrupted")
        self.message: str = event.get("exception_message", "")
        self.executed: list[str] = event.get("executed", [])
        super().__init__(f"{self.node_type} (node {self.node_id}): {self.type}: {self.message}")


@dataclass
class Run:
    """What one prompt gave: ``outputs`` as in the history, every event, and the preview frames as sent."""

    prompt_id: str
    outputs: dict[str, Any] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: list[bytes] = field(default_factory=list)

    def files(self) -> list[dict[str, str]]:
        """Every file named in the outputs: ``filename``, ``subfolder`` and ``type``."""
        found = []
        for output in self.outputs.values():
            for items in filter(_is_listing, output.values()):
                found += [item for item in items if isinstance(item, dict) and "filename" in item]
        return found


class ComfyClient:
    """What can be asked of the server at ``url``."""

    def __init__(self, url: str) -> None:
        """``url`` without a path: ``http://127.0.0.1:8188``."""
        self.url = url

    def may_answer(self) -> bool:
        """False once the server is known to have ended."""
        return True

    def tail(self) -> str:
        """The end of the server's log, where it can be read."""
        return ""

    def ready(self) -> bool:
        """Whether the server answers."""
        try:
            self.get("/system_stats", timeout=2)
        except (OSError, ValueError):  # gone, or something else that listens there
            return False
        return True

    def get(self, path: str, timeout: float = HTTP_SECONDS) -> Any:
        """GET a path that answers JSON."""
        return json.loads(self.fetch(path, timeout))

    def fetch(self, path: str, timeout: float = HTTP_SECONDS) -> bytes:
        """GET a path as bytes; urllib's HTTPError (an OSError) for an answer that is not 200."""
        with _opened(self.url + path, timeout) as answer:
            return bytes(answer.read())

    def post(self, path: str, payload: Any) -> Any:
        """POST JSON; gives the JSON answered, or None for an empty answer."""
        request = urllib.request.Request(
            self.url + path, json.dumps(payload).encode("utf-8"), {"Content-Type": "application/json"}
        )
        with _opened(request, HTTP_SECONDS) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """What the server tells of all nodes, or of one."""
        return dict(self.get(f"/object_info/{node}" if node else "/object_info"))

    def file(self, item: dict[str, str]) -> bytes:
        """The bytes of a file named in an output."""
        return b"".join(self.pieces(item))

    def pieces(self, item: dict[str, str]) -> Iterator[bytes]:
        """The same piece by piece; ConnectionError where it breaks off."""
        query = urllib.parse.urlencode({key: item.get(key, "") for key in ("filename", "subfolder", "type")})
        with _opened(f"{self.url}/view?{query}", HTTP_SECONDS) as answer:
            expected, got = int(answer.headers.get("Content-Length") or -1), 0
            while chunk := answer.read(CHUNK):
                got += len(chunk)
                yield chunk
        if expected not in (-1, got):
            raise ConnectionError(f"{item['filename']} broke off after {got} of {expected} bytes")

    def upload(self, filename: str, content: bytes, subfolder: str) -> None:
        """Put a file into a folder below the server's input folder, over one of this name."""
        boundary = uuid.uuid4().hex
        safe = "".join("_" if character in '"\r\n' else character for character in filename)
        parts = [
            f'--{boundary}\r\nContent-Disposition: form-data; name="{key}"\r\n\r\n{value}\r\n'
            for key, value in (("subfolder", subfolder), ("type", "input"), ("overwrite", "true"))
        ]
        head = f'--{boundary}\r\nContent-Disposition: form-data; name="image"; filename="{safe}"\r\n'
        before = "".join([*parts, head, "Content-Type: application/octet-stream\r\n\r\n"]).encode()
        body = before + content + f"\r\n--{boundary}--\r\n".encode()
        kind = f"multipart/form-data; boundary={boundary}"
        request = urllib.request.Request(f"{self.url}/upload/image", body, {"Content-Type": kind})
        with _opened(request, HTTP_SECONDS) as answer:
            answer.read()

    def interrupt(self, prompt_id: str) -> None:
        """Stop the prompt while it runs."""
        self.post("/interrupt", {"prompt_id": prompt_id})

    def run(self, prompt: Prompt, timeout: float = RUN_SECONDS) -> dict[str, Any]:
        """Run a prompt in API form and give the outputs by node id."""
        return self.watch(prompt, timeout=timeout).outputs

    def watch(self, prompt: Prompt, listener: Listener | None = None, timeout: float = RUN_SECONDS) -> Run:
        """Run a prompt and keep all it sent; PromptRefused or PromptFailed where it did not succeed.

        ``listener(event, data)`` is called for every event while the prompt runs and may call :meth:`interrupt`.
        """
        client = uuid.uuid4().hex
        channel = WebSocket(f"{self.url}/ws?clientId={client}", HTTP_SECONDS)
        try:
            channel.send(json.dumps({"type": "feature_flags", "data": {"supports_preview_metadata": True}}))
            run = Run(self.queue(prompt, client))
            for event, data in self._events(channel, run, timeout):
                run.events.append((event, data))
                if listener is not None:
                    listener(event, data)
                if event in FINAL_EVENTS:
                    if event != "execution_success":
                        raise PromptFailed(data)
                    break
        finally:
            channel.close()
        run.outputs = self._history(run.prompt_id)["outputs"]
        return run

    def queue(self, prompt: Prompt, client: str, **more: Any) -> str:
        """Queue a prompt in API form; gives its id. PromptRefused where the server does not take it.

        Events go to the channel opened as ``client``; ``more`` are further fields of the request: ``prompt_id``.
        """
        # Node replacement in the server reads `_meta` of every node and answers 500 where there is none.
        complete = {key: {"_meta": {"title": node.get("class_type", "")}, **node} for key, node in prompt.items()}
        try:
            return str(self.post("/prompt", {"prompt": complete, "client_id": client, **more})["prompt_id"])
        except urllib.error.HTTPError as error:
            if error.code in GATEWAY:
                raise
            body = error.read().decode("utf-8", "replace")
            with contextlib.suppress(json.JSONDecodeError):
                raise PromptRefused(json.loads(body)) from None
            raise PromptRefused(body) from None

    def _events(self, channel: WebSocket, run: Run, timeout: float) -> Iterator[tuple[str, dict[str, Any]]]:
        end = time.monotonic() + timeout
        while True:
            if time.monotonic() > end:
                raise TimeoutError(f"the prompt did not finish within {timeout:.0f} s\n{self.tail()}")
            try:
                message = channel.receive(QUIET_SECONDS)
            except TimeoutError:
                if not self.may_answer():
                    raise ConnectionError(f"ComfyUI ended while a prompt ran\n{self.tail()}") from None
                continue
            if message is None:
                raise ConnectionError(f"ComfyUI closed the connection\n{self.tail()}")
            if isinstance(message, bytes):
                run.previews.append(message)
                continue
            content = json.loads(message)
            data = content.get("data") or {}
            if data.get("prompt_id") == run.prompt_id:
                yield content["type"], data

    def _history(self, prompt_id: str) -> dict[str, Any]:
        for _ in range(100):  # the final event is sent a moment before the history is written
            found = self.get(f"/history/{prompt_id}")
            if prompt_id in found:
                return dict(found[prompt_id])
            time.sleep(0.05)
        raise TimeoutError(f"no history of prompt {prompt_id}")


def _is_listing(value: Any) -> bool:
    return isinstance(value, (list, tuple))


@contextlib.contextmanager
def _opened(request: str | urllib.request.Request, timeout: float) -> Iterator[Any]:
    """The answer to a request; whatever goes wrong on the way is an OSError."""
    try:
        with DIRECT.open(request, timeout=timeout) as answer:
            yield answer
    except http.client.HTTPException as error:
        raise ConnectionError(f"no proper HTTP: {type(error).__name__} {error}") from None
