"""The strength of a reference along the clip, by a curve."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io

from ..opensora_models.native.core.curves import chosen_curve, curve_input, points_input
from ..opensora_models.native.messages import tell
from ..opensora_models.native.sampling.reference_inputs import ReferenceChain
from ..opensora_models.sampling.factor_curve import read_points
from ..opensora_models.sampling.strength_over_clip import with_strength_curve
from .door import OpenSoraNode
from .references import CATEGORY, References

FARTHEST = 10000


class StrengthCurve(OpenSoraNode):
    """``OSoraStrengthCurve``: the strength of a reference times a curve over its frames in the clip."""

    depends = frozenset({"reference"})

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraStrengthCurve",
            display_name="Open-Sora Strength over Clip",
            category=CATEGORY,
            description="Keeps a reference at one end and frees it along the clip: its strength times a curve over its "
            "latent frames.",
            search_aliases=["reference strength", "strength curve", "strength schedule", "edit video", "fade"],
            inputs=[
                References.Input("references", tooltip="The chain of references."),
                io.Int.Input(
                    "reference",
                    default=-1,
                    min=-FARTHEST,
                    max=FARTHEST,
                    tooltip="Which reference of the chain, counted from 0; negative from its end, -1 is the last one.",
                ),
                points_input("strength_points"),
                curve_input(
                    "strength_curve",
                    "What the reference's strength is multiplied by, from its first latent frame in the clip (left) to "
                    "its last one (right); at 1 it stays, at 0 the frame is kept. Strength 0 stays 0.",
                ),
            ],
            outputs=[
                References.Output(
                    display_name="references",
                    tooltip="The chain with the curve, for another reference, a sampler or Place References.",
                )
            ],
        )

    @classmethod
    def validate_inputs(cls, strength_points: str | None = None) -> bool | str:
        read_points("strength_points", strength_points or "")
        return True

    @classmethod
    def execute(
        cls, references: ReferenceChain, reference: int, strength_points: str = "", strength_curve: Any = None
    ) -> io.NodeOutput:
        curve = chosen_curve("strength", strength_points, strength_curve)
        made = with_strength_curve(references.references, reference, curve)
        tell(made.said, level=logging.INFO if made.works or curve.flat else logging.WARNING)
        return io.NodeOutput(ReferenceChain(made.references, references.notes))
