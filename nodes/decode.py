"""Latents to frames, to a video file, and back from disk."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io, ui

from ..opensora_models.native.files import LATENTS
from ..opensora_models.native.graph_words import workflow_metadata
from ..opensora_models.native.sampling.clips import marked
from ..opensora_models.native.vae import decoding
from ..opensora_models.native.vae.decoding import own_vae
from ..opensora_models.releases.known import said_release
from ..opensora_models.vae.latent_file import load_latent
from ..opensora_models.vae.video_file import FORMATS
from .door import OpenSoraNode
from .encode import tile_input
from .files import FileInput, FileName, PrefixInput, SavingNode

NUM_FRAMES_TOOLTIP = (
    "True length of the clip if it does not fill its last group, for example 20 frames of Open-Sora 1.2. "
    "0: what the latents give."
)


class DecodingNode(SavingNode):
    """What both decoding nodes refuse before anything is sampled for them."""

    depends = frozenset({"num_frames"})

    @classmethod
    def check_early(cls, **known: Any) -> None:
        super().check_early(**known)
        own_vae(known["vae"])


def _common_inputs(prefix: str) -> list[Any]:
    return [
        io.Latent.Input("samples", lazy=True, tooltip="Open-Sora latents [batch, channels, frames, height, width]."),
        io.Vae.Input("vae", tooltip="From Open-Sora Load VAE, of the same version as the model."),
        tile_input(),
        PrefixInput(prefix),
        io.Int.Input("num_frames", default=0, min=0, max=100_000, advanced=True, tooltip=NUM_FRAMES_TOOLTIP),
    ]


class Decode(DecodingNode):
    """``OSoraDecode``: latents to images, streamed; the latents are on disk before the work begins."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraDecode",
            display_name="Open-Sora Decode",
            category="Open-Sora/latent",
            description="Decodes a clip of any length in bounded memory. Saves the latents first, so that a failed "
            "decode can be repeated with Open-Sora Load Latent.",
            search_aliases=["vae decode", "open-sora decode"],
            inputs=[
                *_common_inputs("latents/opensora"),
                io.Boolean.Input(
                    "save_latent", default=True, advanced=True, tooltip="Save the latents before decoding."
                ),
            ],
            hidden=[*SavingNode.HIDDEN],
            outputs=[
                io.Image.Output(display_name="images", tooltip="All frames; clips of a batch follow each other."),
            ],
        )

    @classmethod
    def execute(
        cls, samples: dict[str, Any], vae: object, tile_size: str, filename_prefix: str, num_frames: int,
        save_latent: bool,
    ) -> io.NodeOutput:  # fmt: skip
        vae, kept, metadata = own_vae(vae), None, workflow_metadata(cls.hidden)
        if save_latent:
            choose = lambda: decoding.latent_name(vae, samples, filename_prefix, cls.hidden)  # noqa: E731
            kept = decoding.keep_latent(vae, samples, choose, {"num_frames": num_frames}, metadata)
        with decoding.behind(kept):
            latents = decoding.latents_for(vae, samples)
            return io.NodeOutput(decoding.decode_images(vae, latents, num_frames or None, tile_size, metadata))


class DecodeToVideo(DecodingNode):
    """``OSoraDecodeToVideo``: latents straight into a video file."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraDecodeToVideo",
            display_name="Open-Sora Decode to Video",
            category="Open-Sora/latent",
            description="Decodes straight into a video file in constant memory. A run that was cut off continues at "
            "the first missing part when the same latents are decoded again.",
            search_aliases=["save video", "vae decode", "mp4", "webm"],
            is_output_node=True,
            inputs=[
                *_common_inputs("video/opensora"),
                io.Float.Input(
                    "frame_rate", default=24.0, min=0.1, max=1000.0, step=0.001, tooltip="Frames per second."
                ),
                io.Combo.Input("format", options=list(FORMATS), tooltip="Container and codec of the file."),
                io.Int.Input(
                    "quality", default=18, min=0, max=51, advanced=True,
                    tooltip="The encoder's CRF: lower is better and larger. 18 is visually lossless for h264.",
                ),
            ],
            hidden=[*SavingNode.HIDDEN],
            outputs=[
                io.String.Output(display_name="file", tooltip="Full path of the video; of a batch a line a clip."),
                FileName.Output(display_name="latent_file", tooltip="Full path of the saved latents."),
            ],
        )  # fmt: skip

    @classmethod
    def execute(
        cls, samples: dict[str, Any], vae: object, tile_size: str, filename_prefix: str, num_frames: int,
        frame_rate: float, format: str, quality: int,
    ) -> io.NodeOutput:  # fmt: skip
        vae, metadata = own_vae(vae), workflow_metadata(cls.hidden)
        notes = {"num_frames": num_frames, "frame_rate": frame_rate}
        choose = lambda: decoding.latent_name(vae, samples, filename_prefix, cls.hidden)  # noqa: E731
        kept = decoding.keep_latent(vae, samples, choose, notes, metadata)
        with decoding.behind(kept):
            latents = decoding.latents_for(vae, samples)
            settings = num_frames or None, frame_rate, format, quality, tile_size
            files = decoding.decode_to_videos(vae, latents, *settings, kept, metadata)
        shown = ui.PreviewVideo([ui.SavedResult(file.name, file.subfolder, io.FolderType.output) for file in files])
        return io.NodeOutput("\n".join(str(file.path) for file in files), str(kept.path), ui=shown)


class LoadLatent(OpenSoraNode):
    """``OSoraLoadLatent``: latents a decode node saved."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraLoadLatent",
            display_name="Open-Sora Load Latent",
            category="Open-Sora/latent",
            description="Loads latents from the output or input folder, to decode them again.",
            search_aliases=["load latent", "resume decode"],
            inputs=[
                FileInput("file", LATENTS, tooltip="A .latent file, newest first; [output] marks the output folder."),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The saved latents."),
                io.Int.Output(display_name="num_frames", tooltip="The clip length noted with them; 0 if none was."),
                io.Float.Output(display_name="frame_rate", tooltip="The frame rate noted with them; 24 if none was."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, file: str | None) -> str:
        """Loads again when the file has changed."""
        return LATENTS.fingerprint(file)

    @classmethod
    def execute(cls, file: str) -> io.NodeOutput:
        latents, notes = load_latent(LATENTS.path(file))
        release = said_release(notes.get("version"), latents.shape[1])
        return io.NodeOutput(
            marked({"samples": latents}, release), int(notes.get("num_frames", 0)), float(notes.get("frame_rate", 24.0))
        )
