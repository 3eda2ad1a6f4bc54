"""Guidance that changes over the steps of a run, by a curve."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..opensora_models.native.core.curves import chosen_curve, curve_input, points_input
from ..opensora_models.native.messages import tell
from ..opensora_models.native.sampling.guidance_over_time import GuidanceOverTime, with_guidance_over_time
from ..opensora_models.sampling.factor_curve import read_points
from .door import OpenSoraNode
from .sigmas import CATEGORY, full_schedule_input, levels_of

UNCHANGED = "Both curves are flat at 1: the model is as it was."


class GuidanceCurve(OpenSoraNode):
    """``OSoraGuidanceCurve``: the scales of any sampler times a curve over the steps of its run."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraGuidanceCurve",
            display_name="Open-Sora Guidance over Time",
            category=CATEGORY,
            description="Lowers guidance over the steps of a run: the sampler's own cfg times a curve. Works in every "
            "sampler.",
            search_aliases=["cfg schedule", "dynamic cfg", "cfg curve", "guidance schedule"],
            inputs=[
                io.Model.Input("model", tooltip="An Open-Sora model."),
                points_input("text_points"),
                curve_input(
                    "text_curve",
                    "What cfg is multiplied by, from the first step (left) to the last one (right); at 1 it stays, "
                    "and it never falls below 1, no guidance.",
                ),
                points_input("image_points", advanced=True),
                curve_input(
                    "image_curve",
                    "The same for image_cfg (1.3 and 2.0, where frames are given).",
                    advanced=True,
                ),
                full_schedule_input(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the curves; connect it to a sampler.")
            ],
        )

    @classmethod
    def validate_inputs(cls, text_points: str | None = None, image_points: str | None = None) -> bool | str:
        read_points("text_points", text_points or "")
        read_points("image_points", image_points or "")
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        text_points: str = "",
        text_curve: Any = None,
        image_points: str = "",
        image_curve: Any = None,
        full_schedule: Tensor | None = None,
    ) -> io.NodeOutput:
        text = chosen_curve("text", text_points, text_curve)
        image = chosen_curve("image", image_points, image_curve)
        over = GuidanceOverTime(text, image, levels_of(full_schedule))
        if text.flat and image.flat:
            tell(UNCHANGED, level=logging.INFO)
        return io.NodeOutput(with_guidance_over_time(model, over))
