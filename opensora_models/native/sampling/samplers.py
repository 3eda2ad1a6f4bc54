"""Open-Sora's sampler, scheduler and shift as ComfyUI's own objects."""

from __future__ import annotations

from typing import Any

import comfy.model_sampling
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor
from tqdm.auto import tqdm

from ...releases.known import RELEASES
from ...releases.release import GivenRules
from ...sampling.flow import FrameMask, GivenFrames, rectified_flow
from ...sampling.noise import NoiseSource, SeededNoise
from ...sampling.schedule import TRAIN_TIMESTEPS
from ..model.conds import from_fixed, to_fixed
from .guiders import GIVEN_FRAMES, GIVEN_LATENT

SCHEDULER_NAME = "opensora"


def sampler(*, renoise_given: bool = False, noise: NoiseSource | None = None) -> comfy.samplers.KSAMPLER:
    """A SAMPLER for SamplerCustomAdvanced; see :func:`sample_opensora` for the options."""
    return comfy.samplers.KSAMPLER(sample_opensora, {"renoise_given": renoise_given, "noise": noise})


@torch.no_grad()
def sample_opensora(
    model: Any,
    x: Tensor,
    sigmas: Tensor,
    extra_args: dict[str, Any] | None = None,
    callback: Any = None,
    disable: bool | None = None,
    *,
    renoise_given: bool = False,
    noise: NoiseSource | None = None,
) -> Tensor:
    """The rectified flow with Open-Sora's frame rules, in the form ComfyUI's samplers have.

    Args:
        model: ComfyUI's masked model; its ``latent_image`` and ``noise`` are read.
        x: latents ``[B, C, T, h, w]`` at ``sigmas[0]``; sigmas: ``[N + 1]``.
        renoise_given: noise the given frames anew before every model call (``use_sdedit`` of the original), in releases
            that do so.
        noise: injected noise; None draws from the run's seed.
    """
    options, given = extra_args or {}, _rules(model)
    source = noise or SeededNoise(int(options.get("seed") or 0), model.noise)
    walk = rectified_flow(
        lambda latents, level: model(latents.clone(), level, **options),
        x,
        sigmas,
        noise=source,
        # Where all frames have one time, masks are ComfyUI's ordinary ones, which act around the model's call.
        mask=_frame_mask(model, x, sigmas, options.get("denoise_mask")) if given.frame_mask else None,
        renoise=given_frames(model, x) if renoise_given and given.renoised else None,
    )
    for step in tqdm(walk, total=len(sigmas) - 1, disable=disable):
        if callback is not None:
            sigma = step.sigma.clone()  # not the schedule itself
            callback({"x": step.x, "i": step.index, "sigma": sigma, "sigma_hat": sigma, "denoised": step.denoised})
        x = step.after
    return x


def _rules(model: Any) -> GivenRules:
    """How the release of the model behind the masked one is given frames; 1.3's rules for other models."""
    return getattr(model.inner_model.inner_model, "release", RELEASES["1.3"]).given


def _frame_mask(model: Any, x: Tensor, sigmas: Tensor, denoise_mask: Tensor | None) -> FrameMask | None:
    if denoise_mask is None:
        return None
    if float(sigmas[0]) < 1.0 and not bool(model.noise.any()):
        # Second part of a split run: ComfyUI hands the state of the first part over as "latent image", divided by
        # (1 - sigma). Kept frames were clean in that state, and x is the state itself.
        model.latent_image = x
    return FrameMask(from_fixed(to_fixed(denoise_mask)), model.latent_image)


def given_frames(model: Any, x: Tensor) -> GivenFrames | None:
    """The frames the positive conditioning gives, in the model's own scale and on the sampler's device."""
    guider = model.inner_model
    for entry in guider.conds["positive"]:
        latent, frames = entry.get(GIVEN_LATENT), entry.get(GIVEN_FRAMES)
        if latent is not None and frames:
            scaled = guider.inner_model.process_latent_in(latent).to(x)
            repeats = -(-x.shape[0] // scaled.shape[0])
            return GivenFrames(scaled.repeat(repeats, 1, 1, 1, 1)[: x.shape[0]], tuple(frames))
    return None


def opensora_scheduler(model_sampling: Any, steps: int) -> Tensor:
    """Noise levels ``[steps + 1]`` of the model's own shift: what ``OSoraSigmas`` gives, inside any KSampler.

    ComfyUI offers a scheduler for every model, so it works with every sampling type: equal shares of the trained time,
    from the highest level, falling, 0 at the end.
    """
    shares = [step / steps for step in range(steps)]
    if float(model_sampling.percent_to_sigma(0.0)) <= 1.0:  # a flow: levels are shares of noise
        levels = [min(float(model_sampling.percent_to_sigma(share)), 1.0) for share in shares]
    else:
        levels = _table_levels(model_sampling.sigmas, shares)
    return torch.tensor([*levels, 0.0])


def _table_levels(table: Tensor, shares: list[float]) -> list[float]:
    """The levels at these shares of a trained table, from its top.

    The table is read and not ``percent_to_sigma``, which is infinite for one of ComfyUI's types and stands still at the
    ends of another. Between entries the logarithm is interpolated, as ``ModelSamplingDiscrete.sigma`` does.
    """
    logs = table.cpu().double().unique().log()
    places = (1.0 - torch.tensor(shares, dtype=torch.float64)) * (len(logs) - 1)
    below = places.floor().long()
    above = (below + 1).clamp_max(len(logs) - 1)
    return torch.lerp(logs[below], logs[above], places.frac()).exp().tolist()


def register_scheduler() -> None:
    """Offer the scheduler by name in every sampler node; calling it again changes nothing."""
    handlers, names = comfy.samplers.SCHEDULER_HANDLERS, comfy.samplers.SCHEDULER_NAMES
    handlers[SCHEDULER_NAME] = comfy.samplers.SchedulerHandler(opensora_scheduler)
    if SCHEDULER_NAME not in names:
        names.append(SCHEDULER_NAME)


class ShiftedFlow(comfy.model_sampling.ModelSamplingDiscreteFlow, comfy.model_sampling.CONST):
    """Rectified flow with Open-Sora's time scale; the shift is set from outside."""


def patch_shift(model: ModelPatcher, shift: float) -> ModelPatcher:
    """A copy of ``model`` whose schedulers (simple, sgm_uniform, opensora, ...) use ``shift``."""
    sampling = ShiftedFlow(model.model.model_config)
    sampling.set_parameters(shift=shift, multiplier=TRAIN_TIMESTEPS)
    patched = model.clone()
    patched.add_object_patch("model_sampling", sampling)
    return patched
