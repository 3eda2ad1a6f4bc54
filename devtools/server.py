"""A real ComfyUI server: started with its own base directory, stopped cleanly."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .client import ComfyClient
from .console import Problem

PACK_FOLDER = "opensora"  # the name of the custom-node folder is also the name in web addresses
BASE_FOLDERS = ("custom_nodes", "input", "output", "temp", "user", "models")
START_SECONDS = 400  # 10 s on an idle machine; a busy one must not fail
STOP_SECONDS = 20


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


class ComfyServer(ComfyClient):
    """A headless ComfyUI process with the pack linked; use it as a context manager."""

    stdin: int | None = None  # what the process gets as standard input, as for subprocess
    held: tuple[int, ...] = ()  # handles of this process that it gets as well, outside Windows

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
        super().__init__(f"http://127.0.0.1:{self.port}")
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
        self.prepare()
        started = time.monotonic()
        group: dict[str, Any] = {}
        if sys.platform == "win32":
            group["creationflags"] = subprocess.CREATE_NEW_PROCESS_GROUP  # so that it alone gets Ctrl-Break
        else:
            group["preexec_fn"] = _listen_to_interrupts
            group["pass_fds"] = self.held
        with open(self.log_path, "ab") as log:
            self._process = subprocess.Popen(
                self.command(),
                cwd=self.base,
                stdin=self.stdin,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=_environment(),
                **group,
            )
        try:
            self._wait(started + timeout)
        except BaseException:  # Ctrl-C too must not leave the process behind
            self.stop()
            raise
        self.seconds_to_ready = time.monotonic() - started

    def prepare(self) -> None:
        """Make the folders it runs in."""
        prepare_base(self.base, self.pack)

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

    def may_answer(self) -> bool:
        """False once the process this object started has ended."""
        return self._process is None or self.running()

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


def _environment() -> dict[str, str]:
    """The caller's environment without Python's search paths, and with all model downloads switched off."""
    environment = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME")}
    environment.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", PYTHONUNBUFFERED="1", PYTHONIOENCODING="utf-8")
    return environment
