"""What happens once when ComfyUI loads the pack, before it asks for the nodes."""

from __future__ import annotations

from . import core_detection, folders


def start() -> None:
    """Registers the pack's models with ComfyUI; safe to call again."""
    folders.register_demo_models()
    if core_detection.is_wanted():
        core_detection.register()
