"""Settings of the page, which it keeps in a file of the user; a server without a page takes them from there as well."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import folder_paths
from comfy.cli_args import args

SETTINGS_FILE, SETTINGS_BYTES = "comfy.settings.json", 16 * 2**20


def page_setting(name: str) -> Any:
    """The value of a setting; None where there is none, or several people have settings of their own."""
    folder = folder_paths.get_public_user_directory("default")
    if folder is None or args.multi_user:
        return None
    try:
        with (Path(folder) / SETTINGS_FILE).open("rb") as file:
            settings = json.loads(file.read(SETTINGS_BYTES))
    except (OSError, ValueError, RecursionError):
        return None
    return settings.get(name) if isinstance(settings, dict) else None
