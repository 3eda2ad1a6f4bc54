"""Files below a folder."""

from __future__ import annotations

import os


def is_inside(path: str, root: str) -> bool:
    """Whether ``path`` lies below ``root`` once links are followed."""
    try:
        real = os.path.realpath(root)
        return os.path.commonpath((real, os.path.realpath(path))) == real
    except ValueError:  # a NUL character, or another drive of Windows
        return False
