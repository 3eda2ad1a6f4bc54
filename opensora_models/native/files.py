"""Model files as ComfyUI lists them: names for a menu, paths, and whether a file has changed."""

from __future__ import annotations

from pathlib import Path

import folder_paths


def weight_files(category: str) -> list[str]:
    """Names of the files in a category, newest state of the disk."""
    return folder_paths.get_filename_list(category)


def full_path(category: str, name: str) -> Path:
    """Where the file is. Raises ValueError if it has gone since it was listed."""
    path = folder_paths.get_full_path(category, name)
    if path is None:
        raise ValueError(f"'{name}' is not in models/{category} any more; choose one of the listed files.")
    return Path(path)


def fingerprint(category: str, name: str) -> str:
    """Changes when the file's time or size changes; "" if there is no such file."""
    path = folder_paths.get_full_path(category, name)
    if path is None:
        return ""
    status = Path(path).stat()
    return f"{status.st_mtime_ns}-{status.st_size}"
