"""A real headless ComfyUI for tests: its log is part of every test's result."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

from opensora.devtools.client import Prompt, PromptFailed, PromptRefused, Run
from opensora.devtools.server import PACK_FOLDER, START_SECONDS, ComfyServer
from support.comfyui import MODEL_FOLDERS, comfyui_root, on_gpu
from support.pack import PACK_ROOT

__all__ = ["BareServer", "PromptFailed", "PromptRefused", "Run", "TestServer"]

TROUBLE = re.compile(r"^Traceback", re.M)
# ComfyUI only logs a pack it cannot import, and starts all the same. (It logs core nodes it cannot import alike.)
NOT_IMPORTED = re.compile(r"^.*(?:IMPORT FAILED|Cannot import|comfy_entrypoint in).*custom_nodes[/\\]opensora.*$", re.M)


class LoggedServer(ComfyServer):
    """A server whose log is read: failures that are meant to happen are told apart from the rest."""

    def __init__(self, base: Path, pack: Path, arguments: list[str]) -> None:
        root = comfyui_root()
        if root is None:
            raise RuntimeError("no ComfyUI found: run `python dev.py test`, or set COMFYUI_PATH to a ComfyUI folder")
        device = [] if on_gpu() else ["--cpu"]
        super().__init__(Path(sys.executable), root, base, pack, arguments=[*arguments, *device])
        (base / "input").mkdir(exist_ok=True)
        shutil.copy(root / "input" / "example.png", base / "input")  # which every ComfyUI comes with
        self._checked = 0

    def start(self, timeout: float = START_SECONDS) -> None:
        """Start, and raise AssertionError where the pack could not be imported."""
        super().start(timeout)
        found = NOT_IMPORTED.search(self.log())
        if found:
            self.stop()
            raise AssertionError(f"{found.group()}\n{self.log()[-8000:]}")
        self.forgive_log()

    @property
    def pid(self) -> int:
        """Of ComfyUI's process."""
        assert self._process is not None
        return self._process.pid

    def failure(self, prompt: Prompt) -> PromptFailed | PromptRefused:
        """Run a prompt that must fail and give the failure; its traceback does not count as trouble."""
        self.check_log()
        try:
            self.watch(prompt)
        except (PromptFailed, PromptRefused) as error:
            self.forgive_log()
            return error
        raise AssertionError("the prompt was expected to fail and ran")

    def forgive_log(self) -> None:
        """Take everything in the log so far as expected."""
        self._checked = self.log_size()

    def check_log(self) -> None:
        """Raise AssertionError with the new part of the log if it tells of an exception."""
        new = self.log(self._checked)
        self.forgive_log()
        if TROUBLE.search(new):
            raise AssertionError(f"ComfyUI's log tells of an exception:\n{new[-8000:]}")


class TestServer(LoggedServer):
    """The server with the tests' settings: the pack linked and the tiny models listed."""

    __test__ = False  # the name does not make it a test class

    def __init__(self, base: Path, models: Path) -> None:
        paths = base / "tiny_models.yaml"
        paths.write_text(json.dumps({"tiny": {name: str(models / name) for name in MODEL_FOLDERS}}), encoding="utf-8")
        super().__init__(base, PACK_ROOT, ["--extra-model-paths-config", str(paths)])


class BareServer(LoggedServer):
    """ComfyUI as the quick start says: a clone in ``custom_nodes`` and nothing else, with the page in ``page``."""

    def __init__(self, base: Path, page: Path | None) -> None:
        clone = base / "custom_nodes" / PACK_FOLDER
        listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
        names = subprocess.run(listed, cwd=PACK_ROOT, capture_output=True, check=True).stdout.decode().split("\0")
        for name in filter(None, names):
            if (PACK_ROOT / name).is_file() and not name.startswith("tests/"):
                (clone / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(PACK_ROOT / name, clone / name)
        super().__init__(base, clone, ["--front-end-root", str(page)] if page else [])
