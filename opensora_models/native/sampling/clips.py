"""A clip as ComfyUI's LATENT: its size, its schedule, and how it is sampled from start to end."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, replace
from typing import Any

import comfy.sample
import comfy.sampler_helpers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...releases.groups import (
    LATENT_CHANNELS,
    SPATIAL_FACTOR,
    Version,
    decoded_frames,
    is_good_length,
    nearest_good_length,
)
from ...releases.guidance import PRESETS, Guidance
from ...releases.time_shift import shift_for
from ...sampling import schedule
from ..messages import tell
from ..model.stdit3_model import opensora_config
from .guiders import Conditioning, OpenSoraGuider, given_values
from .samplers import patch_shift, sampler

AUTOMATIC = "automatic"
Latent = dict[str, Any]
"""ComfyUI's LATENT: ``samples`` and perhaps ``noise_mask`` and ``batch_index``."""
RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")
"""What an empty LATENT may tell of the model it was made for; ComfyUI's spelling."""
GUIDANCE_PRESETS = (AUTOMATIC, *PRESETS)


@dataclass(frozen=True)
class ClipSize:
    """Version and size of a clip: pixels, pixel frames and latent frames.

    ``version`` None is another model's clip: then pixels and frames are those of eight pixels and one frame per latent.
    """

    version: Version | None
    height: int
    width: int
    frames: int
    latent_frames: int

    @property
    def opensora_version(self) -> Version:
        """The version where only Open-Sora will do."""
        if self.version is None:
            raise ValueError("This latent is not Open-Sora's; make or encode one with 4 channels (1.2) or 16 (1.3).")
        return self.version


def clip_size(latent: Latent, model: ModelPatcher | None = None) -> ClipSize:
    """Size of a LATENT for ``model``; without a model its number of channels tells the version.

    Raises:
        ValueError: not an Open-Sora model, or latents of the other version.
    """
    if model is None:
        version = _version_of(latent["samples"])
    else:
        latent, version = latent_for(latent, model), model_version(model)
    samples = latent["samples"]
    frames = samples.shape[2] if samples.ndim == 5 else 1
    height, width = (side * SPATIAL_FACTOR for side in samples.shape[-2:])
    return ClipSize(version, height, width, decoded_frames(version, frames) if version else frames, frames)


def latent_for(latent: Latent, model: ModelPatcher) -> Latent:
    """The LATENT as ``model`` samples it, and a sentence where that is another clip than it was made as.

    Like ComfyUI's own samplers, an empty latent of another model gets the channels, and where it tells them the pixels
    and frames, of this one.

    Raises:
        ValueError: not an Open-Sora model, or latents with content that are another version's.
    """
    samples, wanted = latent["samples"], model_version(model)
    empty = not bool(samples.any())
    if samples.shape[1] != LATENT_CHANNELS[wanted] and not empty:
        raise ValueError(
            f"The latent has {samples.shape[1]} channels but the model is Open-Sora {wanted}, which samples "
            f"{LATENT_CHANNELS[wanted]}; encode or make the latent for {wanted}."
        )
    known = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters  # older versions read no ratios
    ratios = {key: latent[key] for key in RATIOS if key in known and latent.get(key) is not None}
    fitted = comfy.sample.fix_empty_latent_channels(model, samples, **ratios)
    fitted = fitted if fitted.ndim == 5 else fitted.unsqueeze(2)
    if empty:
        tell(*_what_becomes(samples, fitted, wanted))
    return {**{key: value for key, value in latent.items() if key not in RATIOS}, "samples": fitted}


def _what_becomes(made: Tensor, fitted: Tensor, version: Version) -> list[str]:
    """Sentences about an empty latent that stands for something else than the person who made it thought."""
    frames = decoded_frames(version, fitted.shape[2])
    other = _version_of(made)
    if made.ndim == 4:
        return ["The latent is a single picture, so 1 frame is made; for a clip use Empty Open-Sora Latent."]
    if other is not None and other != version and made.shape[2] > 1:
        meant = decoded_frames(other, made.shape[2])
        return [
            f"The empty latent was made for Open-Sora {other}, where it stands for {meant} frames; the model is "
            f"Open-Sora {version} and makes {frames} frames of it."
        ]
    if made.shape[2:] != fitted.shape[2:]:
        sizes = ["×".join(str(side) for side in each.shape[2:]) for each in (made, fitted)]
        return [
            f"The empty latent of another model, {sizes[0]}, was brought to {sizes[1]} for Open-Sora {version}, which "
            f"makes {frames} frames of it."
        ]
    if not is_good_length(version, frames):
        return [
            f"{fitted.shape[2]} latent frames do not fill the groups of Open-Sora {version}; they make {frames} "
            f"frames; the nearest good value is {nearest_good_length(version, frames)} frames."
        ]
    return []


def model_version(model: ModelPatcher) -> Version:
    """Version of an Open-Sora MODEL; any other model is refused."""
    config = opensora_config(model)
    if config is None:
        raise ValueError("This node needs an Open-Sora model; load one with Open-Sora Load Model.")
    return config.version


def _version_of(samples: Tensor) -> Version | None:
    return next((version for version, channels in LATENT_CHANNELS.items() if channels == samples.shape[1]), None)


def clip_shift(clip: ClipSize, **options: Any) -> float:
    """The shift of the schedule for a clip; options as in :func:`...releases.time_shift.shift_for`."""
    return shift_for(clip.opensora_version, clip.height, clip.width, clip.frames, **options)


def clip_sigmas(clip: ClipSize, steps: int, *, denoise: float = 1.0, discrete: bool = False, **options: Any) -> Tensor:
    """Noise levels ``[steps + 1]`` for a clip; ``denoise`` below 1 takes the end of a longer schedule, like core."""
    if not 0.0 < denoise <= 1.0:
        raise ValueError(f"denoise is {denoise:g} but must lie above 0 and at most at 1; the nearest good value is 1.")
    total = steps if denoise > 0.9999 else int(steps / denoise)
    dtype = options.get("dtype", torch.float32)
    return schedule.sigmas(total, clip_shift(clip, **options), discrete=discrete, dtype=dtype)[-(steps + 1) :]


def guidance_preset(name: str, version: Version, has_given: bool, cfg: float, image_cfg: float | None) -> Guidance:
    """The released guidance of a version with the user's scales; ``automatic`` looks at version and given frames."""
    if name == AUTOMATIC:
        name = "1.2" if version == "1.2" else "1.3 given frames" if has_given else "1.3 text to video"
    preset = replace(PRESETS[name], text_scale=cfg)
    return preset if image_cfg is None else replace(preset, image_scale=image_cfg)


@dataclass(frozen=True)
class ClipRun:
    """How a clip is sampled; ``preset`` is one of :data:`GUIDANCE_PRESETS`."""

    steps: int
    seed: int
    cfg: float
    image_cfg: float | None = None
    preset: str = AUTOMATIC
    denoise: float = 1.0
    renoise_given: bool = True
    """Noise given frames anew before every model call, as released (``use_sdedit``); nothing without given frames."""


def sample_clip(
    model: ModelPatcher, positive: Conditioning, negative: Conditioning, latent: Latent, run: ClipRun
) -> Latent:
    """Sample one LATENT. Frames whose noise mask is 0 come back bit for bit."""
    latent, has_given = latent_for(latent, model), bool(given_values(positive))
    clip, start = clip_size(latent, model), latent["samples"]
    sigmas = clip_sigmas(clip, run.steps, denoise=run.denoise)
    # With the shift of this clip, parts of the run that conditionings and hooks name are parts of its steps.
    guider = OpenSoraGuider(
        patch_shift(model, clip_shift(clip)),
        guidance_preset(run.preset, clip.opensora_version, has_given, run.cfg, run.image_cfg),
    )
    guider.set_conds(positive, negative)
    done = guider.sample(
        comfy.sample.prepare_noise(start, run.seed, latent.get("batch_index")),
        start,
        sampler(renoise_given=run.renoise_given and has_given),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=run.seed,
    ).to(start)
    return {**latent, "samples": _keep(start, done, latent.get("noise_mask"))}


def _keep(start: Tensor, done: Tensor, mask: Tensor | None) -> Tensor:
    """Normalising and back costs the last bits; frames that were to be kept get their own values again."""
    if mask is None:
        return done
    ratios = comfy.sampler_helpers.prepare_mask(mask, start.shape, start.device)
    return torch.where(ratios == 0, start, done)
