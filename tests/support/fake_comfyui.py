"""A ComfyUI that makes nothing: what a client needs of the server's API, in this process, as fast as sockets are.

It keeps ComfyUI's cache as an idea: a node runs when its inputs, or those of a node before it, differ from the last
prompt's. ``ran`` counts by class what had to run.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import queue
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

WEBSOCKET_KEY = "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

WORKFLOW: dict[str, Any] = {
    "1": {"class_type": "Loader", "inputs": {"model_name": "a.safetensors"}, "_meta": {"title": "Model"}},
    "2": {"class_type": "Encode", "inputs": {"prompt": "a cat", "model": ["1", 0]}, "_meta": {"title": "Words"}},
    "3": {"class_type": "LoadImage", "inputs": {"image": "example.png"}, "_meta": {"title": "First frame"}},
    "4": {
        "class_type": "Sampler",
        "inputs": {"seed": 1, "steps": 4, "cfg": 7.0, "fast": False, "positive": ["2", 0], "start": ["3", 0]},
        "_meta": {"title": "Sample"},
    },
    "5": {"class_type": "Save", "inputs": {"filename_prefix": "clip", "samples": ["4", 0]}, "_meta": {"title": "Save"}},
}

OBJECT_INFO: dict[str, Any] = {
    "Loader": {"input": {"required": {"model_name": [["a.safetensors", "b.safetensors"]]}}},
    "Encode": {"input": {"required": {"prompt": ["STRING", {"multiline": True}], "model": ["MODEL"]}}},
    "LoadImage": {"input": {"required": {"image": [["example.png"], {"image_upload": True}]}}},
    "Sampler": {
        "input": {
            "required": {
                "seed": ["INT", {"min": 0, "max": 2**64 - 1}],
                "steps": ["INT", {"min": 1, "max": 1000}],
                "cfg": ["FLOAT", {"min": 0.0, "max": 100.0}],
                "positive": ["CONDITIONING"],
            },
            "optional": {"fast": ["BOOLEAN"], "start": ["IMAGE"]},
        }
    },
    "Save": {"input": {"required": {"filename_prefix": ["STRING"], "samples": ["LATENT"]}}},
}


class FakeComfyUI:
    """Starts at once; ``url`` is its address. Use it as a context manager."""

    def __init__(
        self,
        seconds: float = 0.0,
        fails: Callable[[dict[str, Any]], str | None] = lambda prompt: None,
        refuses: Callable[[dict[str, Any]], str | None] = lambda prompt: None,
        metadata: bool = True,
        channel: bool = True,
        port: int = 0,
    ) -> None:
        """``fails`` and ``refuses`` give a reason by prompt; without ``channel`` there are no events."""
        self.seconds, self.fails, self.refuses, self.metadata, self.channel = seconds, fails, refuses, metadata, channel
        self.made: list[dict[str, Any]] = []
        self.begun: list[dict[str, Any]] = []
        self.uploaded: dict[str, bytes] = {}
        self.ran: Counter[str] = Counter()
        self.interrupts = 0
        self._files: dict[str, bytes] = {}
        self._history: dict[str, Any] = {}
        self._queue: list[tuple[str, dict[str, Any], dict[str, Any]]] = []
        self._running: str | None = None
        self._last: dict[str, str] = {}
        self._sockets: dict[str, socket.socket] = {}
        self._open: set[socket.socket] = set()
        self._guard = threading.RLock()
        self._new: queue.Queue[int] = queue.Queue()
        self._interrupted = threading.Event()
        self._dead = False
        self._serve(port)
        threading.Thread(target=self._work, daemon=True).start()

    def _serve(self, port: int) -> None:
        self._server = ThreadingHTTPServer(("127.0.0.1", port), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.url = f"http://127.0.0.1:{self.port}"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def __enter__(self) -> FakeComfyUI:
        return self

    def __exit__(self, *_: object) -> None:
        self.die()

    def die(self) -> None:
        """As after kill -9: nothing is answered, open connections break, queue and history are gone."""
        self._dead = True
        self._server.shutdown()
        self._server.server_close()
        with self._guard:
            self._queue.clear()
            self._history.clear()
            self._interrupted.set()
            for each in list(self._open):
                with contextlib.suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def rise(self) -> None:
        """Started again, at the same address."""
        self._dead = False
        self._interrupted.clear()
        self._last.clear()
        self._serve(self.port)

    # ---- what it does ----

    def _work(self) -> None:
        while True:
            self._new.get()
            with self._guard:
                if not self._queue:
                    continue
                prompt_id, prompt, extra = self._queue.pop(0)
                self._running = prompt_id
                self._interrupted.clear()
                self.begun.append(prompt)
            self._interrupted.wait(self.seconds) if self.seconds else None
            with self._guard:
                self._running = None
                if self._dead:
                    continue
                event, entry = self._entry(prompt_id, prompt, extra)
                self._history[prompt_id] = entry
            self._send(prompt_id, {"type": event, "data": {"prompt_id": prompt_id}})

    def _entry(self, prompt_id: str, prompt: dict[str, Any], extra: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        if self._interrupted.is_set():
            return _ended("execution_interrupted", {"node_id": "4"})
        reason = self.fails(prompt)
        if reason is not None:
            error = {
                "node_id": "4",
                "node_type": "Sampler",
                "exception_type": "ValueError",
                "exception_message": reason,
            }
            return _ended("execution_error", error)
        self.count(prompt)
        name = f"{prompt['5']['inputs']['filename_prefix']}_{len(self.made):05d}_.mp4"
        content = {"prompt": prompt, **(extra.get("extra_pnginfo", {}) if self.metadata else {})}
        self._files[name] = b"\x00" + json.dumps(content).encode() + b"\xff" * 1000
        self.made.append(prompt)
        files = [{"filename": name, "subfolder": "", "type": "output"}, {"filename": "p.png", "type": "temp"}]
        return "execution_success", {"outputs": {"5": {"images": files}}, "status": {"status_str": "success"}}

    def count(self, prompt: dict[str, Any]) -> None:
        """Note which nodes of this prompt have to run after the last one."""
        seen: dict[str, str] = {}

        def signature(key: str) -> str:
            if key not in seen:
                inputs = prompt[key]["inputs"]
                seen[key] = repr([signature(v[0]) if isinstance(v, list) else v for v in inputs.values()])
            return seen[key]

        self.ran.update(prompt[key]["class_type"] for key in prompt if self._last.get(key) != signature(key))
        self._last = seen

    def _send(self, client: str, content: dict[str, Any]) -> None:
        """One text frame."""
        channel = self._sockets.get(client)
        if channel is None:
            return
        payload = json.dumps(content).encode()
        head = (
            struct.pack("!BB", 0x81, len(payload))
            if len(payload) < 126
            else struct.pack("!BBH", 0x81, 126, len(payload))
        )
        with contextlib.suppress(OSError):
            channel.sendall(head + payload)

    # ---- what it answers ----

    def get(self, path: str) -> Any:
        """The answer as JSON or bytes; None for 404."""
        parts = urlsplit(path)
        with self._guard:
            if parts.path == "/system_stats":
                return {"system": {}}
            if parts.path == "/object_info":
                return OBJECT_INFO
            if parts.path == "/queue":
                running = [[0, self._running]] if self._running else []
                return {"queue_running": running, "queue_pending": [[0, item[0]] for item in self._queue]}
            if parts.path.startswith("/history/"):
                key = parts.path.rsplit("/", 1)[1]
                return {key: self._history[key]} if key in self._history else {}
            if parts.path == "/view":
                return self._files.get(parse_qs(parts.query)["filename"][0])
        return None

    def post(self, path: str, body: bytes) -> tuple[int, Any]:
        """Status and answer."""
        with self._guard:
            if path == "/upload/image":
                name = re.search(rb'filename="([^"]+)"\r\n[^\r]*\r\n\r\n(.*?)\r\n--', body, re.S)
                assert name is not None
                self.uploaded[name[1].decode()] = name[2]
                return 200, {"name": name[1].decode()}
            content = json.loads(body)
            if path == "/prompt":
                return self._queue_prompt(content)
            if path == "/queue":
                self._queue = [item for item in self._queue if item[0] not in content["delete"]]
            elif path == "/interrupt" and content.get("prompt_id") == self._running:
                self.interrupts += 1
                self._interrupted.set()
        return 200, None

    def _queue_prompt(self, content: dict[str, Any]) -> tuple[int, Any]:
        reason = self.refuses(content["prompt"])
        if reason is not None:
            error = {"message": "Value not in list", "details": reason}
            return 400, {"error": {"message": "no"}, "node_errors": {"4": {"class_type": "Sampler", "errors": [error]}}}
        prompt_id = content["prompt_id"]
        assert prompt_id not in self._history and prompt_id != self._running, "queued twice"
        self._queue.append((prompt_id, content["prompt"], content.get("extra_data", {})))
        self._new.put(1)
        return 200, {"prompt_id": prompt_id}


def _ended(event: str, data: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return event, {"outputs": {}, "status": {"status_str": "error", "messages": [[event, data]]}}


def _hold_channel(fake: FakeComfyUI, request: BaseHTTPRequestHandler) -> None:
    """Switch to WebSocket and keep the connection until the client leaves."""
    key = request.headers["Sec-WebSocket-Key"] + WEBSOCKET_KEY
    request.send_response(101)
    request.send_header("Upgrade", "websocket")
    request.send_header("Connection", "Upgrade")
    request.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(key.encode()).digest()).decode())
    request.end_headers()
    client = parse_qs(urlsplit(request.path).query)["clientId"][0]
    fake._sockets[client] = request.connection
    with contextlib.suppress(OSError):
        while request.connection.recv(1 << 12):
            time.sleep(0)
    fake._sockets.pop(client, None)


def _handler(fake: FakeComfyUI) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def handle(self) -> None:
            with contextlib.suppress(OSError):  # whoever asked may have been killed
                super().handle()

        def setup(self) -> None:
            super().setup()
            fake._open.add(self.connection)

        def finish(self) -> None:
            fake._open.discard(self.connection)
            with contextlib.suppress(OSError):
                super().finish()

        def do_GET(self) -> None:
            if self.path.startswith("/ws") and fake.channel:
                _hold_channel(fake, self)
                return
            answer = fake.get(self.path)
            self._answer(404 if answer is None else 200, answer)

        def do_POST(self) -> None:
            self._answer(*fake.post(self.path, self.rfile.read(int(self.headers["Content-Length"]))))

        def _answer(self, status: int, content: Any) -> None:
            body = content if isinstance(content, bytes) else b"" if content is None else json.dumps(content).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            """Silent."""

    return Handler
