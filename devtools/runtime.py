"""Brings a ComfyUI and a Python that can run it together; makes both where the person named none."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from .comfyui import DEFAULT, RELEASES, make_tree, named_by_person, version_of
from .console import Problem, say
from .environment import Environment, create_venv
from .places import HOME, has_nvidia_driver, venv_python

NEEDED_BY_COMFYUI = ("torch", "aiohttp", "safetensors", "transformers")
NEEDED_BY_TESTS = ("pytest", "xdist", "ruff", "mypy", "comfy_lint")


@dataclass(frozen=True)
class Runtime:
    """A ComfyUI folder and the interpreter that runs it; ``own`` means dev.py made the interpreter's environment."""

    root: Path
    python: Path
    own: bool

    @property
    def version(self) -> str:
        return version_of(self.root)

    def device_arguments(self) -> list[str]:
        """``--cpu`` where ComfyUI would not start without it."""
        if sys.platform == "darwin":
            return []
        if not has_nvidia_driver():
            return ["--cpu"]
        probe = "import torch; raise SystemExit(not torch.cuda.is_available())"
        return [] if subprocess.run([str(self.python), "-c", probe], capture_output=True).returncode == 0 else ["--cpu"]

    def require(self, modules: tuple[str, ...]) -> None:
        """Problem unless the interpreter has these modules; an environment of ours always has."""
        if not self.own and not _has(self.python, modules):
            raise Problem(
                f"{self.python} lacks {', '.join(modules)} or one of them. Install them there with: "
                f"{self.python} -m pip install -r requirements-dev.txt"
            )


def prepare(comfyui: Path | None, release: str | None) -> Runtime:
    """The ComfyUI the person names by path or version, else ComfyUI 0.30, ready to run."""
    if comfyui and release:
        raise Problem("--comfyui names a folder and --comfyui-version a version to make: give one of the two.")
    root = None if release else named_by_person(comfyui)
    if root is not None:
        return _prepare_named(root)
    python = create_venv(HOME / "venv")
    newest = make_tree(RELEASES[DEFAULT], python)
    Environment(HOME / "venv", newest / "requirements.txt").complete()  # serves the older versions as well
    return Runtime(make_tree(RELEASES[release or DEFAULT], python), python, own=True)


def _prepare_named(root: Path) -> Runtime:
    for python in _pythons_of(root):
        if python.is_file() and _has(python, NEEDED_BY_COMFYUI):
            return Runtime(root, python, own=False)
    requirements = root / "requirements.txt"
    if not requirements.is_file():
        raise Problem(f"{root} has no requirements.txt and no Python with torch was found beside it.")
    fingerprint = hashlib.sha256(requirements.read_bytes()).hexdigest()[:8]
    say(f"{root} has no Python environment of its own: using one below {HOME}")
    environment = Environment(HOME / f"venv-{fingerprint}", requirements)
    usual = Environment(HOME / "venv", requirements)
    if usual.ready():  # the same requirements as those of the ComfyUI dev.py makes
        environment = usual
    create_venv(environment.folder)
    environment.complete()
    return Runtime(root, environment.python, own=True)


def _pythons_of(root: Path) -> list[Path]:
    """Where the interpreter of a ComfyUI usually is, the active environment and our own caller last."""
    found = [venv_python(root / name) for name in ("venv", ".venv")]
    found.append(root.parent / "python_embeded" / "python.exe")  # spelt so in ComfyUI's portable package
    if os.environ.get("VIRTUAL_ENV"):
        found.append(venv_python(Path(os.environ["VIRTUAL_ENV"])))
    return [*found, Path(sys.executable)]


def _has(python: Path, modules: tuple[str, ...]) -> bool:
    script = f"import importlib.util as u; raise SystemExit(any(u.find_spec(m) is None for m in {modules!r}))"
    return subprocess.run([str(python), "-c", script], capture_output=True).returncode == 0
