"""References: pictures and clips that a generated clip starts from, ends on, or is made of."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..opensora_models.native.messages import tell, told
from ..opensora_models.native.sampling.clips import ClipSize, Latent, check_encoded_for, clip_size, word_of
from ..opensora_models.native.sampling.guiders import Conditioning
from ..opensora_models.native.sampling.reference_inputs import (
    AUTOMATIC,
    METHODS,
    Placing,
    ReferenceChain,
    check_references,
    clip_of,
    encode_pictures,
    latent_references,
    place_references,
    strategy_notes,
)
from ..opensora_models.sampling.fitting import FITS, Fit
from ..opensora_models.sampling.placements import AT_POSITION, FIRST, PLACEMENTS, latent_of_frame
from ..opensora_models.text.segments import MAX_SEGMENTS
from .door import OpenSoraNode

CATEGORY = "Open-Sora/references"
References = io.Custom("OSORA_REFERENCES")
STRENGTH = "strength (0 = kept, 1 = free)"
"""How the node shows the number that many read the other way round."""
FRAMES, LATENT_FRAMES = "frame", "latent frame"


def references_input(tooltip: str, **options: Any) -> io.Input:
    """The wire of a chain of references."""
    return References.Input("references", optional=True, tooltip=tooltip, **options)


def resize_input() -> io.Input:
    """What is done with a picture of another size than the clip's."""
    return io.Combo.Input(
        "resize",
        options=list(FITS),
        default="crop",
        advanced=True,
        tooltip="How a picture of another size is brought to the clip's: crop (for 2.0 in the original's very way), "
        "pad, stretch, or crop with smooth filters whatever the release.",
    )


class Reference(OpenSoraNode):
    """``OSoraReference``: a picture, a clip or a latent, and where it goes; chain as many as you like."""

    depends = frozenset({"frames", "position"})

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraReference",
            display_name="Open-Sora Reference",
            category=CATEGORY,
            description="Encodes a picture or clip and says where it goes: first frame, last frame, extension, "
            "connection, keyframes, editing. Chain several.",
            search_aliases=[
                "open-sora",
                "image to video",
                "extend",
                "extend video",
                "keyframe",
                "first last frame",
                "video to video",
            ],
            inputs=[
                io.Vae.Input(
                    "vae", optional=True, tooltip="The Open-Sora VAE of the model's version; not needed for latents."
                ),
                io.Latent.Input("clip_latent", tooltip="The clip to be made: gives size, length and version."),
                io.Image.Input("image", optional=True, tooltip="One picture, or the frames of a clip."),
                io.Combo.Input(
                    "placement",
                    options=list(PLACEMENTS),
                    default=FIRST,
                    tooltip="What the reference is for. See the help page for every choice.",
                ),
                io.Int.Input(
                    "position",
                    default=0,
                    min=-10000,
                    max=10000,
                    tooltip="Where it starts in the clip, for 'at position'. Negative counts from the end.",
                ),
                io.Int.Input(
                    "frames",
                    default=0,
                    min=0,
                    max=10000,
                    tooltip="Frames to use of a clip: 17·n (1.2), 16·n + 1 (1.3), 4·n + 1 (2.0). 0: all; for "
                    "extensions one group, in 2.0 33 frames (65 is its easy form).",
                ),
                io.Float.Input(
                    "strength",
                    display_name=STRENGTH,
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    tooltip="How much may be changed: 0 keeps the reference, 1 ignores it, 0.3 edits lightly. 2.0 can "
                    "only keep.",
                ),
                references_input("References before this one. Where two meet, the later one wins."),
                io.Image.Input(
                    "second_image",
                    optional=True,
                    advanced=True,
                    tooltip="The last frame for 'first and last frame', the following clip for 'connect two clips'.",
                ),
                io.Latent.Input(
                    "latent",
                    optional=True,
                    advanced=True,
                    tooltip="Latents instead of a picture; they go to 'position' as they are.",
                ),
                io.Combo.Input(
                    "position_unit",
                    options=[FRAMES, LATENT_FRAMES],
                    default=FRAMES,
                    advanced=True,
                    tooltip="Count the position in frames of the video or in latent frames.",
                ),
                resize_input(),
                io.Int.Input(
                    "segment",
                    default=0,
                    min=-1,
                    max=MAX_SEGMENTS - 1,
                    advanced=True,
                    tooltip="Segment of a long video it belongs to: 0 the first one, -1 the last one.",
                ),
            ],
            outputs=[
                References.Output(
                    display_name="references",
                    tooltip="The chain, for another reference, a sampler or Place References.",
                )
            ],
        )

    @classmethod
    def execute(
        cls,
        *,
        vae: Any = None,
        clip_latent: Latent,
        image: Tensor | None = None,
        placement: str,
        position: int,
        frames: int,
        strength: float,
        references: ReferenceChain | None = None,
        second_image: Tensor | None = None,
        latent: Latent | None = None,
        position_unit: str,
        resize: Fit,
        segment: int,
    ) -> io.NodeOutput:
        chain, clip = references or ReferenceChain(), clip_size(clip_latent, vae=vae)
        placed = latent is not None or placement == AT_POSITION
        start = in_latent_frames(clip, position, position_unit) if placed else 0
        placing = Placing(placement, start, frames, strength, segment, resize)
        if latent is not None:
            check_encoded_for(clip_latent, word_of(latent), "reference latent")
            tell(not_read(placement, image is not None, second_image is not None))
            return io.NodeOutput(chain.add(latent_references(latent, clip, placing), ()))
        found, notes = encode_pictures(vae, (image, second_image), clip, placing)
        tell(*notes)
        return io.NodeOutput(chain.add(found, notes))


def not_read(placement: str, has_image: bool, has_second: bool) -> str:
    """What to tell of inputs beside a latent, which is placed whole and at its position; "" where there are none."""
    unread = ["image"] * has_image + ["second_image"] * has_second
    unread += [f"placement '{placement}'"] * (placement not in (FIRST, AT_POSITION))
    if not unread:
        return ""
    return f"A latent is connected, which is placed whole, at the position: not used beside it: {', '.join(unread)}."


def in_latent_frames(clip: ClipSize, position: int, unit: str) -> int:
    """A position of the clip in latent frames."""
    if unit == LATENT_FRAMES:
        return position
    return latent_of_frame(clip.version, position, clip.latent_frames)


def report_with(chain: ReferenceChain) -> str:
    """What the nodes of a chain have told, and what the running one has: each is told on the node it happened in."""
    return "\n".join(filter(None, [*chain.notes, told()]))


class PlaceReferences(OpenSoraNode):
    """``OSoraPlaceReferences``: puts a chain of references into a latent or into the conditioning."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraPlaceReferences",
            display_name="Open-Sora Place References",
            category=CATEGORY,
            description="Writes references into the clip: a frame mask on the latent (1.2), or given frames in the "
            "conditioning (1.3, 2.0). The results work in every sampler node.",
            search_aliases=["mask strategy", "frame mask", "given frames", "conditioned video"],
            inputs=[
                References.Input("references", tooltip="The chain of references."),
                io.Latent.Input("latent", tooltip="The clip to be made."),
                io.Conditioning.Input(
                    "positive", optional=True, lazy=True, tooltip="The prompt; needed for given frames."
                ),
                io.Conditioning.Input(
                    "negative", optional=True, lazy=True, tooltip="The negative prompt; needed for given frames."
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=AUTOMATIC,
                    tooltip="automatic: frame mask for 1.2 and for edited references, given frames for 1.3 and 2.0.",
                ),
                io.String.Input(
                    "mask_strategy",
                    default="",
                    tooltip="Open-Sora's own notation instead of the references' places, for example 0;0,1,0,-1,1. "
                    "Empty: keep the places.",
                ),
                io.Boolean.Input(
                    "align",
                    default=True,
                    advanced=True,
                    tooltip="Snap starts to groups of 5 latent frames in 1.2, as released: its frames only keep their "
                    "meaning inside a group.",
                ),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="latent", tooltip="The clip with references and noise mask (frame mask)."
                ),
                io.Conditioning.Output(display_name="positive", tooltip="The prompt with given frames, if any."),
                io.Conditioning.Output(
                    display_name="negative", tooltip="The negative prompt with given frames, if any."
                ),
                io.String.Output(display_name="strategy", tooltip="The places in Open-Sora's mask strategy notation."),
                io.String.Output(display_name="report", tooltip="What goes where, what was resized, cut or overlaps."),
            ],
        )

    @classmethod
    def check_early(cls, **known: Any) -> None:
        chain, latent = known["references"], known["latent"]
        rules = {"method": known["method"], "strategy": known["mask_strategy"], "align": known["align"]}
        check_references(chain, latent, clip_of(latent, chain), **rules)

    @classmethod
    def execute(
        cls,
        references: ReferenceChain,
        latent: Latent,
        *,
        positive: Conditioning | None = None,
        negative: Conditioning | None = None,
        method: str,
        mask_strategy: str,
        align: bool,
    ) -> io.NodeOutput:
        clip = clip_of(latent, references)
        placed = place_references(
            references,
            latent,
            clip,
            positive or [],
            negative or [],
            method=method,
            strategy=mask_strategy,
            align=align,
        )
        written = strategy_notes(references, clip, "" if mask_strategy else placed.strategy, align)
        tell(*placed.notes[len(references.notes) :], *written, level=logging.INFO)
        return io.NodeOutput(placed.latent, placed.positive, placed.negative, placed.strategy, report_with(references))
