"""The schedule: exact noise levels, and the shift on a model for ComfyUI's own schedulers."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.latest import io
from torch import Tensor

from ..opensora_models.native.sampling.clips import (
    Latent,
    clip_shift,
    clip_sigmas,
    clip_size,
    picture_size,
    tell_untouched,
)
from ..opensora_models.native.sampling.samplers import patch_shift
from ..opensora_models.releases.known import IMAGE_STAGE
from ..opensora_models.sampling.released_settings import STEPS_START
from .door import OpenSoraNode

PRECISIONS = {"exact": torch.float32, "as released (bfloat16)": torch.bfloat16}
VIDEO = "video"
CATEGORY = "Open-Sora/sampling"


def steps_input() -> io.Input:
    """How many steps a schedule has."""
    return io.Int.Input(
        "steps",
        default=int(STEPS_START["steps"]),
        min=1,
        max=1000,
        tooltip="Sampling steps; released: 30, for 2.0 50.",
    )


def full_schedule_input() -> io.Input:
    """The whole of a schedule, for what changes over the steps of a run; :func:`levels_of` reads it."""
    return io.Sigmas.Input(
        "full_schedule",
        optional=True,
        advanced=True,
        tooltip="The sigmas of the whole run, if the sampler gets only a part of them (Split Sigmas): steps are then "
        "counted in the whole run.",
    )


def levels_of(full_schedule: Tensor | None) -> tuple[float, ...] | None:
    """The noise levels of the whole run; None where those of the sampler are all."""
    return None if full_schedule is None else tuple(full_schedule.tolist())


def shift_inputs() -> list[io.Input]:
    """Options of the shift that few people need."""
    return [
        io.Float.Input(
            "transform_scale",
            default=1.0,
            min=0.05,
            max=20.0,
            step=0.05,
            advanced=True,
            tooltip="Extra factor on the shift of 1.3 videos. The released value is 1; 1.2, 2.0 and images ignore it.",
        ),
        io.Boolean.Input(
            "count_frames",
            default=True,
            advanced=True,
            tooltip="Off: 1.3 clips get the shift of a single image. 1.2 and 2.0 always count their frames.",
        ),
        io.Combo.Input(
            "rounding",
            options=list(PRECISIONS),
            default="exact",
            advanced=True,
            tooltip="As released repeats the bfloat16 rounding of 1.2 and 1.3; exact is the published formula.",
        ),
    ]


class Sigmas(OpenSoraNode):
    """``OSoraSigmas``: the exact noise levels of Open-Sora for the clip's size and length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraSigmas",
            display_name="Open-Sora Sigmas",
            category=CATEGORY,
            description="The noise levels Open-Sora visits for this size and length: larger clips spend more steps in "
            "high noise.",
            search_aliases=["open-sora scheduler", "rectified flow schedule", "timestep transform"],
            inputs=[
                io.Model.Input("model", tooltip="An Open-Sora model; its version decides about the schedule."),
                io.Latent.Input("latent", tooltip="The clip to be sampled; only its size and length are read."),
                steps_input(),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    tooltip="Below 1 the run starts from the latent with that much of the schedule left.",
                ),
                io.Boolean.Input(
                    "discrete",
                    default=False,
                    advanced=True,
                    tooltip="Round times to whole numbers of 1000 before the shift, an option of 1.2 and 1.3.",
                ),
                *shift_inputs(),
                io.Combo.Input(
                    "stage",
                    options=[VIDEO, IMAGE_STAGE],
                    default=VIDEO,
                    optional=True,
                    advanced=True,
                    tooltip=f"{IMAGE_STAGE}: the times of the picture that Flux makes before a video of 2.0; model and "
                    "latent are then Flux's.",
                ),
            ],
            outputs=[io.Sigmas.Output(display_name="sigmas", tooltip="steps + 1 noise levels, from 1 down to 0.")],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        latent: Latent,
        steps: int,
        denoise: float,
        discrete: bool,
        transform_scale: float,
        count_frames: bool,
        rounding: str,
        stage: str = VIDEO,
    ) -> io.NodeOutput:
        clip = picture_size(latent, model) if stage == IMAGE_STAGE else clip_size(latent, model)
        if stage == VIDEO:
            tell_untouched(clip.known_release, STEPS_START, steps=steps)
        levels = clip_sigmas(
            clip,
            steps,
            denoise=denoise,
            discrete=discrete,
            transform_scale=transform_scale,
            scale_temporal=count_frames,
            dtype=PRECISIONS[rounding],
        )
        return io.NodeOutput(levels)


class ModelSampling(OpenSoraNode):
    """``OSoraModelSampling``: sets Open-Sora's shift on a model, from the clip's size and length."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraModelSampling",
            display_name="Open-Sora Model Sampling",
            category=CATEGORY,
            description="Makes ComfyUI's schedulers right for Open-Sora: sets the shift for this size and length.",
            search_aliases=["open-sora shift", "model sampling flow"],
            inputs=[
                io.Model.Input("model", tooltip="An Open-Sora model."),
                io.Latent.Input("latent", tooltip="The clip to be sampled; only its size and length are read."),
                *shift_inputs(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the shift; use it in any sampler node."),
                io.Float.Output(
                    display_name="shift", tooltip="The shift that was set; 1 is a 512x512 image, in 2.0 256x256."
                ),
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        latent: Latent,
        transform_scale: float,
        count_frames: bool,
        rounding: str,
    ) -> io.NodeOutput:
        shift = clip_shift(
            clip_size(latent, model),
            transform_scale=transform_scale,
            scale_temporal=count_frames,
            dtype=PRECISIONS[rounding],
        )
        return io.NodeOutput(patch_shift(model, shift), shift)
