"""Video longer than one clip."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..opensora_models.native.graph_words import words_of, workflow_metadata
from ..opensora_models.native.sampling.clips import ClipRun, Latent
from ..opensora_models.native.sampling.guiders import Conditioning
from ..opensora_models.native.sampling.long_video import (
    SEED_MODES,
    Inputs,
    LongVideo,
    check_long_video,
    sample_long_video,
)
from ..opensora_models.native.sampling.reference_inputs import AUTOMATIC, METHODS, ReferenceChain
from ..opensora_models.text.segments import MAX_SEGMENTS
from .door import OpenSoraNode
from .references import STRENGTH, references_input, report_with
from .sampling import preset_inputs, run_inputs
from .sigmas import CATEGORY


class LongVideoSampler(OpenSoraNode):
    """``OSoraLongVideo``: segments sampled one after the other, joined without a seam, resumable."""

    depends = frozenset({"overlap"})

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraLongVideo",
            display_name="Open-Sora Long Video",
            category=CATEGORY,
            description="Makes a long video segment by segment. Finished segments are stored, so an interrupted run "
            "goes on where it stopped.",
            search_aliases=["long video", "extend video", "open-sora loop", "resume"],
            inputs=[
                io.Model.Input("model", tooltip="An Open-Sora model."),
                io.Conditioning.Input(
                    "positive", lazy=True, tooltip="The prompt, or one per segment (|0| first |2| third …)."
                ),
                io.Conditioning.Input("negative", lazy=True, tooltip="The negative or empty prompt."),
                io.Latent.Input("latent", tooltip="One segment: its size and length."),
                io.Int.Input("segments", default=2, min=1, max=MAX_SEGMENTS, tooltip="How many segments to make."),
                *run_inputs(),
                io.Int.Input(
                    "overlap",
                    default=5,
                    min=1,
                    max=1000,
                    advanced=True,
                    tooltip="Latent frames each segment takes over from the one before: 5 is one group of 17 frames "
                    "(1.2, 1.3); 2.0 learned 1, 9 and 17.",
                ),
                io.Float.Input(
                    "overlap_strength",
                    display_name=f"overlap_{STRENGTH}",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.01,
                    advanced=True,
                    tooltip="How much frames taken over may change in the next segment (frame mask only).",
                ),
                io.Float.Input(
                    "drift_control",
                    default=0.0,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Pulls colour and contrast of later segments back to the first one. 0: off.",
                ),
                io.Combo.Input(
                    "seeds",
                    options=list(SEED_MODES),
                    default=SEED_MODES[0],
                    advanced=True,
                    tooltip="A new seed (seed + number) or the same starting noise for every segment.",
                ),
                io.Combo.Input(
                    "method",
                    options=list(METHODS),
                    default=AUTOMATIC,
                    advanced=True,
                    tooltip="How frames are taken over. automatic: given frames where the model has learned them (1.3, "
                    "2.0), else frame mask.",
                ),
                io.Boolean.Input(
                    "resume",
                    default=True,
                    advanced=True,
                    tooltip="Store finished segments in the output folder and take up an interrupted run.",
                ),
                references_input("Pictures and clips for the segments they name.", advanced=True),
                *preset_inputs(),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    advanced=True,
                    tooltip="Decodes and encodes again what a segment takes over, so that it begins a clip of its own, "
                    "as 2.0 was trained. Without it latents are taken over as they are.",
                ),
            ],
            hidden=[io.Hidden.prompt],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="The whole video, to be decoded."),
                io.String.Output(display_name="report", tooltip="How it was joined and where the segments are stored."),
            ],
        )

    @classmethod
    def check_early(cls, **known: Any) -> None:
        chain = known.get("references")
        check_long_video(
            known["model"], known["latent"], chain, known["segments"], known["overlap"], known["method"],
            known.get("vae"),
        )  # fmt: skip

    @classmethod
    def execute(
        cls,
        model: Any,
        positive: Conditioning,
        negative: Conditioning,
        latent: Latent,
        segments: int,
        steps: int,
        cfg: float,
        seed: int,
        overlap: int,
        overlap_strength: float,
        drift_control: float,
        seeds: str,
        method: str,
        resume: bool,
        *,
        references: ReferenceChain | None = None,
        guidance: str,
        image_cfg: float,
        renoise_given: bool,
        vae: Any = None,
    ) -> io.NodeOutput:
        inputs = Inputs(model, positive, negative, latent, references or ReferenceChain(), vae)
        run = ClipRun(steps, seed, cfg, image_cfg, guidance, renoise_given=renoise_given)
        video = LongVideo(segments, overlap, run, overlap_strength, drift_control, seeds, method, resume)
        joined, how = sample_long_video(inputs, video, words_of(workflow_metadata(cls.hidden)))
        said = [line for line in report_with(inputs.chain).splitlines() if line not in how]
        return io.NodeOutput(joined, "\n".join([how, *said]))
