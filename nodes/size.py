"""Size and length: from a resolution class, a shape and a duration to numbers and an empty latent."""

from __future__ import annotations

import logging

import torch
from comfy_api.latest import io

from ..opensora_models.native.memory import check_latents_fit
from ..opensora_models.native.messages import tell
from ..opensora_models.native.sampling.clips import marked
from ..opensora_models.releases import groups as frames
from ..opensora_models.releases import printed_sizes as sizes
from ..opensora_models.releases import stdit3_cost as cost
from ..opensora_models.releases.groups import Version, check_length
from ..opensora_models.releases.known import RELEASES
from .door import OpenSoraNode

IMAGE = "image"
CUSTOM = "custom"
LENGTHS = (IMAGE, *sizes.PRESET_LENGTHS, CUSTOM)
MAX_FRAMES = 4097
"""Half a minute more than the longest published clip, and a good length in every version."""


def shape_word(ratio: str) -> str:
    """A word for a height:width ratio, because "9:16" alone is read as portrait by half of all people."""
    height, width = (int(part) for part in ratio.split(":"))
    return "square" if height == width else "wide" if height < width else "tall"


def label_of(ratio: str) -> str:
    """A height:width ratio as the menu shows it."""
    return f"{ratio} ({shape_word(ratio)})"


ASPECT_RATIOS = {label_of(ratio): ratio for ratio in sizes.aspect_ratios()}
DEFAULT_ASPECT = "9:16 (wide)"


def version_input() -> io.Combo.Input:
    """The model version a number depends on."""
    return io.Combo.Input(
        "version",
        options=list(frames.VERSIONS),
        default="1.2",
        tooltip="Open-Sora version of the model. 1.2: clips of 17·n frames, sizes in multiples of 8 pixels. "
        "1.3: clips of 16·n + 1 frames, multiples of 16 pixels.",
    )


def chosen_frames(version: Version, length: str, custom_frames: int) -> int:
    """Frames meant by a length preset or by the custom number; a ragged custom number is refused."""
    if length == IMAGE:
        return 1
    if length == CUSTOM:
        check_length(version, custom_frames)
        return custom_frames
    return sizes.preset_frames(version, length)


def chosen_size(version: Version, resolution: str, aspect_ratio: str) -> tuple[sizes.Size, sizes.Size]:
    """Published size of the class and the usable size inside it, both height, width in pixels."""
    ratio, known = ASPECT_RATIOS[aspect_ratio], sizes.ratios_of(resolution)
    if ratio not in known:
        wanted = float(sizes.aspect_ratios()[ratio])
        nearest = min(known, key=lambda name: abs(float(known[name]) - wanted))
        raise ValueError(
            f"The input aspect_ratio is {aspect_ratio}, which resolution {resolution} has no size for; the nearest "
            f"good value is {label_of(nearest)}."
        )
    published = sizes.image_size(resolution, ratio)
    return published, sizes.usable_size(version, *published)


class Size(OpenSoraNode):
    """``OSoraSize``: resolution class, aspect ratio and length in; height, width, frames and a sentence out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraSize",
            display_name="Open-Sora Size & Length",
            category="Open-Sora/latent",
            description="Turns a resolution class, a shape and a length into numbers Open-Sora was trained for.",
            search_aliases=["open-sora resolution", "aspect ratio", "video length"],
            inputs=[
                version_input(),
                io.Combo.Input(
                    "resolution",
                    options=list(sizes.RESOLUTIONS),
                    default="240p",
                    tooltip="Area class: 480p at 1:1 is 640×640 pixels. Memory and time grow with the area.",
                ),
                io.Combo.Input(
                    "aspect_ratio",
                    options=list(ASPECT_RATIOS),
                    default=DEFAULT_ASPECT,
                    tooltip="Height:width, as Open-Sora writes it: 9:16 is a wide picture, 16:9 a tall one.",
                ),
                io.Combo.Input(
                    "length",
                    options=list(LENGTHS),
                    default="2s",
                    tooltip="One image, a duration at 24 frames per second, or your own number of frames below.",
                ),
                io.Int.Input(
                    "custom_frames",
                    default=51,
                    min=1,
                    max=MAX_FRAMES,
                    tooltip="Frames when length is custom: 1 or 17·n (1.2), 1 or 16·n + 1 (1.3).",
                ),
            ],
            outputs=[
                io.Int.Output("height", tooltip="Height in pixels the model will really use."),
                io.Int.Output("width", tooltip="Width in pixels the model will really use."),
                io.Int.Output("frames", tooltip="Frames of the decoded clip."),
                io.Int.Output("latent_frames", tooltip="Latent frames of the clip: 5 for every group of frames."),
                io.String.Output("summary", tooltip="Latent shape and cost in one plain sentence."),
            ],
        )

    @classmethod
    def validate_inputs(
        cls, version: Version | None = None, length: str | None = None, custom_frames: int | None = None
    ) -> bool | str:
        # Only the rule of the length: ComfyUI marks every input named here. The rule of the shape speaks in execute.
        if version and length and custom_frames is not None:
            chosen_frames(version, length, custom_frames)
        return True

    @classmethod
    def execute(
        cls, version: Version, resolution: str, aspect_ratio: str, length: str, custom_frames: int
    ) -> io.NodeOutput:
        published, (height, width) = chosen_size(version, resolution, aspect_ratio)
        count = chosen_frames(version, length, custom_frames)
        summary = cost.summary(version, count, height, width, published)
        tell(summary, level=logging.INFO)
        return io.NodeOutput(height, width, count, frames.latent_frames(version, count), summary)


class EmptyLatent(OpenSoraNode):
    """``OSoraEmptyLatent``: a latent of zeros for a clip of the given size and length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraEmptyLatent",
            display_name="Empty Open-Sora Latent",
            category="Open-Sora/latent",
            description="An empty clip to start text-to-video from; one frame makes an image.",
            search_aliases=["open-sora empty video", "latent video"],
            inputs=[
                version_input(),
                io.Int.Input(
                    "height",
                    default=240,
                    min=16,
                    max=sizes.MAX_SIDE,
                    step=8,
                    tooltip="Height in pixels, a multiple of 8 (1.2) or 16 (1.3).",
                ),
                io.Int.Input(
                    "width",
                    default=424,
                    min=16,
                    max=sizes.MAX_SIDE,
                    step=8,
                    tooltip="Width in pixels, a multiple of 8 (1.2) or 16 (1.3).",
                ),
                io.Int.Input(
                    "frames",
                    default=51,
                    min=1,
                    max=MAX_FRAMES,
                    tooltip="Frames of the clip: 1 or 17·n (1.2), 1 or 16·n + 1 (1.3).",
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64, tooltip="Clips made at once, each with own noise."
                ),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Zeros of shape [batch, channels, T, h, w].")],
        )

    @classmethod
    def validate_inputs(cls, version: Version | None = None, frames: int | None = None) -> bool | str:
        # Only the rule of the length: ComfyUI marks every input named here. The rule of the size speaks in execute.
        if version and frames is not None:
            check_length(version, frames)
        return True

    @classmethod
    def execute(cls, version: Version, height: int, width: int, frames: int, batch_size: int) -> io.NodeOutput:
        check_length(version, frames)
        sizes.check_size(version, height, width)
        shape = empty_shape(version, height, width, frames, batch_size)
        check_latents_fit(shape)
        latent = {"samples": torch.zeros(shape), "downscale_ratio_spacial": sizes.SPATIAL_FACTOR}
        return io.NodeOutput(marked(latent, RELEASES[version]))


def empty_shape(version: Version, height: int, width: int, count: int, batch: int) -> tuple[int, ...]:
    """[B, C, T, h, w] of the latent of a clip."""
    return (batch, frames.LATENT_CHANNELS[version], *frames.latent_size(version, count, height, width))
