"""The newest page of ComfyUI beside the one its own version asks for: people update both apart."""

from __future__ import annotations

import os
import shutil
import zipfile
from pathlib import Path, PurePosixPath

from .console import say
from .downloads import fetch
from .places import DOWNLOADS, HOME

PACKAGE = "comfyui-frontend-package"
VERSION = "1.58.1"
SHA256 = "37912597537a731a8f421179618a736c24184c5bdbfa327f38b2fb7c291852d9"
CARRIED_FOLDER = "comfyui_frontend_package/static"
FOLDER = HOME / f"page-{VERSION}"
"""What ``--front-end-root`` is given; there once :func:`make_page` has run."""


def make_page(python: Path) -> Path:
    """Download, check and unpack the page; gives its folder. Does nothing when it is there."""
    if FOLDER.is_dir():
        return FOLDER
    archive = DOWNLOADS / f"{PACKAGE.replace('-', '_')}-{VERSION}-py3-none-any.whl"
    say(f"Getting ComfyUI's page {VERSION} (about 30 MB)")
    fetch(python, f"{PACKAGE}=={VERSION}", archive, SHA256, f"page {VERSION}")
    part = FOLDER.with_name(f"part-{FOLDER.name}")
    shutil.rmtree(part, ignore_errors=True)
    with zipfile.ZipFile(archive) as wheel:
        for name in wheel.namelist():
            inside = PurePosixPath(name)
            if not inside.is_relative_to(CARRIED_FOLDER) or ".." in inside.parts or name.endswith("/"):
                continue
            target = part / inside.relative_to(CARRIED_FOLDER)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(wheel.read(name))
    os.replace(part, FOLDER)
    return FOLDER
