"""Given pictures replace the finished frames, whatever sampler node made them (Open-Sora 2.0).

Upstream ``opensora/utils/sampling.py`` of release 2.0 does so after the last step, for the first sample of a batch;
here every sample gets its own. A wrapper on the MODEL, so that core's KSampler does it as well.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ...sampling.given_input import write_back
from .base_model import release_of

KEY = "opensora_written_back"
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
    """ComfyUI's ``outer_sample``; a run that stops before the last noise level is left as it is."""
    entries = executor.class_obj.conds.get("positive", ())
    ends = float(sigmas[-1]) == 0.0  # read first: a sampler may write into its schedule
    finished = executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
    if not ends or finished.ndim != 5:
        return finished
    given = _given(entries)
    if given is None:
        return finished
    reference, frames = given
    repeats = -(-finished.shape[0] // reference.shape[0])
    rows = reference.repeat(repeats, 1, 1, 1, 1)[: finished.shape[0]]
    return write_back(finished, rows, [frame for frame in frames if frame in (0, finished.shape[2] - 1)])


def _given(entries: Sequence[Mapping[str, Any]]) -> tuple[Tensor, Sequence[int]] | None:
    """Latents and picture frames of the first entry that gives pictures; the autoencoder's own scale."""
    for entry in entries:
        if entry.get(LATENT) is not None and entry.get(PICTURES):
            return entry[LATENT], entry[PICTURES]
    return None
