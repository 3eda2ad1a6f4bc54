"""Open-Sora for ComfyUI: the door through which ComfyUI finds the nodes."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from comfy_api.latest import ComfyExtension

WEB_DIRECTORY = "./js"

__all__ = ["WEB_DIRECTORY", "comfy_entrypoint"]


async def comfy_entrypoint() -> ComfyExtension:
    """Called once by ComfyUI at start-up; importing the nodes here keeps the package importable without ComfyUI."""
    from .nodes import OpenSoraExtension

    return OpenSoraExtension()
