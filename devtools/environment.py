"""The virtual environment below ``.comfyui/``: made once, adopted when already right, continued when killed."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from . import pip
from .console import Problem, say
from .places import HOME, REPOSITORY, venv_python

# These three must fit one another; left to themselves, ComfyUI's requirements pull versions that do not import.
TORCH_PINS = ("torch==2.11.0", "torchvision==0.26.0", "torchaudio==2.11.0")
DEV_REQUIREMENTS = REPOSITORY / "requirements-dev.txt"
OPTIONAL = ("ray",)  # of these; not made for every Python and system, and the tests that need it are skipped there
STAMP = "opensora-ready.json"
MUST_IMPORT = "torch, torchvision, torchaudio, torchsde, transformers, safetensors, einops, aiohttp, av, PIL, pytest"
NEEDED_GB = {"linux": 7.0}  # 6.0 measured with the CUDA libraries that torch for Linux brings
NEEDED_GB_ELSEWHERE = 3.0

# Runs inside the environment: prints the requirements that are not met, one a line. pip brings the parser along.
CHECK_SCRIPT = """
import sys, importlib.metadata as metadata
from pip._vendor.packaging.requirements import Requirement
for line in sys.stdin.read().splitlines():
    wanted = Requirement(line)
    if wanted.marker is not None and not wanted.marker.evaluate():
        continue
    try:
        found = metadata.version(wanted.name)
    except metadata.PackageNotFoundError:
        print(line, "(missing)")
        continue
    if not wanted.specifier.contains(found, prereleases=True):
        print(line, "(found", found + ")")
"""


@dataclass(frozen=True)
class Environment:
    """A virtual environment for the ComfyUI whose ``requirements.txt`` is given."""

    folder: Path
    requirements: Path

    @property
    def python(self) -> Path:
        return venv_python(self.folder)

    def recipe(self) -> str:
        """A fingerprint of all that decides what belongs into the environment."""
        digest = hashlib.sha256("\n".join(TORCH_PINS).encode())
        for file in (self.requirements, DEV_REQUIREMENTS):
            digest.update(file.read_bytes().replace(b"\r\n", b"\n"))
        return digest.hexdigest()

    def ready(self) -> bool:
        """Whether a finished run left its stamp for this very recipe."""
        try:
            stamp = json.loads((self.folder / STAMP).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return False
        return bool(stamp.get("recipe") == self.recipe()) and self.python.is_file()

    def complete(self) -> None:
        """Install what is missing, prove that it imports, and leave the stamp."""
        if self.ready():
            return
        needed = [*TORCH_PINS, *read_requirements(self.requirements), *_dev_requirements(optional=False)]
        if self.missing(needed):
            _check_disk()
            _forget_half_installed(self.folder)
            self._install()
            missing = self.missing(needed)
            if missing:
                raise Problem(f"After installing, {self.folder} still lacks: {'; '.join(missing)}.")
        for line in _dev_requirements(optional=True):
            if self.missing([line]):
                self._add(line)
        say("Checking that everything imports")
        done = subprocess.run([str(self.python), "-c", f"import {MUST_IMPORT}"], capture_output=True, text=True)
        if done.returncode != 0:
            raise Problem(f"The environment {self.folder} does not import:\n{done.stderr[-3000:]}")
        part = self.folder / (STAMP + ".part")
        part.write_text(json.dumps({"recipe": self.recipe()}), encoding="utf-8")
        os.replace(part, self.folder / STAMP)

    def missing(self, wanted: Sequence[str]) -> list[str]:
        """Those of these requirements that are not met, each with what is wrong."""
        done = subprocess.run(
            [str(self.python), "-c", CHECK_SCRIPT], input="\n".join(wanted), capture_output=True, text=True
        )
        if done.returncode != 0:
            raise Problem(f"{self.python} cannot list its packages:\n{done.stderr[-2000:]}")
        return done.stdout.splitlines()

    def _install(self) -> None:
        say("Installing torch (the largest part, some minutes)")
        pip.run(self.python, ["install", *_pins(), *TORCH_PINS], "torch")
        say("Installing what ComfyUI and the tests need")
        wanted = ["-r", str(self.requirements), *_dev_requirements(optional=False)]
        pip.run(self.python, ["install", *_pins(), *wanted], "ComfyUI's requirements")

    def _add(self, line: str) -> None:
        """An optional one; where there is none for this Python and system, a word that tells so."""
        say(f"Installing {line}")
        try:
            pip.run(self.python, ["install", "--only-binary", ":all:", *_pins(), line], line)
        except pip.NoVersion:
            say(f"There is no {line} for this Python and system: the tests that need it are skipped.")


def create_venv(folder: Path) -> Path:
    """Make an empty virtual environment where there is none; gives its interpreter."""
    python = venv_python(folder)
    unfinished = folder.with_name(folder.name + ".unfinished")
    if python.is_file() and not unfinished.exists():
        return python
    HOME.mkdir(parents=True, exist_ok=True)
    unfinished.touch()
    say(f"Making a virtual environment with Python {sys.version_info.major}.{sys.version_info.minor}")
    done = subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], capture_output=True, text=True)
    if done.returncode != 0:
        raise Problem(
            "Python could not make a virtual environment (on Debian and Ubuntu the package python3-venv is needed):\n"
            + (done.stdout + done.stderr)[-2000:]
        )
    unfinished.unlink()
    return python


def _pins() -> list[str]:
    """pip's arguments that keep torch as it is."""
    pins = HOME / "pins.txt"
    pins.write_text("\n".join(TORCH_PINS) + "\n", encoding="utf-8")
    return ["-c", str(pins)]


def _dev_requirements(optional: bool) -> list[str]:
    return [line for line in read_requirements(DEV_REQUIREMENTS) if line.startswith(OPTIONAL) == optional]


def read_requirements(file: Path) -> list[str]:
    """The requirement lines of a file, without comments and options."""
    lines = (line.split("#", 1)[0].strip() for line in file.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("-")]


def _check_disk() -> None:
    needed = NEEDED_GB.get(sys.platform, NEEDED_GB_ELSEWHERE)
    free = shutil.disk_usage(HOME).free / 1e9
    if free < needed:
        raise Problem(
            f"The environment needs about {needed:.0f} GB and {HOME} has {free:.1f} GB free. Free some space, or use a "
            "ComfyUI you already have: --comfyui PATH."
        )


def _forget_half_installed(folder: Path) -> None:
    """pip writes INSTALLER last: a package without it was cut off in the middle and must not count as installed."""
    for info in folder.rglob("site-packages/*.dist-info"):
        if not (info / "INSTALLER").is_file():
            shutil.rmtree(info, ignore_errors=True)
