"""What happens once when ComfyUI loads the pack, before it asks for the nodes."""

from __future__ import annotations

import logging

from ...messages.printable import PrintableRecords
from .. import folders
from ..messages import WarningsOnTheNode
from . import detection as core_detection
from . import lora_names


def start() -> None:
    """Registers the pack's models with ComfyUI; safe to call again."""
    _prepare_log()
    folders.register_demo_models()
    if core_detection.is_wanted():
        core_detection.register()
        lora_names.register()


def _prepare_log() -> None:
    logger = logging.getLogger("opensora")
    if not any(isinstance(each, PrintableRecords) for each in logger.filters):
        logger.addFilter(PrintableRecords())
    if not any(isinstance(each, WarningsOnTheNode) for each in logger.handlers):
        logger.addHandler(WarningsOnTheNode())
