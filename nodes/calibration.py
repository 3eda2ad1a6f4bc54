"""Measures on the weights at hand which steps of a run can be left out."""

from __future__ import annotations

import logging
from typing import Any

from comfy_api.latest import io, ui

from ..opensora_models.caching.calibration import LONGEST
from ..opensora_models.caching.table_file import ENDING, save_new_tables
from ..opensora_models.native.messages import tell
from ..opensora_models.native.outputs import next_output
from ..opensora_models.native.sampling.cached_steps import CalibrationRun, calibrate, plot_of, report_of
from ..opensora_models.native.sampling.clips import Latent, model_release
from ..opensora_models.native.sampling.guiders import Conditioning
from .files import FileName, PrefixInput, SavingNode
from .step_cache import CATEGORY


class CalibrateStepCache(SavingNode):
    """``OSoraCalibrateStepCache``: the best step table of every size, from full runs of a few prompts."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        more = [
            io.Conditioning.Input(
                f"prompt_{n}", optional=True, lazy=True, advanced=True, tooltip="One more prompt to measure."
            )
            for n in (2, 3, 4)
        ]
        return io.Schema(
            node_id="OSoraCalibrateStepCache",
            display_name="Open-Sora Calibrate Step Cache",
            category=CATEGORY,
            description="Runs a few prompts in full, measures how far every left-out step moves the result, and saves "
            "the best table for every number of computed rows.",
            search_aliases=["calibrate", "teacache", "magcache", "lemica", "step table"],
            is_output_node=True,
            inputs=[
                io.Model.Input("model", tooltip="The Open-Sora model, with its LoRAs, that the tables are for."),
                io.Conditioning.Input("positive", lazy=True, tooltip="The first prompt to measure."),
                io.Conditioning.Input("negative", lazy=True, tooltip="The negative or empty prompt."),
                io.Latent.Input(
                    "latent", lazy=True, tooltip="Size and length of the clips; the usual ones of later runs."
                ),
                io.Int.Input("steps", default=30, min=2, max=200, tooltip="Steps of a run. Released: 30, for 2.0 50."),
                io.Float.Input(
                    "cfg", default=7.0, min=0.0, max=100.0, step=0.1, tooltip="How strongly the text pulls, as later."
                ),
                io.Int.Input(
                    "seed",
                    default=42,
                    min=0,
                    max=0xFFFFFFFFFFFFFFFF - 3,
                    control_after_generate=True,
                    tooltip="Seed of the first prompt's noise; the others follow.",
                ),
                PrefixInput("steptables/opensora"),
                io.Int.Input(
                    "longest",
                    default=LONGEST,
                    min=1,
                    max=20,
                    optional=True,
                    advanced=True,
                    tooltip="Most steps in a row that may be left out.",
                ),
                *more,
            ],
            outputs=[
                FileName.Output(display_name="file", tooltip="Name of the new file, as Open-Sora Step Cache lists it."),
                io.Image.Output(display_name="plot", tooltip="The worst error over the number of computed rows."),
                io.String.Output(display_name="report", tooltip="The table and the error of every number of rows."),
            ],
            hidden=[*SavingNode.HIDDEN],
        )

    @classmethod
    def check_early(cls, **known: Any) -> None:
        super().check_early(**known)
        model_release(known["model"])

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
        filename_prefix: str,
        longest: int = LONGEST,
        prompt_2: Conditioning | None = None,
        prompt_3: Conditioning | None = None,
        prompt_4: Conditioning | None = None,
    ) -> io.NodeOutput:
        prompts = [positive, *(each for each in (prompt_2, prompt_3, prompt_4) if each is not None)]
        tables = calibrate(model, prompts, negative, latent, CalibrationRun(steps, seed, cfg, longest))
        file = save_new_tables(lambda: next_output(filename_prefix, ENDING, cls.hidden), tables)
        report, plot = report_of(tables), plot_of(tables)
        tell(f"The step tables are in {file.listed}.", level=logging.INFO)
        return io.NodeOutput(file.listed, plot, report, ui=ui.PreviewImage(plot, cls=cls))
