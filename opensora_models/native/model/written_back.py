"""Given pictures replace the finished frames, whatever sampler node made them (Open-Sora 2.0).

Upstream ``opensora/utils/sampling.py`` of release 2.0 does so after the last step, for the first sample of a batch;
here every sample gets its own. A wrapper on the MODEL, so that core's KSampler does it as well.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...sampling.given_input import write_back
from .base_model import release_of

KEY = "opensora_written_back"
CALLBACK = 1
"""Where the callback stands among the arguments of ``outer_sample`` behind the schedule: after the mask."""
LATENT, PICTURES = "opensora_given_latent", "opensora_given_pictures"


def writing_back(model: ModelPatcher) -> ModelPatcher:
    """``model``, or a copy of it that writes given pictures back where its release does and it does not yet."""
    if not _should(model):
        return model
    patched = model.clone()
    add_to(patched)
    return patched


def add_to(model: ModelPatcher) -> None:
    """Let a MODEL write given pictures back where its release does."""
    if _should(model):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, sample_and_write_back)


def _should(model: ModelPatcher) -> bool:
    release = release_of(model)
    there = model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY)
    return release is not None and release.given.written_back and not there


def sample_and_write_back(
    executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """ComfyUI's ``outer_sample``; a run that stops before the last noise level is left as it is.

    What the sampler tells of its steps is written into as well: the last of it is the second output, *denoised*, of
    SamplerCustomAdvanced.
    """
    guider = executor.class_obj
    given = _given(guider.conds.get("positive", ()))
    if given is None or float(sigmas[-1]) != 0.0:  # read first: a sampler may write into its schedule
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    inside = (guider.model_patcher.model.process_latent_in(given[0]), given[1])
    args, kwargs = _telling(lambda step: _written(step, *inside), args, kwargs)
    return _written(executor(noise, latent_image, sampler, sigmas, *args, **kwargs), *given)


def _written(latents: Tensor, reference: Tensor, pictures: Sequence[int]) -> Tensor:
    """``latents`` [B, C, T, h, w] with the pictures at their ends; what is no clip is left as it is."""
    if latents.ndim != 5:
        return latents
    repeats = -(-latents.shape[0] // reference.shape[0])
    rows = reference.repeat(repeats, 1, 1, 1, 1)[: latents.shape[0]]
    return write_back(latents, rows, [frame for frame in pictures if frame in (0, latents.shape[2] - 1)])


def _telling(
    written: Callable[[Tensor], Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The arguments of ``outer_sample`` behind its schedule, its callback told ``written`` of the denoised latents."""
    there = len(args) > CALLBACK
    callback = args[CALLBACK] if there else kwargs.get("callback")
    if callback is None:
        return args, kwargs

    def told(step: int, denoised: Tensor, *rest: Any) -> Any:
        return callback(step, written(denoised), *rest)

    if there:
        return (*args[:CALLBACK], told, *args[CALLBACK + 1 :]), kwargs
    return args, {**kwargs, "callback": told}


def _given(entries: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Sequence[int]] | None:
    """Latents and picture frames of the first entry that gives pictures; the autoencoder's own scale."""
    for entry in entries:
        if entry.get(LATENT) is not None and entry.get(PICTURES):
            return entry[LATENT], entry[PICTURES]
    return None
