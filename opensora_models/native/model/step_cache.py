"""The caches of :mod:`...caching` on a ComfyUI MODEL: made for a run, reached by every call, gone at its end."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...caching.guidance_rows import GuidanceCache, GuidanceReuse
from ...caching.stack import StackCache
from ...caching.tables import StepTable, falls
from ...transformer.stack import STACK_HOOK
from ..messages import tell

KEY = STEP_CACHE = "opensora_step_cache"
"""Of the wrappers on a MODEL, and of the cache among the options that reach the network."""
GUIDANCE_CACHE = "opensora_guidance_cache"
PLACES = (WrappersMP.PREPARE_SAMPLING, WrappersMP.SAMPLER_SAMPLE, WrappersMP.CALC_COND_BATCH)


CORES_CACHE = "easycache"
"""Under which core's own caches hold what they keep of a run."""


@dataclass(frozen=True)
class CachedRun:
    """ComfyUI's wrapper around ``Sampler.sample``. Holds settings only: what is kept belongs to one run."""

    table: StepTable | None
    guidance: GuidanceReuse
    schedule: tuple[float, ...] | None = None
    """The noise levels of the whole run where the sampler gets only a part of them."""

    def __call__(
        self, executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Samples with fresh caches, and says at the end what was left out and what was kept."""
        levels = self.schedule or tuple(sigmas.tolist())
        with self._caches(extra_args["model_options"].setdefault("transformer_options", {}), levels):
            return executor(guider, sigmas, extra_args, *args, **kwargs)

    @contextmanager
    def _caches(self, options: dict[str, Any], levels: Sequence[float]) -> Iterator[None]:
        caches = self._of(levels)
        if caches and CORES_CACHE in options:
            tell(
                "ComfyUI's EasyCache or LazyCache leaves steps of this run out as well, and neither knows of what the "
                "other has left out; use one of them."
            )
        options.update(caches)
        try:
            yield
            tell(*(cache.summary() for cache in caches.values()), level=logging.INFO)
        finally:
            for name in caches:
                options.pop(name, None)

    def _of(self, levels: Sequence[float]) -> dict[str, StackCache | GuidanceCache]:
        """Fresh caches under the names by which calls find them; none where tables over levels mean nothing."""
        if len(levels) < 2 or not falls(levels):
            tell("The noise levels of this run do not fall from step to step, so no step is left out.")
            return {}
        caches: dict[str, StackCache | GuidanceCache] = {}
        if self.table is not None and self.table.reuses:
            caches[STEP_CACHE] = StackCache(self.table.over(levels))
        if self.guidance.every > 1:
            caches[GUIDANCE_CACHE] = GuidanceCache(self.guidance.table(levels))
        return caches


def with_step_cache(model: ModelPatcher, run: CachedRun | None) -> ModelPatcher:
    """A copy of ``model`` whose runs leave steps out as ``run`` says; None takes such a cache away again."""
    if run is not None and has_step_cache(model):
        tell("The MODEL has a step cache already, which this one replaces.")
    patched = model.clone()
    for place in PLACES:
        patched.remove_wrappers_with_key(place, KEY)
    if run is None:
        return patched
    if run.table is not None and run.table.reuses:
        patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, count_kept)
    if (run.table is not None and run.table.reuses) or run.guidance.every > 1:
        patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, run)
    if run.guidance.every > 1:
        patched.add_wrapper_with_key(WrappersMP.CALC_COND_BATCH, KEY, reuse_guidance)
    return patched


def count_kept(
    executor: Any, model: ModelPatcher, shape: Sequence[int], conds: Mapping[str, list[Any]], *args: Any, **kwargs: Any
) -> Any:
    """ComfyUI's wrapper around making room for a run: what the cache keeps of every row takes part of it.

    Beside the kept rows a call holds the input of its own, which then are not kept yet; so it is no more than that.
    """
    with model.model.keeping(sum(len(entries) for entries in conds.values()), shape):
        return executor(model, shape, conds, *args, **kwargs)


def has_step_cache(model: ModelPatcher) -> bool:
    """Whether runs of a MODEL leave something out."""
    return bool(model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY))


def hooked(options: Mapping[str, Any], rows: int, level: float, mask: Tensor | None) -> Mapping[str, Any]:
    """Options of one call with the hook of the run's cache, if there is one and the rows can be told apart.

    ``rows`` is the size of the batch, ``mask`` [B, T] says which frames are noisy.
    """
    cache, names = options.get(STEP_CACHE), options.get("uuids") or ()
    if cache is None or not names or rows % len(names):
        return options
    window = _window(options)
    hook = cache.around([(name, window) for name in names], level, mask)
    return options if hook is None else {**options, STACK_HOOK: hook}


def reuse_guidance(
    executor: Any, model: Any, conds: list[Any], x: Tensor, sigma: Tensor, model_options: dict[str, Any]
) -> list[Tensor]:
    """ComfyUI's wrapper around ``calc_cond_batch``: unguided rows as the run's cache has them."""
    options = model_options.get("transformer_options", {})
    cache, present = options.get(GUIDANCE_CACHE), [n for n, cond in enumerate(conds) if cond is not None]
    level = float(sigma.flatten()[0])
    if cache is None or 0 not in present:
        return list(executor(model, conds, x, sigma, model_options))

    def compute(numbers: Sequence[int]) -> list[Tensor]:
        wanted = {present[number] for number in numbers}
        asked = [cond if number in wanted else None for number, cond in enumerate(conds)]
        predicted = executor(model, asked, x, sigma, model_options)
        return [predicted[present[number]] for number in numbers]

    names = [(_name(conds[number], level), _window(options), _noisy(model, conds[number], sigma)) for number in present]
    made = cache.predict(names, level, compute, x)
    rest = {number: x.new_zeros(x.shape) for number in range(len(conds)) if number not in present}  # as core's own
    rest.update(zip(present, made, strict=True))
    return [rest[number] for number in range(len(conds))]


def _name(cond: Sequence[Mapping[str, Any]], level: float) -> Hashable:
    """What tells a row's conditionings apart: those that take part at this noise level."""
    return tuple(entry["uuid"] for entry in cond if _takes_part(entry, level))


def _takes_part(entry: Mapping[str, Any], level: float) -> bool:
    return float(entry.get("timestep_end", 0.0)) <= level <= float(entry.get("timestep_start", float("inf")))


def _noisy(model: Any, cond: Sequence[Mapping[str, Any]], sigma: Tensor) -> Hashable:
    """Which frames of a row's clips are not clean yet: a row has another distance from the prompt when that changes."""
    values = [{name: value.cond for name, value in entry["model_conds"].items()} for entry in cond]
    masks = [model.noisy_frames(sigma, each) for each in values]
    return tuple(None if mask is None else tuple(mask.flatten().tolist()) for mask in masks)


def _window(options: Mapping[str, Any]) -> Hashable:
    """The frames of the context window a call is about; () where there are none."""
    window = options.get("context_window")
    return () if window is None else tuple(window.index_list)
