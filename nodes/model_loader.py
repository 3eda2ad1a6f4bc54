"""Loading the diffusion model."""

from __future__ import annotations

from comfy_api.latest import io

from ..opensora_models.checkpoint.settings import Choices
from ..opensora_models.native.files import MODELS
from ..opensora_models.native.model.loading import WEIGHT_DTYPES, load_model
from .door import OpenSoraNode
from .files import FileInput

AUTOMATIC = "automatic"
ROTARY = {AUTOMATIC: None, "on": True, "off": False}
ROTATION = {AUTOMATIC: None, "half-split": "half-split", "interleaved": "interleaved"}
IN_THE_NETWORK, ONCE_PER_RUN = "in the network", "once per run"
ACCURATE, AS_UPSTREAM = "accurate", "as upstream bf16"


class ModelLoader(OpenSoraNode):
    """``OSoraModelLoader``: an Open-Sora 1.2, 1.3 or 2.0 file in, ComfyUI's MODEL out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraModelLoader",
            display_name="Open-Sora Load Model",
            category="Open-Sora/loaders",
            description="Loads an Open-Sora 1.2, 1.3 or 2.0 diffusion model; the release is read off the file.",
            search_aliases=["open-sora", "text to video", "extend", "load diffusion model", "stdit3", "mmdit"],
            inputs=[
                FileInput(
                    "model_name",
                    MODELS,
                    tooltip="A file in models/diffusion_models. Choosing one part of a sharded model loads all parts.",
                ),
                io.Combo.Input(
                    "weight_dtype",
                    options=list(WEIGHT_DTYPES),
                    default="default",
                    tooltip="How weights are kept in memory. default: ComfyUI decides. fp8 halves the memory of bf16 "
                    "and costs some quality. fp16 is stored, but computed in bf16 or fp32.",
                ),
                io.Combo.Input(
                    "rounding",
                    options=[ACCURATE, AS_UPSTREAM],
                    default=ACCURATE,
                    advanced=True,
                    tooltip="as upstream bf16 repeats the rounding of the original program, to compare with its "
                    "published samples. accurate is better in every other case.",
                ),
                io.Int.Input(
                    "window",
                    default=0,
                    min=0,
                    max=64,
                    advanced=True,
                    tooltip="Open-Sora 1.3 only: side of the attention window in tokens of 16 pixels. 0: from the "
                    "settings beside the file, else the released 8.",
                ),
                io.Combo.Input(
                    "spatial_rotary",
                    options=list(ROTARY),
                    default=AUTOMATIC,
                    advanced=True,
                    tooltip="Open-Sora 1.3 only: rotary positions inside a frame. automatic: from the settings beside "
                    "the file, else on as released.",
                ),
                io.Combo.Input(
                    "rotation",
                    options=list(ROTATION),
                    default=AUTOMATIC,
                    optional=True,
                    advanced=True,
                    tooltip="Open-Sora 2.0 only: which numbers of a head are rotated together. automatic: from the "
                    "settings beside the file, else half-split for separate and interleaved for fused projections, as "
                    "released. The wrong one gives noise.",
                ),
                io.Combo.Input(
                    "modulations",
                    options=[IN_THE_NETWORK, ONCE_PER_RUN],
                    default=IN_THE_NETWORK,
                    optional=True,
                    advanced=True,
                    tooltip="Open-Sora 2.0 only: once per run computes the layers that see only time and prompt before "
                    "the first step and keeps them out of the card's memory, 27 % of the weights. The same video.",
                ),
            ],
            outputs=[
                io.Model.Output(
                    display_name="model", tooltip="The diffusion model, for KSampler and every other MODEL input."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str | None, **kwargs: object) -> str:
        """Loads again when the file on disk has changed."""
        return MODELS.fingerprint(model_name)

    @classmethod
    def execute(
        cls,
        model_name: str,
        weight_dtype: str,
        rounding: str,
        window: int,
        spatial_rotary: str,
        rotation: str = AUTOMATIC,
        modulations: str = IN_THE_NETWORK,
    ) -> io.NodeOutput:
        choices = Choices(window or None, ROTARY[spatial_rotary], rotation=ROTATION[rotation])
        ways = {"as_upstream": rounding == AS_UPSTREAM, "modulations_apart": modulations == ONCE_PER_RUN}
        return io.NodeOutput(load_model(MODELS.path(model_name), weight_dtype, choices, **ways))
