"""Guidance: which predictions a step needs, and how they are mixed.

A *branch* is one row given to the network:

======== =========== ============== =========
branch   text        given frames   used by
======== =========== ============== =========
PROMPT   prompt      given          all
IMAGE    negative    given          given frames
NOTHING  negative    zeroed         all
======== =========== ============== =========

Without given frames the NOTHING row is simply the negative prompt. Predictions are mixed with weights that sum to
one, so mixing denoised latents equals mixing velocities:

    ``v = v_nothing + g_image (v_image - v_nothing) + g_text (v_prompt - v_image)``

A branch whose weight is zero is never computed; that is exact. Source: upstream
``opensora/schedulers/rf/__init__.py`` of releases 1.2 and 1.3 (oscillation, flaw fix, image weighting).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from enum import Enum

import torch
from torch import Tensor

from ..releases.guidance import DEFAULT_FORCE_STEPS, Guidance

FLAW_FIX_FACTOR = 0.7
"""Share of the guided velocity that takes the prompt row's spread (upstream ``use_flaw_fix``)."""


SAME_LEVEL = 1e-6
"""Noise levels that differ by less of themselves are one: float32 rounds by a tenth of this."""
NO_GUIDANCE = 1.0
"""The scale at which a guidance term vanishes."""


class Branch(Enum):
    """A row of the network; the values are the names of conditionings in a guider."""

    PROMPT = "positive"
    IMAGE = "image"
    NOTHING = "negative"


@dataclass(frozen=True)
class Scales:
    """Guidance of one step: a number for the text, one number per latent frame (or one for all) for the image."""

    text: float
    image: tuple[float, ...]


Predict = Callable[[Sequence[Branch]], Sequence[Tensor]]
"""Computes the denoised latents ``[B, C, T, h, w]`` of the branches asked for, in that order."""


def oscillating(scale: float, step: int, force_steps: int = DEFAULT_FORCE_STEPS) -> float:
    """``scale`` in the first ``force_steps`` steps and then in every even step, 1 in the odd ones."""
    return scale if step < force_steps or step % 2 == 0 else NO_GUIDANCE


def image_weights(scale: float, initial: float, step: int, steps: int, frames: int) -> tuple[float, ...]:
    """Image guidance per latent frame: ``initial`` at the first frame, rising to a top that fades over the steps."""
    progress = step / (steps - 1) if steps > 1 else 0.0
    top = scale + (initial - scale) * progress
    if frames == 1:
        return (initial,)
    return tuple(initial + (top - initial) * frame / (frames - 1) for frame in range(frames))


def step_scales(guidance: Guidance, step: int, steps: int, sigma: float, frames: int) -> Scales:
    """The scales of step ``step`` of ``steps`` at noise level ``sigma`` for a clip of ``frames`` latent frames."""
    # Levels are float32, bounds are not: a schedule may start a hair above 1, and 0.8 is a hair above 0.8.
    if not guidance.sigma_end * (1 - SAME_LEVEL) <= min(sigma, 1.0) <= guidance.sigma_start * (1 + SAME_LEVEL):
        return Scales(NO_GUIDANCE, (NO_GUIDANCE,))
    text = guidance.text_scale
    image = text if guidance.image_scale is None else guidance.image_scale
    if guidance.oscillate_text:
        text = oscillating(text, step, guidance.force_steps)
    if guidance.oscillate_image:
        image = oscillating(image, step, guidance.force_steps)
    if guidance.fade_image and image > guidance.initial_image_scale:
        return Scales(text, image_weights(image, guidance.initial_image_scale, step, steps, frames))
    return Scales(text, (image,))


def branch_weights(scales: Scales, has_given: bool) -> dict[Branch, tuple[float, ...]]:
    """The weight of every branch that counts, per latent frame (or one weight for all frames).

    Branches whose weight is zero everywhere are left out.
    """
    weights: dict[Branch, tuple[float, ...]]
    if not has_given:
        weights = {Branch.PROMPT: (scales.text,), Branch.NOTHING: (1.0 - scales.text,)}
    else:
        weights = {
            Branch.PROMPT: (scales.text,),
            Branch.IMAGE: tuple(image - scales.text for image in scales.image),
            Branch.NOTHING: tuple(1.0 - image for image in scales.image),
        }
    return {branch: row for branch, row in weights.items() if any(not _is_zero(value) for value in row)}


def guided(predict: Predict, x: Tensor, sigma: Tensor, scales: Scales, *, has_given: bool, flaw_fix: bool) -> Tensor:
    """The guided denoised latents of one step.

    Args:
        predict: computes denoised latents of the branches asked for; called once.
        x: noisy latents ``[B, C, T, h, w]``; sigma: noise level ``[B]``.
        scales: see :func:`step_scales`.
        has_given: whether the rows carry given frames (three branches) or not (two).
        flaw_fix: bring the spread of the guided velocity back towards the prompt row's. As in the original it is
            left out when frames are given.
    """
    weights = branch_weights(scales, has_given)
    needed = list(weights) or [Branch.PROMPT]
    predicted = dict(zip(needed, predict(needed), strict=True))
    if set(needed) == {Branch.PROMPT}:
        return predicted[Branch.PROMPT]
    mixed = mix(predicted, weights)
    if flaw_fix and not has_given and Branch.PROMPT in predicted:
        return rescale_to_prompt(x, sigma, mixed, predicted[Branch.PROMPT])
    return mixed


def mix(predicted: dict[Branch, Tensor], weights: dict[Branch, tuple[float, ...]]) -> Tensor:
    """Weighted sum of predictions ``[B, C, T, h, w]``; weights have one value or one per frame."""
    total: Tensor | None = None
    for branch, row in weights.items():
        part = predicted[branch] * _per_frame(row, predicted[branch])
        total = part if total is None else total + part
    if total is None:
        raise ValueError("Guidance got no branch to mix; at least the prompt's row is needed.")
    return total


def prompt_and_base(predicted: dict[Branch, Tensor], image: tuple[float, ...]) -> tuple[Tensor, Tensor]:
    """Two predictions that plain CFG at the text scale turns into three-branch guidance.

    ``base + g_text * (first - base)`` equals the formula at the top of this file for every text scale, so a sampler's
    own ``cfg`` value stays in charge.
    """
    weights = {Branch.IMAGE: image, Branch.NOTHING: tuple(1.0 - value for value in image)}
    used = {branch: row for branch, row in weights.items() if any(not _is_zero(value) for value in row)}
    base = mix(predicted, used)
    return base + (predicted[Branch.PROMPT] - predicted[Branch.IMAGE]), base


def rescale_to_prompt(x: Tensor, sigma: Tensor, denoised: Tensor, prompt: Tensor) -> Tensor:
    """The flaw fix: ``v * (0.7 * std(v_prompt) / std(v) + 0.3)`` per sample, given and returned as denoised latents.

    The spread is the unbiased standard deviation over channels, frames, height and width.
    """
    level = sigma.reshape(-1, *[1] * (x.ndim - 1)).clamp_min(torch.finfo(torch.float32).tiny)
    velocity = (x - denoised) / level
    spread = _spread(velocity)
    ratio = torch.where(spread > 0, _spread((x - prompt) / level) / spread.clamp_min(1e-12), torch.ones_like(spread))
    factor = FLAW_FIX_FACTOR * ratio + (1.0 - FLAW_FIX_FACTOR)
    return x - velocity * factor * level


def step_of(sigma: float, schedule: Sequence[float]) -> int:
    """The step of ``schedule`` (falling noise levels, last one the end) that a model call at ``sigma`` belongs to.

    Samplers that look between two levels (heun, dpm_2) get the step they are inside of.
    """
    last = max(0, len(schedule) - 2)
    inside = [index for index, level in enumerate(schedule[: last + 1]) if level >= sigma * (1 - 1e-5) - 1e-7]
    return inside[-1] if inside else 0


def with_interval(guidance: Guidance, sigma_start: float, sigma_end: float) -> Guidance:
    """``guidance`` limited to noise levels between ``sigma_start`` (high) and ``sigma_end`` (low)."""
    return replace(guidance, sigma_start=sigma_start, sigma_end=sigma_end)


def lowered(scale: float, factor: float) -> float:
    """``scale`` times a factor between 0 and 1, which takes guidance away and never turns it round.

    Below 1 the negative prompt would lead; so a scale above 1 ends at 1, and one that is not above 1 stays.
    """
    return max(min(scale, NO_GUIDANCE), scale * factor)


def row_count(guidance: Guidance, schedule: Sequence[float], frames: int, *, has_given: bool) -> int:
    """Rows the network computes in a whole run over ``schedule`` (N + 1 noise levels), per sample."""
    steps = len(schedule) - 1
    scales = (step_scales(guidance, step, steps, schedule[step], frames) for step in range(steps))
    return sum(len(branch_weights(each, has_given)) for each in scales)


def _is_zero(weight: float) -> bool:
    return math.isclose(weight, 0.0, abs_tol=1e-9)


def _per_frame(row: tuple[float, ...], like: Tensor) -> Tensor | float:
    if len(row) == 1:
        return row[0]
    return torch.tensor(row, dtype=like.dtype, device=like.device).reshape(1, 1, -1, 1, 1)


def _spread(velocity: Tensor) -> Tensor:
    return velocity.flatten(1).std(dim=1).reshape(-1, *[1] * (velocity.ndim - 1))
