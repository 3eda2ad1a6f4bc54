"""Folders of the system that are gone when what they serve has ended."""

from __future__ import annotations

from tempfile import TemporaryDirectory


def temporary_folder(purpose: str) -> TemporaryDirectory[str]:
    """A new folder of nobody else, named ``opensora-<purpose>-…``; removed by ``cleanup()`` or when forgotten."""
    return TemporaryDirectory(prefix=f"opensora-{purpose}-")
