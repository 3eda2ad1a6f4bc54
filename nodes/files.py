"""Inputs that stand for files on disk, and the base of nodes that write some."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from comfy_api.latest import io

from ..opensora_models.native.files import Files
from ..opensora_models.storage.output_names import check_prefix
from .door import OpenSoraNode

PREFIX = "filename_prefix"
PREFIX_TOOLTIP = (
    "Folders and beginning of the name in ComfyUI's output folder; a number follows. May hold %date:yyyy-MM-dd%, "
    "%KSampler.seed% (node and widget), %year%, %month%, %day%, %hour%, %minute%, %second%, %width% and %height%."
)


FileName = io.Custom("STRING,COMBO")
"""The name of a new file as an output: text that may also be wired into a menu of files. The page joins menus with
nothing but their own type."""


class FileInput(io.Combo.Input):
    """A menu of files on disk: the one type of every input that names a file, by menu or by wire.

    Files come and go, so the door lets any name pass. A node with such an input takes the path from ``files.path``,
    which refuses a name that is not there, and gives ``files.fingerprint`` of each in ``fingerprint_inputs``: ComfyUI
    then loads again when the file has changed, and only then.

    Args:
        files: the kind of files.
        others: entries that are no files, before the names; the first one is the default.
        optional: graphs made before the node had this input leave it out.
    """

    names_a_file = True

    def __init__(
        self,
        name: str,
        files: Files,
        *,
        tooltip: str,
        others: Sequence[str] = (),
        advanced: bool | None = None,
        optional: bool = False,
    ) -> None:
        options, default = [*others, *files.names()], others[0] if others else None
        super().__init__(name, options=options, default=default, tooltip=tooltip, advanced=advanced, optional=optional)
        self.files = files


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

    @classmethod
    def check_early(cls, **known: Any) -> None:
        """A prefix that came by wire, before the costly thing to be saved is made."""
        check_prefix(known[PREFIX])
