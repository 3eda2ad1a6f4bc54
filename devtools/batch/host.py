"""What a Ray actor does: starts a headless ComfyUI of its own on its device, watches it, and makes rows with it."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..places import machine_file
from ..server import ComfyServer
from .leash import NOTHING
from .servers import ServerWorker
from .work import Job, RowFailed, SentFile, WorkerLost

logger = logging.getLogger("opensora")

TEMPORARY = machine_file("storage/temporary.py")
FOLDERS = "batch"
LEASH = Path(__file__).with_name("leash.py")


class LeashedServer(ComfyServer):
    """A ComfyUI with the models and custom nodes that are there, and with folders of its own for all it writes."""

    stdin = subprocess.PIPE

    def __init__(self, python: Path, root: Path, source: Path, arguments: Sequence[str]) -> None:
        """``source`` is the base directory that holds ``models``, ``custom_nodes`` and ``input``."""
        for folder, why in TEMPORARY.cleared_leftovers(FOLDERS):
            logger.warning("'%s', left by an actor that was killed, %s.", folder, why or "is removed")
        self._folder = TEMPORARY.TemporaryFolder(FOLDERS)
        self.held = (self._folder.handle,)
        super().__init__(python, root, Path(self._folder.name), source, arguments=arguments)
        self.source = source

    def prepare(self) -> None:
        """Folders to write in; nothing is linked."""
        for name in ("output", "temp", "user", "input"):
            (self.base / name).mkdir(parents=True, exist_ok=True)

    def command(self) -> list[str]:
        """The command line, behind the leash."""
        own = [("output", "output"), ("temp", "temp"), ("user", "user"), ("input", "input")]
        folders = [part for option, name in own for part in (f"--{option}-directory", str(self.base / name))]
        fixed = ["--listen", "127.0.0.1", "--port", str(self.port), "--base-directory", str(self.source), *folders]
        fixed += ["--database-url", f"sqlite:///{(self.base / 'comfyui.db').as_posix()}"]
        fixed += ["--disable-api-nodes", "--disable-auto-launch", *self.arguments]
        held = NOTHING if sys.platform == "win32" else str(self._folder.handle)
        return [sys.executable, str(LEASH), str(self.base), held, str(self.python), str(self.root / "main.py"), *fixed]

    def stop(self) -> int:
        """Let go of the leash first: whatever holds ComfyUI back, it then ends with it."""
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()
        return super().stop()

    def remove(self) -> None:
        """End it and delete what it wrote."""
        self.stop()
        self._folder.cleanup()


class Host:
    """The actor. Answers are plain values, so that both sides need not share a class."""

    def __init__(self, settings: dict[str, Any]) -> None:
        """``settings``: ``python``, ``comfyui``, ``base`` (paths on this machine), ``arguments``, ``row_seconds``."""
        root = Path(settings["comfyui"])
        base = Path(settings["base"] or root)
        self._server = LeashedServer(Path(settings["python"]), root, base, settings["arguments"])
        try:
            self._server.start()
            self._worker = ServerWorker(self._server.url, settings["row_seconds"], patience=0.0)
        except BaseException:  # Ray ends an actor that could not begin, without a word to it
            self._server.remove()
            raise

    def ready(self) -> str:
        """Where it runs; answered once ComfyUI is up."""
        return self._server.url

    def object_info(self) -> str:
        """What ComfyUI tells of its nodes, as JSON."""
        return json.dumps(self._worker.object_info())

    def make(self, fields: dict[str, Any]) -> dict[str, Any]:
        """Make a row: ``files`` (name and bytes), or ``failed`` or ``lost`` with the reason."""
        files = [SentFile(**file) for file in fields.pop("files")]
        try:
            made = self._worker.make(Job(**fields, files=files))
            answer = {"files": [(file.filename, b"".join(file.chunks)) for file in made]}
            self._forget_files({file.filename for file in made})
            return answer
        except RowFailed as error:
            return {"failed": str(error)}
        except WorkerLost as error:
            text = str(error) if self._server.running() else f"its ComfyUI ended. {self._server.tail(3)}"
            return {"lost": text, "began": error.began}

    def interrupt(self) -> None:
        """Give up the row under way."""
        self._worker.interrupt()

    def close(self) -> None:
        """End ComfyUI."""
        self._server.remove()

    def _forget_files(self, kept: set[str]) -> None:
        """The driver has them. Those of the last row stay: an equal row is answered from ComfyUI's cache, with them."""
        for name in ("output", "temp"):
            for path in (self._server.base / name).rglob("*"):
                if path.is_file() and path.name not in kept:
                    path.unlink(missing_ok=True)
