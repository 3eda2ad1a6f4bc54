"""The timeline: references and words of a clip as one text, which the page shows as something to drag."""

from __future__ import annotations

import json
import logging
from typing import Any

from comfy_api.latest import io, ui
from torch import Tensor

from ..opensora_models.native.messages import tell
from ..opensora_models.native.sampling.clips import Latent, clip_size
from ..opensora_models.native.sampling.reference_inputs import ReferenceChain
from ..opensora_models.native.sampling.timeline_inputs import (
    MOST_SOCKETS,
    SHOWN_KEY,
    SOCKET,
    PlannedChain,
    numbered_pictures,
    plan_references,
)
from ..opensora_models.sampling.fitting import Fit
from ..opensora_models.sampling.timeline import EXAMPLE, parse_plan
from ..opensora_models.sampling.timeline_use import most_important
from .door import OpenSoraNode
from .references import CATEGORY, References, references_input, resize_input

SHEET = "opensora_timeline"
"""What the file of small pictures is called among those that ComfyUI clears when it starts."""
SHEET_FIELDS = ("columns", "rows", "width", "height", "strips")


class Timeline(OpenSoraNode):
    """``OSoraTimeline``: which picture goes where, how strong, and which words hold when, on one track of frames."""

    depends = frozenset({"plan"})

    @classmethod
    def define_schema(cls) -> io.Schema:
        socket = io.Image.Input("image", optional=True, tooltip="A picture, or the frames of a clip.")
        return io.Schema(
            node_id="OSoraTimeline",
            display_name="Open-Sora Timeline",
            category=CATEGORY,
            description="Places pictures, clips and prompts on a track of frames, by dragging or as text.",
            search_aliases=["open-sora", "keyframes", "track", "mask strategy", "prompt schedule", "extend video"],
            inputs=[
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The Open-Sora VAE of the model's version; not needed for words alone.",
                ),
                io.Latent.Input("clip_latent", tooltip="The clip to be made: gives size, length and version."),
                references_input("A finished chain; the plan's references come after it and win where they meet."),
                io.Image.Input(
                    "batch",
                    optional=True,
                    tooltip="Many pictures at once instead of the sockets; the first one is reference 0.",
                ),
                io.Autogrow.Input(
                    "pictures",
                    template=io.Autogrow.TemplatePrefix(socket, prefix=SOCKET, min=0, max=MOST_SOCKETS),
                    optional=True,
                    tooltip="One picture or clip each; the number of the socket is the reference's.",
                ),
                io.String.Input(
                    "plan",
                    multiline=True,
                    default="",
                    tooltip=f"The plan as text, counted in latent frames: {EXAMPLE}, or Open-Sora's mask strategy, for "
                    "example 0,0,0,0;0,1,0,-1.",
                ),
                resize_input(),
            ],
            outputs=[
                References.Output(display_name="references", tooltip="The chain, for a sampler or Place References."),
                io.String.Output(display_name="prompt", tooltip="The prompt in the form '|0| text |2| other text'."),
                io.String.Output(
                    display_name="mask_strategy", tooltip="The plan's places in Open-Sora's mask strategy notation."
                ),
                io.String.Output(display_name="report", tooltip="What goes where, what is snapped, cut or overlaps."),
            ],
        )

    @classmethod
    def validate_inputs(cls, plan: str | None = None, pictures: Any = None) -> bool | str:
        # ComfyUI hands over inputs that grow whether they are asked for or not; their wires bring nothing yet.
        parse_plan(plan or "")
        return True

    @classmethod
    def execute(
        cls,
        *,
        vae: Any = None,
        clip_latent: Latent,
        references: ReferenceChain | None = None,
        batch: Tensor | None = None,
        pictures: dict[str, Tensor] | None = None,
        plan: str,
        resize: Fit,
    ) -> io.NodeOutput:
        read, clip = parse_plan(plan), clip_size(clip_latent, vae=vae)
        numbered = numbered_pictures(pictures or {}, batch)
        before = references or ReferenceChain()
        made = plan_references(read, numbered, vae, clip, before, resize, batched=batch is not None)
        tell(*most_important(made.notes), level=logging.INFO)
        return io.NodeOutput(made.chain, read.prompt, read.strategy, "\n".join(made.notes), ui=_for_page(plan, made))


def _for_page(plan: str, made: PlannedChain) -> dict[str, list[str]]:
    """What the page draws: the plan that ran, what became of it, and where the small pictures lie."""
    shown = {"plan": plan, **made.shown}
    if made.sheet is not None:
        files = ui.ImageSaveHelper.save_images(made.sheet.picture, SHEET, io.FolderType.temp, cls=None)
        shown["sheet"] = {**files[0], **{name: getattr(made.sheet, name) for name in SHEET_FIELDS}}
    return {SHOWN_KEY: [json.dumps(shown)]}
