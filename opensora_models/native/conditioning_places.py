"""Where saved conditionings live: ComfyUI's output folder, and its input folder for files from elsewhere."""

from __future__ import annotations

from pathlib import Path

import folder_paths

ENDING = ".conditioning.safetensors"
FOLDERS = ("output", "input")


def saved_names() -> list[str]:
    """Every saved conditioning as ComfyUI writes such names: ``folder/name.conditioning.safetensors [output]``."""
    names = []
    for kind in FOLDERS:
        root = Path(folder_paths.get_directory_by_type(kind))
        found = sorted(root.rglob(f"*{ENDING}"), key=lambda path: path.stat().st_mtime, reverse=True)
        names += [f"{path.relative_to(root).as_posix()} [{kind}]" for path in found]
    return names


def path_of(name: str) -> Path:
    """The file behind a listed name. Raises ValueError for a file that is gone or outside ComfyUI's folders."""
    if name not in saved_names():
        raise ValueError(
            f"'{name}' is not among the saved conditionings; save one with Open-Sora Save Conditioning, or put a file "
            f"ending in {ENDING} into ComfyUI's input folder."
        )
    return Path(folder_paths.get_annotated_filepath(name))


def fingerprint(name: str) -> str:
    """Changes when the file's time or size changes; "" if there is no such file."""
    if name not in saved_names():
        return ""
    status = path_of(name).stat()
    return f"{status.st_mtime_ns}-{status.st_size}"
