"""Graphs of the two older Open-Sora packs: their nodes that are one of ours, for ComfyUI's node replacement.

ComfyUI replaces one node by one other, in the page on a click and in a queued prompt by itself, and only where the old
pack is not installed. It fails on an input that an old graph leaves out, so only required ones are named here. What is
several of our nodes is on the page ``docs/old_packs.md``, and so is what has to be set again.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from comfy_api.latest import ComfyAPI, io

from .decode import Decode
from .door import OpenSoraNode, schema_of
from .encode import Encode
from .text import TextEncode

DTYPE = "dtype"
"""The widget of every old node that our loaders have instead."""


@dataclass(frozen=True)
class OldNode:
    """A node of an older pack that is one of ours: ``inputs`` are ours by name and the old ones they come from.

    ``widgets`` are the old ones in their order; its outputs are the first ``outputs`` of ours.
    """

    old: str
    new: type[OpenSoraNode]
    inputs: Mapping[str, str]
    widgets: tuple[str, ...] = (DTYPE,)
    outputs: int = 1

    def mapping(self) -> list[dict[str, Any]]:
        """ComfyUI's input mapping: what is carried over, and the usual value of every other widget a prompt needs."""
        carried = [{"new_id": ours, "old_id": theirs} for ours, theirs in self.inputs.items()]
        return carried + [
            {"new_id": entry.id, "set_value": _usual(entry)}
            for entry in schema_of(self.new).inputs
            if entry.id not in self.inputs and not entry.optional
        ]


OLD_NODES = (
    OldNode("OpenSoraRun", Decode, {"samples": "samples", "vae": "vae"}),
    OldNode("OpenSoraDecoder", Decode, {"samples": "latents", "vae": "vae"}),
    OldNode("OpenSoraEncoder", Encode, {"images": "image", "vae": "vae"}),
    # Its negative prompt, camera motion and scores may be missing in a graph. What they held is not lost unseen: with
    # an empty negative Text Encode asks for a MODEL before it runs.
    OldNode(
        "OpenSoraTextEncoder",
        TextEncode,
        {"clip": "text_encoder", "prompt": "positive_prompt"},
        (
            "positive_prompt", "negative_prompt", "camera_motion", "enable_motion_strength", "motion_strength",
            "enable_aesthetic_score", "aesthetic_score",
        ),
        outputs=2,
    ),
)  # fmt: skip
"""``OpenSoraRun`` is ComfyUI-Open-Sora's, the others ComfyUI-Open-Sora-I2V's."""


async def register_old_packs() -> None:
    """Tells ComfyUI; calling it again does no harm, and versions that cannot replace nodes are left alone."""
    if not (hasattr(io, "NodeReplace") and hasattr(ComfyAPI, "NodeReplacement")):
        return
    for each in OLD_NODES:
        await ComfyAPI().node_replacement.register(
            io.NodeReplace(
                new_node_id=schema_of(each.new).node_id,
                old_node_id=each.old,
                old_widget_ids=list(each.widgets),
                input_mapping=each.mapping(),
                output_mapping=[{"new_idx": number, "old_idx": number} for number in range(each.outputs)],
            )
        )


def _usual(entry: Any) -> Any:
    """A widget's default; a menu without one shows its first entry."""
    return entry.options[0] if entry.default is None and isinstance(entry, io.Combo.Input) else entry.default
