"""Size and length: from a resolution class, a shape and a duration to numbers and an empty latent."""

from __future__ import annotations

import logging
from typing import Any

import torch
from comfy_api.latest import io

from ..opensora_models.native.cost import cost_sentences
from ..opensora_models.native.memory import card_bytes, check_latents_fit
from ..opensora_models.native.messages import tell
from ..opensora_models.native.model.base_model import release_of
from ..opensora_models.native.sampling.clips import marked
from ..opensora_models.native.text.reader import chosen_release
from ..opensora_models.releases.known import IMAGE_STAGE, RELEASES, STAGE_OF, release_named
from ..opensora_models.releases.printed_sizes import MAX_SIDE, RESOLUTIONS
from ..opensora_models.releases.release import Release
from ..opensora_models.releases.shapes import (
    COMMON_RATIOS,
    MORE_RATIOS,
    SECONDS,
    frames_of,
    label_of,
    size_of,
    usable_size,
)
from ..opensora_models.releases.sizes import RESOLUTIONS as SQUARE_CLASSES
from ..opensora_models.releases.sizes import check_size
from ..opensora_models.sampling.effort import clip_sentence, picture_summary, summary
from .door import ChoiceInput, OpenSoraNode

IMAGE = "image"
CUSTOM = "custom"
LENGTHS = (IMAGE, *SECONDS, CUSTOM)
MAX_FRAMES = 4097
"""Half a minute more than the longest published clip, and a good length in every version but the last."""
DEFAULT_ASPECT = label_of("9:16")
MORE = "more"
CINEMA = label_of("9:21")
NO_MODEL = object()
"""What stands for a MODEL where none is linked; a linked one is unknown before the graph runs."""
COST_TOOLTIP = (
    "What the clip costs, in sentences. Memory: all weights and one row of the network, which is the clip going once "
    "through it. Operations: those of a row (one multiply-add counts as two) times the rows of the released steps. "
    "Time: operations divided by those a second measured in the last run of such a model on this machine."
)
LENGTH_RULES = ", ".join(f"{release.latents.lengths.rule} ({release.id})" for release in RELEASES.values())
SIDE_RULES = ", ".join(f"{release.sizes.multiple} ({release.id})" for release in RELEASES.values())


def version_input(*more: str) -> io.Combo.Input:
    """The release a number depends on, where no MODEL tells it."""
    stage = f" {IMAGE_STAGE}: the picture that Flux makes before a video of 2.0." if IMAGE_STAGE in more else ""
    return io.Combo.Input(
        "version",
        options=[*RELEASES, *more],
        default="1.2",
        tooltip=f"Open-Sora version of the model; not needed where MODEL is connected. Frames of a clip: 1 or "
        f"{LENGTH_RULES}.{stage}",
    )


def model_input() -> io.Model.Input:
    """The model whose release is meant."""
    return io.Model.Input("model", optional=True, tooltip="The diffusion model; it decides about the version.")


def chosen_frames(release: Release, length: str, custom_frames: int) -> int:
    """Frames meant by a length preset or by the custom number; a ragged custom number is refused."""
    if length == IMAGE:
        return 1
    if length == CUSTOM:
        release.latents.lengths.check(custom_frames, release.title)
        return custom_frames
    return frames_of(release, length)


def chosen_shape(aspect_ratio: str, more_ratios: str) -> str:
    """The shape that counts; one of the rarer ones that does not is told."""
    if aspect_ratio != MORE and more_ratios != CINEMA:
        tell(f"more_ratios is {more_ratios} and not used, since aspect_ratio is {aspect_ratio} and not {MORE}.")
    return more_ratios if aspect_ratio == MORE else aspect_ratio


def tell_length(release: Release, frames: int) -> None:
    """Say where a clip is longer than those the release was made for, or comes back from the decoder short."""
    lengths, longest = release.latents.lengths, release.latents.lengths.longest
    lost = lengths.lost(frames)
    if lost:
        tell(
            f"{frames} frames of {release.title} will come back as {frames - lost} with the released tiling of its "
            f"VAE; {frames - lengths.step} or {frames + lengths.step} come back whole."
        )
    if longest is not None and frames > longest:
        tell(
            f"{release.title} was released for clips of up to {longest} frames, this one has {frames}; for more use "
            "Open-Sora Long Video or expect it to drift."
        )


class Size(OpenSoraNode):
    """``OSoraSize``: resolution class, aspect ratio and length in; height, width, frames and a sentence out."""

    depends = frozenset({"custom_frames"})

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraSize",
            display_name="Open-Sora Size & Length",
            category="Open-Sora/latent",
            description="Turns a resolution class, a shape and a length into numbers Open-Sora was trained for.",
            search_aliases=["open-sora resolution", "aspect ratio", "video length", "video size"],
            inputs=[
                version_input(IMAGE_STAGE),
                io.Combo.Input(
                    "resolution",
                    options=[*RESOLUTIONS, *SQUARE_CLASSES],
                    default="240p",
                    tooltip="Area class: 480p at 1:1 is 640×640 pixels; 256px and 768px (2.0) are 256² and 768². "
                    "Memory and time grow with the area.",
                ),
                ChoiceInput(
                    "aspect_ratio",
                    [*COMMON_RATIOS, MORE],
                    also=MORE_RATIOS,
                    default=DEFAULT_ASPECT,
                    tooltip="Height:width: 9:16 is a wide picture, 16:9 a tall one. (2.0 itself writes width:height.) "
                    "more: the one chosen as more_ratios.",
                ),
                io.Combo.Input(
                    "length",
                    options=list(LENGTHS),
                    default="2s",
                    tooltip="One image, a duration at 24 frames per second, or your own number of frames below. 5s are "
                    "the 129 frames of 2.0's settings.",
                ),
                io.Int.Input(
                    "custom_frames",
                    default=51,
                    min=1,
                    max=MAX_FRAMES,
                    tooltip=f"Frames when length is custom: 1 or {LENGTH_RULES}.",
                ),
                model_input(),
                io.Combo.Input(
                    "more_ratios",
                    options=list(MORE_RATIOS),
                    default=CINEMA,
                    optional=True,
                    advanced=True,
                    tooltip="The rarer shapes, height:width. Counts where aspect_ratio is more.",
                ),
            ],
            outputs=[
                io.Int.Output("height", tooltip="Height in pixels the model will really use."),
                io.Int.Output("width", tooltip="Width in pixels the model will really use."),
                io.Int.Output("frames", tooltip="Frames of the decoded clip."),
                io.Int.Output("latent_frames", tooltip="Latent frames of the clip."),
                io.String.Output("summary", tooltip=COST_TOOLTIP),
            ],
        )

    @classmethod
    def validate_inputs(
        cls,
        version: str | None = None,
        aspect_ratio: str | None = None,
        length: str | None = None,
        custom_frames: int | None = None,
        model: Any = NO_MODEL,
    ) -> bool | str:
        # Only the rule of the length, and shapes of older graphs. The rule of the shape speaks in execute, and so do
        # both where a linked MODEL, which arrives as None, will tell the release.
        if model is NO_MODEL and version in RELEASES and length and custom_frames is not None:
            chosen_frames(RELEASES[version], length, custom_frames)
        return True

    @classmethod
    def execute(
        cls, version: str, resolution: str, aspect_ratio: str, length: str, custom_frames: int, model: Any = None,
        more_ratios: str = CINEMA,
    ) -> io.NodeOutput:  # fmt: skip
        shape = chosen_shape(aspect_ratio, more_ratios)
        if version == IMAGE_STAGE:
            return cls._picture(resolution, shape, length, model)
        release = chosen_release(model, version)
        published = size_of(release.sizes, release.title, resolution, shape)
        height, width = usable_size(release.sizes, *published)
        count = chosen_frames(release, length, custom_frames)
        clip = (1, *release.latent_shape(count, height, width))
        said = cost_sentences(release, model, clip, card_bytes())
        tell(clip_sentence(release, count, height, width, published), *said, level=logging.INFO)
        tell_length(release, count)
        whole = " ".join([summary(release, count, height, width, published), *said])
        return io.NodeOutput(height, width, count, release.latents.lengths.counting.latents(count), whole)

    @classmethod
    def _picture(cls, resolution: str, shape: str, length: str, model: Any) -> io.NodeOutput:
        """The numbers of the picture before the video, which another model makes."""
        release = release_of(model) or release_named(STAGE_OF)  # the MODEL may be Flux, which makes the picture
        if release.image_stage is None:
            raise ValueError(f"{release.title} has no image stage; choose version {release.id}.")
        height, width = size_of(release.image_stage, IMAGE_STAGE, resolution, shape)
        said = [picture_summary(height, width)]
        if length != IMAGE:
            said.append(f"It is one picture; the length {length} is that of the video.")
        tell(*said, level=logging.INFO)
        return io.NodeOutput(height, width, 1, 1, " ".join(said))


class EmptyLatent(OpenSoraNode):
    """``OSoraEmptyLatent``: a latent of zeros for a clip of the given size and length."""

    depends = frozenset({"frames"})

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
                    max=MAX_SIDE,
                    step=8,
                    tooltip=f"Height in pixels, a multiple of {SIDE_RULES}.",
                ),
                io.Int.Input(
                    "width",
                    default=424,
                    min=16,
                    max=MAX_SIDE,
                    step=8,
                    tooltip=f"Width in pixels, a multiple of {SIDE_RULES}.",
                ),
                io.Int.Input(
                    "frames",
                    default=51,
                    min=1,
                    max=MAX_FRAMES,
                    tooltip=f"Frames of the clip: 1 or {LENGTH_RULES}.",
                ),
                io.Int.Input(
                    "batch_size", default=1, min=1, max=64, tooltip="Clips made at once, each with own noise."
                ),
                model_input(),
            ],
            outputs=[io.Latent.Output(display_name="latent", tooltip="Zeros of shape [batch, channels, T, h, w].")],
        )

    @classmethod
    def validate_inputs(
        cls, version: str | None = None, frames: int | None = None, model: Any = NO_MODEL
    ) -> bool | str:
        # Only the rule of the length: ComfyUI marks every input named here. The rule of the size speaks in execute,
        # and so do both where a linked MODEL, which arrives as None, will tell the release.
        if model is NO_MODEL and version in RELEASES and frames is not None:
            RELEASES[version].latents.lengths.check(frames, RELEASES[version].title)
        return True

    @classmethod
    def execute(
        cls, version: str, height: int, width: int, frames: int, batch_size: int, model: Any = None
    ) -> io.NodeOutput:
        release = chosen_release(model, version)
        release.latents.lengths.check(frames, release.title)
        check_size(release.sizes, release.title, height, width)
        tell_length(release, frames)
        shape = (batch_size, *release.latent_shape(frames, height, width))
        check_latents_fit(shape)
        latent = {"samples": torch.zeros(shape), "downscale_ratio_spacial": release.latents.space}
        return io.NodeOutput(marked(latent, release, by_model=model is not None))
