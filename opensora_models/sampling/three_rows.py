"""Guided runs of Open-Sora 2.0: which scales hold in every step, and how many rows that costs.

The rows and their mixing are those of :mod:`.guidance`; here the NOTHING row is shown neither references nor their
mask. Only rows that count are computed: with both scales oscillating, every second step after the first ten needs the
prompt's row alone, and without references the two negative rows are one. Source: upstream
``opensora/utils/sampling.py`` (``I2VDenoiser``) of release 2.0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from ..releases.guidance import Guidance
from .flow import Step, rectified_flow
from .guidance import Branch, Scales, branch_weights, guided, step_scales
from .noise import RecordedNoise

PredictRows = Callable[[Tensor, Tensor, Sequence[Branch]], Sequence[Tensor]]
"""``(x [B, C, T, h, w], sigma [B], branches) -> denoised latents of every branch``."""

UNGUIDED = Scales(1.0, (1.0,))
"""One row with the prompt, for networks that are told their guidance (the original's method "distill")."""


def scales_of_step(
    guidance: Guidance, step: int, steps: int, sigma: float, frames: int, *, reaches_end: bool
) -> Scales:
    """The scales of step ``step`` of ``steps`` at noise level ``sigma``, for ``frames`` latent frames.

    ``reaches_end``: the fading image scale arrives at its end in the last step (Open-Sora 1.3); in 2.0 it would one
    step later, ``top = g + (1 - g)·step/steps``.
    """
    return step_scales(guidance, step, steps if reaches_end else steps + 1, sigma, frames)


def run_scales(guidance: Guidance, sigmas: Sequence[float], frames: int, *, reaches_end: bool = False) -> list[Scales]:
    """The scales of every step of a run over ``sigmas`` (N + 1 noise levels); see :func:`scales_of_step`."""
    steps = len(sigmas) - 1
    return [
        scales_of_step(guidance, step, steps, float(sigmas[step]), frames, reaches_end=reaches_end)
        for step in range(steps)
    ]


def rows_of(scales: Sequence[Scales], has_given: bool) -> int:
    """Rows the network computes in a run with these scales, per sample."""
    return sum(max(1, len(branch_weights(each, has_given))) for each in scales)


def walk(
    predict: PredictRows, noise: Tensor, sigmas: Tensor, scales: Sequence[Scales], *, has_given: bool
) -> Iterator[Step]:
    """Euler's way from ``noise`` [B, C, T, h, w] along ``sigmas`` [N + 1], one call of ``predict`` per step."""
    remaining = iter(scales)

    def denoise(x: Tensor, sigma: Tensor) -> Tensor:
        def branches(wanted: Sequence[Branch]) -> Sequence[Tensor]:
            return predict(x, sigma, wanted)

        return guided(branches, x, sigma, next(remaining), has_given=has_given, flaw_fix=False)

    return rectified_flow(denoise, noise, sigmas, noise=RecordedNoise(torch.zeros(0)))
