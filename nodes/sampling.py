"""The one sampler node most graphs use, built from the pieces other nodes offer one by one."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..opensora_models.native.messages import tell
from ..opensora_models.native.sampling.clips import (
    AUTOMATIC,
    GUIDANCE_PRESETS,
    ClipRun,
    Latent,
    clip_size,
    latent_for,
    sample_clip,
)
from ..opensora_models.native.sampling.guiders import Conditioning
from ..opensora_models.native.sampling.reference_inputs import ReferenceChain, check_clip, method_for, place_references
from ..opensora_models.sampling.released_settings import RUN_STARTS
from .door import OpenSoraNode
from .guidance import cfg_input
from .references import references_input, report_with
from .sigmas import CATEGORY, steps_input


def run_inputs() -> list[io.Input]:
    """Steps, guidance and seed."""
    return [
        steps_input(),
        cfg_input(),
        io.Int.Input(
            "seed",
            default=42,
            min=0,
            max=0xFFFFFFFFFFFFFFFF,
            control_after_generate=True,
            tooltip="The same seed makes the same clip.",
        ),
    ]


def preset_inputs() -> list[io.Input]:
    """Guidance preset and image guidance."""
    return [
        io.Combo.Input(
            "guidance",
            options=list(GUIDANCE_PRESETS),
            default=AUTOMATIC,
            advanced=True,
            tooltip="Released settings beside the scales: oscillation, flaw fix, fading image guidance. automatic "
            "chooses by the model's version and by given frames.",
        ),
        io.Float.Input(
            "image_cfg",
            default=RUN_STARTS["image_cfg"],
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="How strongly given frames pull (1.3 and 2.0). Released: 5 for 1.3 (examples use 2 to 2.5), 3 for "
            "2.0.",
        ),
        io.Boolean.Input(
            "renoise_given",
            default=True,
            advanced=True,
            tooltip="Noise given frames (1.3) anew before every step, as released.",
        ),
    ]


class Sampler(OpenSoraNode):
    """``OSoraSampler``: prompt, clip and references in, finished latent out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraSampler",
            display_name="Open-Sora Sampler",
            category=CATEGORY,
            description="Samples a clip with the released schedule and guidance of the model's version.",
            search_aliases=["open-sora", "text to video", "image to video", "extend", "open-sora ksampler"],
            inputs=[
                io.Model.Input("model", tooltip="An Open-Sora model."),
                io.Conditioning.Input("positive", lazy=True, tooltip="The prompt."),
                io.Conditioning.Input("negative", lazy=True, tooltip="The negative or empty prompt."),
                io.Latent.Input("latent", tooltip="The clip to be made: empty, or with a noise mask to keep frames."),
                *run_inputs(),
                references_input("Pictures and clips to start from, end on or edit."),
                io.Float.Input(
                    "denoise",
                    default=1.0,
                    min=0.01,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="Below 1 the latent itself is the start, and that much of the schedule is left.",
                ),
                *preset_inputs(),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The finished clip, to be decoded."),
                io.String.Output(
                    display_name="report", tooltip="Where references went, and what became another clip than asked for."
                ),
            ],
        )

    @classmethod
    def check_early(cls, **known: Any) -> None:
        check_clip(known["model"], known["latent"], known.get("references"))

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent: Latent,
        steps: int,
        cfg: float,
        seed: int,
        *,
        references: ReferenceChain | None = None,
        denoise: float,
        guidance: str,
        image_cfg: float,
        renoise_given: bool,
    ) -> io.NodeOutput:
        latent, chain = latent_for(latent, model), references or ReferenceChain()
        clip = clip_size(latent, model)
        method = method_for(model, clip.opensora_version, AUTOMATIC)
        placed = place_references(chain, latent, clip, positive, negative, method=method)
        tell(*placed.notes[len(chain.notes) :], level=logging.INFO)
        run = ClipRun(steps, seed, cfg, image_cfg, guidance, denoise, renoise_given)
        done = sample_clip(model, placed.positive, placed.negative, placed.latent, run)
        return io.NodeOutput(done, report_with(chain))
