"""Guidance: a GUIDER for the custom sampler, the same rules as a patch for any sampler, and the flow sampler."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..opensora_models.native.sampling.clips import model_release, tell_untouched
from ..opensora_models.native.sampling.guiders import Conditioning, OpenSoraGuider, limited_to, patch_guidance
from ..opensora_models.native.sampling.samplers import sampler
from ..opensora_models.releases.guidance import DEFAULT_FORCE_STEPS, Guidance
from ..opensora_models.sampling.released_settings import GUIDER_STARTS
from .door import OpenSoraNode
from .sigmas import CATEGORY, full_schedule_input

OFF, TEXT, TEXT_AND_IMAGE, IMAGE = "off", "text", "text and image", "image"
OSCILLATIONS = (OFF, TEXT, TEXT_AND_IMAGE, IMAGE)


def cfg_input() -> io.Input:
    """How strong text guidance is."""
    return io.Float.Input(
        "cfg",
        default=GUIDER_STARTS["cfg"],
        min=0.0,
        max=100.0,
        step=0.1,
        tooltip="How strongly the text pulls. Released: 7 for 1.2, 7.5 for 1.3 and 2.0.",
    )


def guidance_inputs() -> list[io.Input]:
    """What the guider and the patch have in common."""
    return [
        io.Float.Input(
            "image_cfg",
            default=GUIDER_STARTS["image_cfg"],
            min=0.0,
            max=100.0,
            step=0.1,
            tooltip="How strongly given frames pull (1.3 and 2.0). 0: like the text in the guider, off in the patch. "
            "Released: 5 for 1.3, 3 for 2.0.",
        ),
        io.Combo.Input(
            "oscillation",
            options=list(OSCILLATIONS),
            default=OFF,
            tooltip="Guide only every second step after the first ones: faster, and less burnt. Released: text for "
            "text-to-video, text and image with given frames.",
        ),
        io.Boolean.Input(
            "flaw_fix",
            default=False,
            tooltip="Bring contrast back to what the prompt alone would give (70 %). Released on for 1.3 "
            "text-to-video; not used with given frames.",
        ),
        *fine_inputs(),
    ]


def fine_inputs() -> list[io.Input]:
    """What the released settings fix and few people change."""
    return [
        io.Int.Input(
            "force_steps",
            default=DEFAULT_FORCE_STEPS,
            min=0,
            max=1000,
            advanced=True,
            tooltip="Steps that are always guided before oscillation begins.",
        ),
        io.Boolean.Input(
            "fade_image",
            default=True,
            advanced=True,
            tooltip="Image guidance starts at initial_image_cfg in the first frame, grows towards the last one and "
            "fades over the steps, as released; in 2.0 only where pictures are given, for clips it stays constant.",
        ),
        io.Float.Input(
            "initial_image_cfg",
            default=1.0,
            min=0.0,
            max=100.0,
            step=0.1,
            advanced=True,
            tooltip="Image guidance of the first frame when it fades.",
        ),
        *interval_inputs(),
    ]


def interval_inputs() -> list[io.Input]:
    """Which part of the run is guided, and what the whole run is."""
    return [
        io.Float.Input(
            "start_percent",
            default=0.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Part of the run after which guidance begins; steps outside follow the prompt alone.",
        ),
        io.Float.Input(
            "end_percent",
            default=1.0,
            min=0.0,
            max=1.0,
            step=0.01,
            advanced=True,
            tooltip="Part of the run after which guidance ends.",
        ),
        full_schedule_input(),
    ]


def guidance_from(
    model: Any,
    cfg: float,
    image_cfg: float,
    start_percent: float,
    end_percent: float,
    oscillation: str,
    **rest: Any,
) -> Guidance:
    """The settings of the inputs above."""
    settings = Guidance(
        text_scale=cfg,
        image_scale=image_cfg or None,
        oscillate_text=oscillation in (TEXT, TEXT_AND_IMAGE),
        oscillate_image=oscillation in (IMAGE, TEXT_AND_IMAGE),
        force_steps=rest["force_steps"],
        fade_image=rest["fade_image"],
        initial_image_scale=rest["initial_image_cfg"],
        flaw_fix=rest["flaw_fix"],
    )
    return limited_to(settings, model, start_percent, end_percent)


class Guider(OpenSoraNode):
    """``OSoraGuider``: Open-Sora guidance for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraGuider",
            display_name="Open-Sora Guider",
            category=CATEGORY,
            description="Text and image guidance with oscillation and flaw fix for the custom sampler. Rows that do "
            "not count are not computed.",
            search_aliases=["open-sora cfg guider", "image guidance", "oscillation"],
            inputs=[
                io.Model.Input("model", tooltip="An Open-Sora model."),
                io.Conditioning.Input("positive", lazy=True, tooltip="The prompt, with given frames if there are any."),
                io.Conditioning.Input("negative", lazy=True, tooltip="The negative or empty prompt."),
                cfg_input(),
                *guidance_inputs(),
            ],
            outputs=[io.Guider.Output(display_name="guider", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def check_early(cls, **known: Any) -> None:
        model_release(known["model"])

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        cfg: float,
        image_cfg: float,
        oscillation: str,
        flaw_fix: bool,
        force_steps: int,
        fade_image: bool,
        initial_image_cfg: float,
        start_percent: float,
        end_percent: float,
        full_schedule: Tensor | None = None,
    ) -> io.NodeOutput:
        settings = guidance_from(
            model,
            cfg,
            image_cfg,
            start_percent,
            end_percent,
            oscillation,
            force_steps=force_steps,
            fade_image=fade_image,
            initial_image_cfg=initial_image_cfg,
            flaw_fix=flaw_fix,
        )
        tell_untouched(model_release(model), GUIDER_STARTS, positive, cfg=cfg, image_cfg=image_cfg)
        guider = OpenSoraGuider(model, settings, full_schedule)
        guider.set_conds(positive, negative)
        return io.NodeOutput(guider)


class GuidancePatch(OpenSoraNode):
    """``OSoraGuidance``: the same guidance on a MODEL, for KSampler and every other sampler."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraGuidance",
            display_name="Open-Sora Guidance",
            category=CATEGORY,
            description="Oscillation, flaw fix and image guidance for any sampler; the sampler's own cfg stays the "
            "text guidance.",
            search_aliases=["open-sora oscillation", "flaw fix", "image guidance patch"],
            inputs=[io.Model.Input("model", tooltip="An Open-Sora model."), *guidance_inputs()],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the guidance; connect it to a sampler.")
            ],
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        image_cfg: float,
        oscillation: str,
        flaw_fix: bool,
        force_steps: int,
        fade_image: bool,
        initial_image_cfg: float,
        start_percent: float,
        end_percent: float,
        full_schedule: Tensor | None = None,
    ) -> io.NodeOutput:
        settings = guidance_from(
            model,
            1.0,
            image_cfg,
            start_percent,
            end_percent,
            oscillation,
            force_steps=force_steps,
            fade_image=fade_image,
            initial_image_cfg=initial_image_cfg,
            flaw_fix=flaw_fix,
        )
        return io.NodeOutput(patch_guidance(model, settings, full_schedule))


class FlowSampler(OpenSoraNode):
    """``OSoraFlowSampler``: Open-Sora's own sampler for SamplerCustomAdvanced."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraFlowSampler",
            display_name="Open-Sora Flow Sampler",
            category=CATEGORY,
            description="The rectified flow with Open-Sora's rules for kept, edited and given frames.",
            search_aliases=["open-sora sampler select", "rectified flow", "sdedit"],
            inputs=[
                io.Boolean.Input(
                    "renoise_given",
                    default=True,
                    tooltip="Noise given frames (1.3) anew before every step, as released; nothing to do without them "
                    "and in 2.0. Off: they are made from noise like the rest.",
                ),
            ],
            outputs=[io.Sampler.Output(display_name="sampler", tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls,
        renoise_given: bool,
    ) -> io.NodeOutput:
        return io.NodeOutput(sampler(renoise_given=renoise_given))
