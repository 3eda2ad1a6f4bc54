"""Housekeeping: what was kept so that no work is lost."""

from __future__ import annotations

import time

from comfy_api.latest import io, ui

from ..opensora_models.native.stored import CLEAR, EVERYTHING, KINDS, LIST, Choice, housekeeping
from .door import OpenSoraNode


class StoredWork(OpenSoraNode):
    """``OSoraStored``: lists what the pack keeps in the output folder, and clears what a person chooses."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraStored",
            display_name="Open-Sora Stored Work",
            category="Open-Sora/reports",
            description="Shows the segments, unfinished decodes and latents that are kept in the output folder, with "
            "size, age and prompt, and clears those you choose. It only lists until you set it to clear.",
            search_aliases=["open-sora stored work", "disk space", "clean up", "delete segments", "free space"],
            is_output_node=True,
            inputs=[
                io.Combo.Input("what", options=list(KINDS), default=EVERYTHING, tooltip="The kind of stored work."),
                io.Float.Input(
                    "older_than", default=0.0, min=0.0, max=100_000.0, step=0.5,
                    tooltip="Only what has not changed for so many days. 0: of any age.",
                ),
                io.String.Input(
                    "containing", default="", tooltip="Only what has these words in its path or its prompt. Empty: all."
                ),
                io.Combo.Input(
                    "action", options=[LIST, CLEAR], default=LIST,
                    tooltip="only list: nothing is removed. clear: what is listed goes, but for what is in use.",
                ),
            ],
            outputs=[
                io.String.Output(display_name="report", tooltip="What is kept, or was removed, a line each."),
                io.Int.Output(display_name="size", tooltip="Bytes of what is listed, or of what was removed."),
            ],
        )  # fmt: skip

    @classmethod
    def fingerprint_inputs(cls, **inputs: object) -> float:
        """Looks again at every run: what is kept changes without the graph."""
        return time.time()

    @classmethod
    def execute(cls, what: str, older_than: float, containing: str, action: str) -> io.NodeOutput:
        report, size = housekeeping(Choice(what, older_than, containing), action == CLEAR)
        return io.NodeOutput(report, size, ui=ui.PreviewText(report))
