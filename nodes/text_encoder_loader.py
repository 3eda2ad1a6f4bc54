"""Loading the text encoder."""

from __future__ import annotations

from comfy_api.latest import io

from ..opensora_models.native.files import TEXT_ENCODERS
from ..opensora_models.native.text.clip import DEVICES, PRECISIONS, load_text_encoder
from .door import OpenSoraNode
from .files import FileInput

NONE = "none"


class TextEncoderLoader(OpenSoraNode):
    """``OSoraTextEncoderLoader``: a T5 v1.1 file in, for 2.0 a CLIP-L file as well, ComfyUI's CLIP out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraTextEncoderLoader",
            display_name="Open-Sora Load Text Encoder",
            category="Open-Sora/loaders",
            description="Loads the text encoders Open-Sora reads prompts with; the files of Flux and SD3 fit.",
            search_aliases=["open-sora", "text to video", "extend", "load clip", "t5xxl", "clip_l", "dual clip"],
            inputs=[
                FileInput(
                    "text_encoder_name",
                    TEXT_ENCODERS,
                    tooltip="T5 v1.1 XXL in models/text_encoders, for example t5xxl_fp16.safetensors. Choosing one "
                    "part of a sharded file loads all parts.",
                ),
                io.Combo.Input(
                    "precision",
                    options=list(PRECISIONS),
                    default="default",
                    tooltip="How weights are kept in memory. default: as in the file. fp32: as the original program, "
                    "19 GB. The computation itself is float32 in every case.",
                ),
                io.Combo.Input(
                    "device",
                    options=list(DEVICES),
                    default="default",
                    advanced=True,
                    tooltip="cpu leaves the graphics card to the video model; a prompt then takes longer.",
                ),
                FileInput(
                    "clip_l_name",
                    TEXT_ENCODERS,
                    others=[NONE],
                    optional=True,
                    tooltip="Open-Sora 2.0 only: CLIP-L in models/text_encoders, for example clip_l.safetensors.",
                ),
            ],
            outputs=[
                io.Clip.Output(
                    display_name="clip", tooltip="The text encoder, for Open-Sora Text Encode or CLIP Text Encode."
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, text_encoder_name: str | None, clip_l_name: str | None = NONE, **kwargs: object) -> str:
        """Loads again when a file on disk has changed."""
        return f"{TEXT_ENCODERS.fingerprint(text_encoder_name)} {TEXT_ENCODERS.fingerprint(clip_l_name)}"

    @classmethod
    def execute(cls, text_encoder_name: str, precision: str, device: str, clip_l_name: str = NONE) -> io.NodeOutput:
        path = TEXT_ENCODERS.path(text_encoder_name)
        clip_l = None if clip_l_name == NONE else TEXT_ENCODERS.path(clip_l_name)
        return io.NodeOutput(load_text_encoder(path, precision, device, clip_l=clip_l))
