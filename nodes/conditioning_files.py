"""Conditioning on disk."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..opensora_models.native.files import CONDITIONING_ENDING, CONDITIONINGS
from ..opensora_models.native.outputs import next_output
from ..opensora_models.text.conditioning_file import load_conditioning, save_new_conditioning
from .door import OpenSoraNode
from .files import FileInput, FileName, PrefixInput, SavingNode
from .text import CATEGORY


class SaveConditioning(SavingNode):
    """``OSoraSaveConditioning``: positive and negative conditioning into one file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraSaveConditioning",
            display_name="Open-Sora Save Conditioning",
            category=CATEGORY,
            description="Saves encoded prompts, so that sampling later needs no text encoder in memory.",
            search_aliases=["save prompt", "cache text", "store conditioning"],
            inputs=[
                io.Conditioning.Input("positive", lazy=True, tooltip="The encoded prompt."),
                io.Conditioning.Input("negative", lazy=True, tooltip="The encoded negative prompt or learned text."),
                PrefixInput("conditioning/opensora"),
                io.String.Input(
                    "note", default="", multiline=True, optional=True, tooltip="Any text to keep in the file."
                ),
            ],
            outputs=[FileName.Output(display_name="file", tooltip="Name of the new file, as the load node lists it.")],
            hidden=[*SavingNode.HIDDEN],
            is_output_node=True,
        )

    @classmethod
    def execute(cls, positive: list[Any], negative: list[Any], filename_prefix: str, note: str = "") -> io.NodeOutput:
        file = save_new_conditioning(
            lambda: next_output(filename_prefix, CONDITIONING_ENDING, cls.hidden),
            {"positive": positive, "negative": negative},
            note,
        )
        return io.NodeOutput(file.listed)


class LoadConditioning(OpenSoraNode):
    """``OSoraLoadConditioning``: positive and negative conditioning from a saved file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraLoadConditioning",
            display_name="Open-Sora Load Conditioning",
            category=CATEGORY,
            description="Loads encoded prompts that were saved earlier.",
            search_aliases=["load prompt", "cached text"],
            inputs=[
                FileInput(
                    "file",
                    CONDITIONINGS,
                    tooltip="Files of Open-Sora Save Conditioning in ComfyUI's output and input folders, newest first.",
                )
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt, for any sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt, for any sampler."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> str:
        """Loads again when the file on disk has changed."""
        return CONDITIONINGS.fingerprint(file)

    @classmethod
    def validate_inputs(cls, file: str | None = None) -> bool | str:
        """Says more than ComfyUI's own check; a name that comes by wire is judged when the node runs."""
        if file is not None:
            CONDITIONINGS.path(file)
        return True

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        loaded = load_conditioning(CONDITIONINGS.path(file), needed=("positive", "negative"))
        return io.NodeOutput(loaded["positive"], loaded["negative"])
