"""Where things lie: the repository, what ``dev.py`` makes below ``.comfyui/``, and the programs of this machine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parents[1]
HOME = REPOSITORY / ".comfyui"  # all that dev.py makes; git-ignored, may be deleted at any time
DOWNLOADS = HOME / "dl"
BASE = HOME / "base"  # ComfyUI's base directory of `serve` and `demo`: models, input, output, user
BROWSER = HOME / "browser"  # the browser driver of the test suite

BROWSER_COMMANDS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome", "msedge")
BROWSER_PATHS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "/Applications/Microsoft Edge.app/Contents/MacOS/Microsoft Edge",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)


def machine_file(path: str) -> Any:
    """A file below ``opensora_models/`` that needs Python's own library alone; its package would bring torch along."""
    spec = importlib.util.spec_from_file_location(f"opensora_{Path(path).stem}", REPOSITORY / "opensora_models" / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def venv_python(venv: Path) -> Path:
    """The interpreter of a virtual environment."""
    return venv / "Scripts" / "python.exe" if sys.platform == "win32" else venv / "bin" / "python"


def find_browser() -> Path | None:
    """A Chromium-like browser: ``OPENSORA_BROWSER``, else one of the usual names and places."""
    named = os.environ.get("OPENSORA_BROWSER")
    if named:
        return Path(named)
    for command in BROWSER_COMMANDS:
        found = shutil.which(command)
        if found:
            return Path(found)
    return next((Path(path) for path in BROWSER_PATHS if Path(path).is_file()), None)


def has_nvidia_driver() -> bool:
    """A cheap look for an NVIDIA driver; ComfyUI without ``--cpu`` does not start on a machine without one."""
    if sys.platform == "win32":
        return (Path(os.environ.get("SYSTEMROOT", "C:/Windows")) / "System32" / "nvcuda.dll").is_file()
    return any(Path(path).exists() for path in ("/dev/nvidiactl", "/dev/dxg"))
