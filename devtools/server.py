"""A real ComfyUI server: started with its own base directory, spoken to over HTTP, stopped cleanly."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .console import Problem
from .websocket import WebSocket

PACK_FOLDER = "opensora"  # the name of the custom-node folder is also the name in web addresses
BASE_FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models")
START_SECONDS = 400  # 10 s on an idle machine; a busy one must not fail
STOP_SECONDS = 20
RUN_SECONDS = 300
HTTP_SECONDS = 60
QUIET_SECONDS = 5  # how long to wait for an event before asking whether the server still lives
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
            for items in output.values():
                found += [item for item in items if isinstance(item, dict) and "filename" in item]
        return found


def prepare_base(base: Path, pack: Path) -> None:
    """Make the folders of a ComfyUI base directory and link the pack into ``custom_nodes``."""
    for name in BASE_FOLDERS:
        (base / name).mkdir(parents=True, exist_ok=True)
    link_folder(pack, base / "custom_nodes" / PACK_FOLDER)
    settings = base / "user" / "default" / "comfy.settings.json"
    if not settings.exists():  # without it a first visit opens the template browser over the canvas
        settings.parent.mkdir(parents=True, exist_ok=True)
        settings.write_text(json.dumps({"Comfy.TutorialCompleted": True}), encoding="utf-8")


def _listen_to_interrupts() -> None:
    """In the new process: a shell's background job ignores Ctrl-C, and so would every program it starts."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def link_folder(source: Path, link: Path) -> None:
    """Make ``link`` show ``source``: a symbolic link, or on Windows a junction, which needs no special right."""
    if link.exists() and link.resolve() == source.resolve():
        return
    if link.is_symlink():
        link.unlink()
    if link.exists():
        raise Problem(f"{link} exists and is not a link to {source}: move it away.")
    if sys.platform == "win32":
        import _winapi

        _winapi.CreateJunction(str(source), str(link))
    else:
        link.symlink_to(source, target_is_directory=True)


def free_port() -> int:
    """A TCP port of this machine nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port now."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) != 0


class ComfyServer:
    """A headless ComfyUI process with the pack linked; use it as a context manager."""

    def __init__(
        self,
        python: Path,
        root: Path,
        base: Path,
        pack: Path,
        *,
        port: int | None = None,
        arguments: Sequence[str] = ("--cpu",),
    ) -> None:
        """``root`` is the ComfyUI folder, ``base`` the folder for models, inputs, outputs and the log."""
        self.python, self.root, self.base, self.pack = python, root, base, pack
        self.port = port or free_port()
        self.arguments = list(arguments)
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = base / "comfyui.log"
        self.seconds_to_ready = 0.0
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> ComfyServer:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    # ---- life ----

    def start(self, timeout: float = START_SECONDS) -> None:
        """Start the process and wait until it answers; Problem with the end of the log when it does not."""
        prepare_base(self.base, self.pack)
        started = time.monotonic()
        group: dict[str, Any] = {}
        if sys.platform == "win32":
            group["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP  # so that it alone gets Ctrl-Break
        else:
            group["preexec_fn"] = _listen_to_interrupts
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                self.command(), cwd=self.base, stdout=log, stderr=subprocess.STDOUT, env=_environment(), **group
            )
        try:
            self._wait(started + timeout)
        except BaseException:  # Ctrl-C too must not leave the process behind
            self.stop()
            raise
        self.seconds_to_ready = time.monotonic() - started

    def _wait(self, end: float) -> None:
        while not self.ready():
            if self._process is not None and self._process.poll() is not None:
                raise Problem(f"ComfyUI ended with exit code {self._process.returncode} while starting.\n{self.tail()}")
            if time.monotonic() > end:
                raise Problem(f"ComfyUI did not answer in time.\n{self.tail()}")
            time.sleep(0.1)

    def command(self) -> list[str]:
        """The command line; the database gets its own file, else a second server finds it locked."""
        database = f"sqlite:///{(self.base / 'user' / 'comfyui.db').as_posix()}"
        fixed = ["--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.base)]
        fixed += ["--database-url", database, "--disable-api-nodes", "--disable-auto-launch"]
        return [str(self.python), str(self.root / "main.py"), *fixed, *self.arguments]

    def ready(self) -> bool:
        """Whether the server answers."""
        try:
            self.get("/system_stats", timeout=2)
        except OSError:
            return False
        return True

    def running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def stop(self) -> int:
        """Ask the process to end as Ctrl-C does, and kill it only if it does not; gives the exit code."""
        process = self._process
        if process is None:
            return 0
        if process.poll() is None:
            if sys.platform == "win32":
                process.send_signal(signal.CTRL_BREAK_EVENT)
            else:
                process.send_signal(signal.SIGINT)
            try:
                process.wait(STOP_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._process = None
        return process.returncode

    # ---- log ----

    def log(self, start: int = 0) -> str:
        """What the server wrote since byte ``start``."""
        with open(self.log_path, "rb") as file:
            file.seek(start)
            return file.read().decode("utf-8", "replace")

    def log_size(self) -> int:
        """Bytes written so far; give it to :meth:`log` later."""
        return self.log_path.stat().st_size if self.log_path.exists() else 0

    def tail(self, lines: int = 30) -> str:
        """The end of the log."""
        return "\n".join(self.log().splitlines()[-lines:])

    # ---- speaking ----

    def get(self, path: str, timeout: float = HTTP_SECONDS) -> Any:
        """GET a path that answers JSON."""
        return json.loads(self.fetch(path, timeout))

    def fetch(self, path: str, timeout: float = HTTP_SECONDS) -> bytes:
        """GET a path as bytes; urllib's HTTPError (an OSError) for an answer that is not 200."""
        with urllib.request.urlopen(self.url + path, timeout=timeout) as answer:
            return bytes(answer.read())

    def post(self, path: str, payload: Any) -> Any:
        """POST JSON; gives the JSON answered, or None for an empty answer."""
        request = urllib.request.Request(
            self.url + path, json.dumps(payload).encode("utf-8"), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request, timeout=HTTP_SECONDS) as answer:
            body = answer.read()
        return json.loads(body) if body else None

    def object_info(self, node: str | None = None) -> dict[str, Any]:
        """What the server tells of all nodes, or of one."""
        return dict(self.get(f"/object_info/{node}" if node else "/object_info"))

    def file(self, item: dict[str, str]) -> bytes:
        """The bytes of a file named in an output."""
        return self.fetch("/view?" + urllib.parse.urlencode(item))

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
            run = Run(self._queue(prompt, client))
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

    def _queue(self, prompt: Prompt, client: str) -> str:
        # Node replacement in the server reads `_meta` of every node and answers 500 where there is none.
        complete = {key: {"_meta": {"title": node.get("class_type", "")}, **node} for key, node in prompt.items()}
        try:
            return str(self.post("/prompt", {"prompt": complete, "client_id": client})["prompt_id"])
        except urllib.error.HTTPError as error:
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
                if self._process is not None and not self.running():
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


def _environment() -> dict[str, str]:
    """The caller's environment without Python's search paths, and with all model downloads switched off."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
    return environment
