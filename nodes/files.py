"""Inputs that stand for files on disk, and the base of nodes that write some."""

from __future__ import annotations

from comfy_api.latest import io

from ..opensora_models.output_names import check_prefix
from .door import OpenSoraNode

PREFIX = "filename_prefix"
PREFIX_TOOLTIP = (
    "Folders and beginning of the name in ComfyUI's output folder; a number follows. May hold %date:yyyy-MM-dd%, "
    "%KSampler.seed% (node and widget), %year%, %month%, %day%, %hour%, %minute%, %second%, %width% and %height%."
)


class PrefixInput(io.String.Input):
    """Where a node's new files go. Every node that has one is a ``SavingNode``."""

    def __init__(self, default: str) -> None:
        super().__init__(PREFIX, default=default, tooltip=PREFIX_TOOLTIP)


class SavingNode(OpenSoraNode):
    """Base of nodes with a ``PrefixInput``: refuses a prefix that can name no file before anything runs.

    Their ``execute`` gets the name of the file from ``native.outputs.next_output``, and their schema asks for
    ``HIDDEN``, where the values of placeholders come from.
    """

    HIDDEN = (io.Hidden.prompt, io.Hidden.extra_pnginfo)

    @classmethod
    def validate_inputs(cls, filename_prefix: str | None = None) -> bool | str:
        """Judges the prefix alone, so that ComfyUI marks this widget only; what comes by wire is judged at the run."""
        if filename_prefix is not None:
            check_prefix(filename_prefix)
        return True
