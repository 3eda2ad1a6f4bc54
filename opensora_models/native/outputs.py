"""Where new files go: a prefix and its placeholders become the next free name in ComfyUI's output folder."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from ..messages.quoting import LONGEST_FILE_NAME, quoted
from ..storage.file_tree import is_inside
from ..storage.output_names import output_name
from ..storage.placeholders import Placeholders
from .messages import tell


@dataclass(frozen=True)
class OutputFile:
    """A numbered file in ComfyUI's output folder."""

    folder: Path
    name: str
    subfolder: str

    @property
    def path(self) -> Path:
        """Folder and name."""
        return self.folder / self.name

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def listed(self) -> str:
        """The name under which ComfyUI lists a file of the output folder: ``folder/name [output]``."""
        return f"{(Path(self.subfolder) / self.name).as_posix()} [output]"


def next_output(prefix: str, ending: str, hidden: Any, size: tuple[int, int] = (0, 0)) -> OutputFile:
    """The next free name for a prefix, counted as ComfyUI's own save nodes count; makes its folder.

    Args:
        prefix: folders and beginning of the name, with placeholders; as typed or as it came by wire.
        hidden: the node's hidden inputs ``prompt`` and ``extra_pnginfo``, from which placeholders take their values.
        size: width and height in pixels of what is saved.

    Raises ValueError with one sentence for a prefix that cannot be used and a folder that cannot be made.
    """
    wanted = output_name(prefix, _placeholders(hidden, size).value)
    tell(*wanted.notes)
    root = folder_paths.get_output_directory()
    if not is_inside(os.path.join(root, wanted.folder), root):
        raise ValueError(
            f"'{wanted.folder}' is a link that leads out of ComfyUI's output folder; choose another folder."
        )
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(wanted.path, root, *size)
        while os.path.lexists(os.path.join(folder, f"{name}_{counter:05}_{ending}")):
            counter += 1
    except OSError as error:
        place, reason = quoted(os.path.join(root, wanted.folder), LONGEST_FILE_NAME), error.strerror or error
        raise ValueError(
            f"The folder {place} cannot be used ({reason}); make it writable, free some space, or choose another "
            "filename_prefix."
        ) from error
    return OutputFile(Path(folder), f"{name}_{counter:05}_{ending}", subfolder)


def _placeholders(hidden: Any, size: tuple[int, int]) -> Placeholders:
    page = getattr(hidden, "extra_pnginfo", None)
    workflow = page.get("workflow") if isinstance(page, Mapping) else None
    # ComfyUI's own module of that name, which is always there; the word would read as this pack's nodes.
    titles = getattr(sys.modules.get("nodes"), "NODE_DISPLAY_NAME_MAPPINGS", {})
    return Placeholders(getattr(hidden, "prompt", None), workflow, size, titles)
