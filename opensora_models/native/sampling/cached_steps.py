"""Step tables for a MODEL: chosen from a file, and measured on it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sample
import comfy.samplers
import comfy.utils
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...caching.calibration import LONGEST, Measured, Recorder, evaluations, measure, worst_of
from ...caching.choosing import best_tables, errors_of
from ...caching.published import PUBLISHED
from ...caching.table_file import CalibratedTables, load_tables
from ...caching.tables import StepTable, read_table
from ...releases.release import Release
from ...vae.plot import line_plots
from ..files import STEP_TABLES
from ..folders import shipped_tables
from ..messages import tell
from ..model.base_model import opensora_config
from ..model.step_cache import STEP_CACHE, has_step_cache, with_step_cache
from .clips import (
    AUTOMATIC,
    Latent,
    clip_shift,
    clip_sigmas,
    clip_size,
    guidance_preset,
    latent_for,
    model_release,
)
from .guiders import Conditioning, OpenSoraGuider, given_values
from .samplers import patch_shift

WIDTH = "network_width"
"""Among what a file of tables says of how it was made: numbers of one network say little of another."""
NO_ERROR = 1e-5
"""Where plots end, 100 dB below the result."""


def chosen_table(model: ModelPatcher, plain: str | None, name: str, percent: float) -> StepTable:
    """The table of a node's inputs: ``plain`` text, or the one of a share of computed rows in the file ``name``.

    Raises ValueError for what is no table, and for a file of another release than the MODEL's.
    """
    release = model_release(model)
    if plain is not None:
        if name in PUBLISHED and name not in release.step_tables:
            tell(
                f"The table '{name}' follows from numbers of another release than {release.title}; measure its own "
                "with Open-Sora Calibrate Step Cache."
            )
        return read_table(plain)
    tables = load_tables(shipped_tables().get(name) or STEP_TABLES.path(name))
    _check_made_for(tables, name, model, release)
    smallest = min(tables.tables)
    if smallest > percent / 100 * tables.rows + 1e-9:
        tell(
            f"The smallest table of '{name}' computes {smallest} of {tables.rows} rows, more than {percent:g} %; it is "
            "used."
        )
    return tables.of_share(percent)


def _check_made_for(tables: CalibratedTables, name: str, model: ModelPatcher, release: Release) -> None:
    """Tells where the tables are another network's. Raises ValueError where they are another release's."""
    if tables.release != release.id:
        raise ValueError(
            f"The step tables '{name}' were measured on {tables.release}, but the model is {release.title}; measure "
            "its own with Open-Sora Calibrate Step Cache, or choose off."
        )
    measured, width = tables.made.get(WIDTH), opensora_config(model).hidden_size
    if isinstance(measured, int) and measured != width:
        tell(
            f"The step tables '{name}' were measured on a network {measured} wide, but this model is "
            f"{width} wide; measure its own with Open-Sora Calibrate Step Cache."
        )


@dataclass(frozen=True)
class CalibrationRun:
    """How the prompts are sampled while they are measured; ``longest``: most steps that one step may stand in for."""

    steps: int
    seed: int
    cfg: float
    longest: int = LONGEST


def calibrate(
    model: ModelPatcher, prompts: Sequence[Conditioning], negative: Conditioning, latent: Latent, run: CalibrationRun
) -> CalibratedTables:
    """Measure every reuse on a MODEL with these prompts, and choose the best table for every number of steps."""
    release, latent = model_release(model), latent_for(latent, model)
    if has_step_cache(model):
        tell("The MODEL brings a step cache, which is set aside while it is measured.")
    if latent.get("noise_mask") is not None:
        tell("The latent has a noise mask; the calibration makes whole clips and sets it aside.")
    clip, start = clip_size(latent, model), latent["samples"]
    sigmas = clip_sigmas(clip, run.steps)
    bar = comfy.utils.ProgressBar(evaluations(run.steps) * len(prompts))
    patched = patch_shift(with_step_cache(model, None), clip_shift(clip))
    found: list[Measured] = []
    for positive in prompts:
        preset = guidance_preset(AUTOMATIC, release, given_values(positive), run.cfg, None)
        guider = OpenSoraGuider(patched, preset)
        guider.set_conds(positive, negative)
        noise = comfy.sample.prepare_noise(start, run.seed + len(found), latent.get("batch_index"))
        measuring = comfy.samplers.KSAMPLER(_measuring(found, run.longest, lambda done: bar.update(1)))
        guider.sample(noise, start, measuring, sigmas, disable_pbar=True, seed=run.seed)
    made = {"prompts": len(prompts), "steps": run.steps, "cfg": run.cfg, "seed": run.seed}
    size = {"width": clip.width, "height": clip.height, "frames": clip.frames}
    network = {WIDTH: opensora_config(model).hidden_size}
    return tables_of(found, release, sigmas.tolist()[:-1], {**made, **size, **network})


def tables_of(
    found: Sequence[Measured], release: Release, levels: Sequence[float], made: dict[str, Any]
) -> CalibratedTables:
    """The best table for every number of computed rows, by the worst of all prompts."""
    worst = worst_of(found)
    tables = best_tables(worst, found[0].rows)
    errors = {count: max(errors_of(flags, worst)) for count, flags in tables.items()}
    return CalibratedTables(release.id, tuple(levels), tables, errors, made)


def _measuring(found: list[Measured], longest: int, after_step: Callable[[int], None]) -> Callable[..., Tensor]:
    """A sampler in ComfyUI's form that measures instead of sampling, and puts the result into ``found``."""

    @torch.no_grad()
    def sample(
        model: Any, x: Tensor, sigmas: Tensor, extra_args: dict[str, Any] | None = None, **others: Any
    ) -> Tensor:
        options, recorder = extra_args or {}, Recorder()
        options.setdefault("model_options", {}).setdefault("transformer_options", {})[STEP_CACHE] = recorder

        def denoise(latents: Tensor, level: float) -> Tensor:
            return model(latents.clone(), latents.new_full((len(latents),), level), **options)

        found.append(measure(denoise, recorder, x, sigmas.tolist(), longest=longest, after_step=after_step))
        return x

    return sample


def report_of(tables: CalibratedTables) -> str:
    """A line for every number of computed rows, the whole run first."""
    return "\n".join(
        f"{count} of {tables.rows} rows: {tables.tables[count]}, worst error {tables.errors[count]:.3%} of the result"
        for count in sorted(tables.tables, reverse=True)
    )


def plot_of(tables: CalibratedTables) -> Tensor:
    """How far the worst error lies below the result, in dB, over the number of computed rows: image [1, H, W, 3]."""
    counts = sorted(tables.errors)
    decibels = [-20 * math.log10(max(tables.errors[count], NO_ERROR)) for count in counts]
    ends = f"{counts[0]} computed rows", f"{counts[-1]}"
    return line_plots([("how far the worst error lies below the result, in dB", decibels)], ends)
