"""Speed: steps whose blocks are not computed, as a table says that was measured or written by hand."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..opensora_models.caching.guidance_rows import GuidanceReuse
from ..opensora_models.caching.published import PUBLISHED
from ..opensora_models.caching.tables import read_table
from ..opensora_models.native.files import STEP_TABLES
from ..opensora_models.native.folders import shipped_tables
from ..opensora_models.native.model.step_cache import CachedRun, with_step_cache
from ..opensora_models.native.sampling.cached_steps import chosen_table
from .door import OpenSoraNode
from .files import FileInput
from .sigmas import full_schedule_input, levels_of

CATEGORY = "Open-Sora/speed"
OFF, FROM_TEXT = "off", "from steps"
EVERY_STEP = "1"


def _no_files() -> list[str]:
    """Entries of the menu beside the files a person has; the first one is a new node's, which fits every model."""
    return [FROM_TEXT, OFF, *PUBLISHED, *shipped_tables()]


class StepCache(OpenSoraNode):
    """``OSoraStepCache``: leaves the network's blocks out in some steps of every run of a MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraStepCache",
            display_name="Open-Sora Step Cache",
            category=CATEGORY,
            description="Computes only some steps of a run and reuses what the network added there in the others: "
            "faster, and a little different. Works in every sampler.",
            search_aliases=["teacache", "magcache", "easycache", "lemica", "speed", "faster", "skip steps"],
            inputs=[
                io.Model.Input("model", tooltip="An Open-Sora model."),
                FileInput(
                    "table",
                    STEP_TABLES,
                    others=_no_files(),
                    tooltip="Which steps are computed: by a file of Open-Sora Calibrate Step Cache, by what is written "
                    "in steps, or as published numbers for 1.2 have it.",
                ),
                io.Int.Input(
                    "computed_percent",
                    default=60,
                    min=1,
                    max=100,
                    tooltip="Rows to be computed at most, of a file that holds a table for every number of rows.",
                ),
                io.String.Input(
                    "steps",
                    default="111111111101010101010101010101",
                    multiline=True,
                    tooltip='For the table "from steps": 1 is a computed and 0 a reused step, spread over the run. '
                    "JSON may give the noise level of each.",
                ),
                io.Int.Input(
                    "guidance_every",
                    default=1,
                    min=1,
                    max=20,
                    tooltip="Later in the run the unguided rows are computed in every second step (2), every third (3) "
                    "and so on. 1: in every step.",
                ),
                io.Float.Input(
                    "guidance_after",
                    default=0.35,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    advanced=True,
                    tooltip="Share of the run in whose steps all rows are computed, before guidance_every begins.",
                ),
                full_schedule_input(),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with the cache; connect it to a sampler.")
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, table: str | None = None, **others: Any) -> str:
        """Reads the table again when its file on disk has changed."""
        return "" if table in _no_files() else STEP_TABLES.fingerprint(table)

    @classmethod
    def validate_inputs(cls, table: str | None = None, steps: str | None = None) -> bool | str:
        """Says more than ComfyUI's own check; what comes by wire is judged when the node runs."""
        if table == FROM_TEXT and steps is not None:
            _check_steps(steps)
        elif table not in (None, *_no_files()):
            STEP_TABLES.path(table)
        return True

    @classmethod
    def execute(
        cls,
        model: Any,
        table: str,
        computed_percent: int,
        steps: str,
        guidance_every: int,
        guidance_after: float,
        full_schedule: Tensor | None = None,
    ) -> io.NodeOutput:
        plain = {OFF: EVERY_STEP, FROM_TEXT: steps, **PUBLISHED}.get(table)
        chosen = chosen_table(model, plain, table, computed_percent)
        run = CachedRun(chosen, GuidanceReuse(guidance_every, guidance_after), levels_of(full_schedule))
        return io.NodeOutput(with_step_cache(model, run))


def _check_steps(steps: str) -> None:
    """Refuse a wrong table by a sentence that names its input: the table's is looked at as well."""
    try:
        read_table(steps)
    except ValueError as error:
        sentence = str(error)
        raise ValueError(f"The input steps is no table: {sentence[0].lower()}{sentence[1:]}") from None
