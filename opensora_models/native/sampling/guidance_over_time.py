"""Guidance that changes over the steps of a run: the scales a sampler has, times a curve, whatever guider it uses.

A wrapper on the MODEL around the guider's prediction, where core's own CFG Override acts. The scales stand in the
guider (``cfg`` of core's, two of its Dual CFG Guider, the settings of ours) or in the patch of Open-Sora Guidance; each
is another number while one prediction is made, and its own again afterwards.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, get_all_wrappers
from torch import Tensor

from ...caching.tables import falls
from ...releases.guidance import Guidance
from ...sampling.factor_curve import FLAT, FactorCurve, course_of, together
from ...sampling.guidance import NO_GUIDANCE, lowered, step_of
from ..messages import tell
from .guiders import ROWS, OpenSoraGuider, PatchedRows, has_given

KEY = "opensora_guidance_over_time"
TEXT_SCALES, IMAGE_SCALES = ("cfg", "cfg1"), ("cfg2",)
"""Attributes of core's guiders: CFG Guider and those made of it; the two scales of Dual CFG Guider."""


@dataclass(frozen=True)
class GuidanceOverTime:
    """Curves of factors over the steps of a run; ``schedule`` where the sampler gets only a part of it."""

    text: FactorCurve = FLAT
    image: FactorCurve = FLAT
    schedule: tuple[float, ...] | None = None

    def __call__(
        self, executor: Any, x: Tensor, timestep: Tensor, model_options: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """ComfyUI's wrapper around ``CFGGuider.predict_noise``; ``timestep`` is the noise level ``[B]``."""
        sigmas = model_options.get("transformer_options", {}).get("sample_sigmas")
        # As numbers at once: each of a tensor's on an accelerator would be waited for by itself.
        levels = self.schedule or (() if sigmas is None else tuple(sigmas.tolist()))
        if not _counts(levels):
            return executor(x, timestep, model_options, *args, **kwargs)
        step, steps = step_of(float(timestep.flatten()[0]), levels), len(levels) - 1
        text, image = (curve.of(step, steps) for curve in (self.text, self.image))
        with _scaled(executor.class_obj, text, image):
            return executor(x, timestep, _scaled_rows(model_options, image), *args, **kwargs)

    def announced(
        self, executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """ComfyUI's wrapper around ``Sampler.sample``: says which way the scales of this run go.

        The first of several speaks for all of them, since what they make of a scale is one number.
        """
        every = _of_run(extra_args["model_options"]) or [self]
        if every[0] is self:
            _tell_course(every, guider, extra_args["model_options"], tuple(sigmas.tolist()))
        return executor(guider, sigmas, extra_args, *args, **kwargs)


def with_guidance_over_time(model: ModelPatcher, over: GuidanceOverTime) -> ModelPatcher:
    """A copy of ``model`` whose runs change their guidance; ``model`` itself where the curves are flat."""
    if over.text.flat and over.image.flat:
        return model
    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.PREDICT_NOISE, KEY, over)
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, over.announced)
    return patched


def _of_run(options: dict[str, Any]) -> list[GuidanceOverTime]:
    """All that change the guidance of a run, in the order in which they do."""
    wrappers = get_all_wrappers(WrappersMP.SAMPLER_SAMPLE, options, is_model_options=True)
    owners = [getattr(wrapper, "__self__", None) for wrapper in wrappers]
    return [owner for owner in owners if isinstance(owner, GuidanceOverTime)]


def _tell_course(
    every: Sequence[GuidanceOverTime], guider: Any, options: dict[str, Any], levels: tuple[float, ...]
) -> None:
    """Says what all curves of a run with these noise levels make of its scales."""
    working = [over for over in every if _counts(over.schedule or levels)]
    if not working:
        tell("The noise levels of this run do not fall from step to step, so guidance stays as it is.")
    elif len(working) < len(every):
        tell("A curve of guidance whose noise levels do not fall from step to step is not used.")
    tell(*_sentences(working, guider, options, levels), level=logging.INFO)


def _sentences(
    every: Sequence[GuidanceOverTime], guider: Any, options: dict[str, Any], levels: tuple[float, ...]
) -> Iterator[str]:
    for what, curves, scales in (
        ("text", [(over.text, over.schedule) for over in every], text_scales(guider)),
        ("image", [(over.image, over.schedule) for over in every], image_scales(guider, options)),
    ):
        bent = [(curve, schedule or levels) for curve, schedule in curves if not curve.flat]
        if not bent:
            continue
        if not scales:
            yield f"This run has no {what} guidance of its own, so the curve of it is not used."
        for scale in scales:
            yield sentence_on(what, scale, _factors(bent, levels))


def _factors(curves: Sequence[tuple[FactorCurve, Sequence[float]]], levels: Sequence[float]) -> tuple[float, ...]:
    """The product of curves, each over its own noise levels: in every step of the whole run where those are the same
    for all of them, else in the steps of the part with these ``levels``."""
    counted = {tuple(own) for _, own in curves}
    if len(counted) == 1:
        return together([curve for curve, _ in curves], len(counted.pop()) - 1)
    return tuple(
        math.prod(curve.of(step_of(level, own), len(own) - 1) for curve, own in curves) for level in levels[:-1]
    )


def sentence_on(what: str, scale: float, factors: Sequence[float]) -> str:
    """What becomes of a scale in a run whose steps have these factors."""
    name = f"{what.capitalize()} guidance {scale:g}"
    if scale <= NO_GUIDANCE:
        return f"{name} is no more than none (1), so its curve has nothing to take away."
    wanted = [scale * factor for factor in factors]
    made = [lowered(scale, factor) for factor in factors]
    held = sum(value < NO_GUIDANCE for value in wanted)
    rest = f"; in {held} of {len(factors)} steps it would be below 1 and is 1, no guidance" if held else ""
    if made[0] == scale and made[-1] < scale and made == sorted(made, reverse=True):
        return f"{name} falls to {made[-1]:g} over the run{rest}."
    return f"{name} {course_of(made)} over the run{rest}."


def text_scales(guider: Any) -> list[float]:
    """How strongly the text pulls, by the guider of a run; empty for a guider that does not say."""
    if isinstance(guider, OpenSoraGuider):
        return [guider.guidance.text_scale]
    return _numbers(guider, TEXT_SCALES[1:]) or _numbers(guider, TEXT_SCALES[:1])


def image_scales(guider: Any, options: dict[str, Any]) -> list[float]:
    """How strongly given frames pull, where the guider or the MODEL's patch has a scale of its own for them."""
    if isinstance(guider, OpenSoraGuider):
        return _scale_of(guider.guidance) if guider.has_given else []
    patch = options.get(ROWS)
    if isinstance(patch, PatchedRows) and has_given(getattr(guider, "conds", {}).get("positive")):
        return _scale_of(patch.guidance)
    return _numbers(guider, IMAGE_SCALES)


def _scale_of(guidance: Guidance) -> list[float]:
    return [] if guidance.image_scale is None else [guidance.image_scale]


def _numbers(guider: Any, names: Sequence[str]) -> list[float]:
    values = [getattr(guider, name, None) for name in names]
    return [float(value) for value in values if isinstance(value, (int, float))]


def _counts(levels: Sequence[float]) -> bool:
    """Whether steps can be counted by their noise levels."""
    return len(levels) > 1 and falls(levels)


@contextmanager
def _scaled(guider: Any, text: float, image: float) -> Iterator[None]:
    """The scales of a guider times their factors, for one prediction."""
    if isinstance(guider, OpenSoraGuider):
        others: dict[str, Any] = {"guidance": _lowered(guider.guidance, text, image)}
    else:
        factors = {**dict.fromkeys(TEXT_SCALES, text), **dict.fromkeys(IMAGE_SCALES, image)}
        others = {name: lowered(scale, factors[name]) for name in factors for scale in _numbers(guider, (name,))}
    own = {name: getattr(guider, name) for name in others}
    try:
        for name, value in others.items():
            setattr(guider, name, value)
        yield
    finally:
        for name, value in own.items():
            setattr(guider, name, value)


def _scaled_rows(options: dict[str, Any], factor: float) -> dict[str, Any]:
    """Options of one prediction, with the image scale of Open-Sora Guidance on the MODEL times its factor."""
    patch = options.get(ROWS)
    if not isinstance(patch, PatchedRows):
        return options
    return {**options, ROWS: patch.guiding(_lowered(patch.guidance, 1.0, factor))}


def _lowered(guidance: Guidance, text: float, image: float) -> Guidance:
    """An image scale that is the text's goes with the text."""
    scale = guidance.image_scale
    return replace(
        guidance,
        text_scale=lowered(guidance.text_scale, text),
        image_scale=None if scale is None else lowered(scale, image),
    )
