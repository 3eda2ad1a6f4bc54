"""From words to conditioning."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..opensora_models.native.text.encoding import check_prompts, encode_both, null_conditioning
from .door import OpenSoraNode

CATEGORY = "Open-Sora/text"


class TextEncode(OpenSoraNode):
    """``OSoraTextEncode``: a prompt and a negative prompt in, positive and negative conditioning out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraTextEncode",
            display_name="Open-Sora Text Encode",
            category=CATEGORY,
            description="Encodes a prompt as the model's release was trained: literal, cut at its limit.",
            search_aliases=["open-sora prompt", "clip text encode", "negative prompt"],
            inputs=[
                io.Clip.Input(
                    "clip",
                    lazy=True,
                    tooltip="T5 v1.1 XXL, for 2.0 with CLIP-L, from Open-Sora Load Text Encoder; or from Load CLIP, "
                    "type pixart, or DualCLIPLoader, type flux.",
                ),
                io.String.Input(
                    "prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    tooltip="What the video shows. '|0| text |2| other' changes it from segment 2 of a long video.",
                ),
                io.String.Input(
                    "negative_prompt",
                    multiline=True,
                    dynamic_prompts=True,
                    default="",
                    placeholder="Empty needs MODEL: 1.2 and 1.3 have learned a text for no prompt",
                    tooltip="What to stay away from. Empty needs MODEL: 1.2 and 1.3 hold a learned text for no prompt, "
                    "in 2.0 it is the encoded empty text. Only 1.3 and 2.0 were made with written ones.",
                ),
                io.Model.Input(
                    "model",
                    optional=True,
                    tooltip="The diffusion model the text is for: it decides about length, padding and cleaning, and "
                    "holds the learned text of an empty negative (1.2, 1.3).",
                ),
                io.Boolean.Input(
                    "clean",
                    default=True,
                    tooltip="1.2 and 1.3: clean the text as the training captions were: links, tags, numbers and "
                    "brackets go. Off: lower case only. 2.0 was trained without cleaning.",
                ),
            ],
            outputs=[
                io.Conditioning.Output(display_name="positive", tooltip="The prompt, for any sampler."),
                io.Conditioning.Output(display_name="negative", tooltip="The negative prompt or the learned text."),
                io.String.Output(
                    display_name="report", tooltip="The text the encoder got, its tokens, and what was lost."
                ),
            ],
        )

    @classmethod
    def check_early(cls, **known: Any) -> None:
        check_prompts(known["prompt"], known["negative_prompt"], known.get("model"))

    @classmethod
    def execute(
        cls, clip: Any, prompt: str, negative_prompt: str, model: Any | None = None, clean: bool = True
    ) -> io.NodeOutput:
        encoded = encode_both(clip, prompt, negative_prompt, model, clean)
        return io.NodeOutput(encoded.positive, encoded.negative, encoded.report)


class NullText(OpenSoraNode):
    """``OSoraNullText``: the negative the original uses, for prompts encoded elsewhere."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraNullText",
            display_name="Open-Sora Empty Negative",
            category=CATEGORY,
            description="The model's learned text for no prompt, cut to the length of a prompt encoded elsewhere.",
            search_aliases=["null text", "unconditional", "empty negative"],
            inputs=[
                io.Model.Input("model", tooltip="The Open-Sora diffusion model that holds the learned text."),
                io.Conditioning.Input("positive", tooltip="The encoded prompt, for example from CLIP Text Encode."),
            ],
            outputs=[io.Conditioning.Output(display_name="negative", tooltip="Negative conditioning for any sampler.")],
        )

    @classmethod
    def execute(cls, model: Any, positive: list[Any]) -> io.NodeOutput:
        return io.NodeOutput(null_conditioning(model, positive))
