"""A run that begins below full noise needs a picture to begin from; where there is none, the person is told.

A wrapper on the MODEL, so that core's KSampler and SamplerCustomAdvanced say it as well as Open-Sora Sampler.
"""

from __future__ import annotations

from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..messages import tell

KEY = "opensora_empty_start"
ALMOST_ALL = 0.99
"""Share of the highest noise level above which nothing of a picture would be seen, and schedules round."""


def watch(model: ModelPatcher) -> None:
    """Let every run of a MODEL be looked at before it begins."""
    if not model.get_wrappers(WrappersMP.OUTER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, told)


def told(executor: Any, noise: Tensor, latent: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any) -> Any:
    """ComfyUI's ``outer_sample``, after a sentence where the schedule is cut and latent frames are empty."""
    highest = float(executor.class_obj.model_patcher.get_model_object("model_sampling").sigma_max)
    if len(sigmas) > 1:
        tell(what_is_missing(latent, float(sigmas[0]), highest))
    return executor(noise, latent, sampler, sigmas, *args, **kwargs)


def what_is_missing(latent: Tensor, start: float, highest: float) -> str:
    """The sentence for latents [B, C, T, h, w] that start at a noise level; "" where all is well."""
    if latent.ndim != 5 or start >= ALMOST_ALL * highest:
        return ""
    filled = latent.ne(0).any(dim=(0, 1, 3, 4))
    empty, frames = int((~filled).sum()), len(filled)
    if not empty:
        return ""
    which = "the latent is empty" if empty == frames else f"{empty} of its {frames} latent frames are empty"
    return (
        f"The run starts at noise level {start:.2f} of {highest:.2f}, as with denoise below 1, but {which}: there is "
        "no picture to start from, and the steps that would make one are left out; set denoise to 1, or connect an "
        "encoded clip."
    )
