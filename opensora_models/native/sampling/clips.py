"""A clip as ComfyUI's LATENT: its size, its schedule, and how it is sampled from start to end."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import comfy.sample
import comfy.sampler_helpers
import comfy.utils
import latent_preview
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...releases.groups import SPATIAL_FACTOR
from ...releases.guidance import PRESETS, Guidance
from ...releases.known import (
    IMAGE_STAGE,
    RELEASES,
    STAGE_OF,
    believed_release,
    release_named,
    releases_with,
    said_release,
)
from ...releases.release import Release
from ...sampling import schedule
from ...sampling.released_settings import RUN_STARTS, anothers_preset, untouched
from ..messages import tell
from ..model.base_model import release_of
from .guiders import Conditioning, OpenSoraGuider, given_values, use_of
from .samplers import patch_shift, sampler

AUTOMATIC = "automatic"
Latent = dict[str, Any]
"""ComfyUI's LATENT: ``samples`` and perhaps ``noise_mask`` and ``batch_index``."""
RATIOS = ("downscale_ratio_spacial", "downscale_ratio_temporal")
"""What an empty LATENT may tell of the model it was made for; ComfyUI's spelling."""
RELEASE_KEY = "opensora_release"
"""Where a LATENT tells the release it was made for, by its id. ComfyUI's samplers copy it along."""
MODEL_KEY = "opensora_release_of_model"
"""Where an empty LATENT tells that a MODEL chose its release and not a menu, so that it is sure."""
GUIDANCE_PRESETS = (AUTOMATIC, *PRESETS)


@dataclass(frozen=True)
class ClipSize:
    """Release and size of a clip: pixels, pixel frames and latent frames.

    ``release`` None is another model's clip: then pixels and frames are those of eight pixels and one frame per latent.
    """

    release: Release | None
    height: int
    width: int
    frames: int
    latent_frames: int

    @property
    def version(self) -> str | None:
        """The release's id."""
        return None if self.release is None else self.release.id

    @property
    def known_release(self) -> Release:
        """The release where only Open-Sora will do."""
        if self.release is None:
            raise ValueError(f"This latent is not Open-Sora's; make or encode one with {_channels_of_releases()}.")
        return self.release

    @property
    def opensora_version(self) -> str:
        """The id where only Open-Sora will do."""
        return self.known_release.id


def clip_size(latent: Latent, model: ModelPatcher | None = None, vae: Any = None) -> ClipSize:
    """Size of a LATENT for ``model``; without one ``vae``, the latent's own word or its channels tell the release.

    Raises:
        ValueError: not an Open-Sora model, or latents of another release.
    """
    if model is None:
        release = latent_release(latent, vae)
    else:
        latent, release = latent_for(latent, model), model_release(model)
    samples = latent["samples"]
    frames = samples.shape[2] if samples.ndim == 5 else 1
    height, width = (side * (release.latents.space if release else SPATIAL_FACTOR) for side in samples.shape[-2:])
    count = release.latents.lengths.counting.frames(frames) if release else frames
    return ClipSize(release, height, width, count, frames)


def picture_size(latent: Latent, model: ModelPatcher) -> ClipSize:
    """Size of a LATENT of Flux, as the picture that is made before a video of 2.0.

    Raises:
        ValueError: more than one frame, or an Open-Sora model, which has times of its own.
    """
    samples, release = latent["samples"], release_of(model)
    if release is not None:
        raise ValueError(
            f"The {IMAGE_STAGE} has the times of Flux and the MODEL is {release.title}; choose the stage video, or "
            "connect Flux."
        )
    if samples.ndim == 5 and samples.shape[2] > 1:
        raise ValueError(
            f"The {IMAGE_STAGE} makes one picture and the latent has {samples.shape[2]} latent frames; make an empty "
            "picture latent for it (Empty SD3 Latent)."
        )
    space = latent.get("downscale_ratio_spacial") or SPATIAL_FACTOR
    height, width = (side * space for side in samples.shape[-2:])
    return ClipSize(release_named(STAGE_OF), height, width, 1, 1)


def latent_release(latent: Latent, vae: Any = None) -> Release | None:
    """The release a LATENT was made for, as far as its VAE, its own word and its channels tell; None for no release's.

    One without a word is that release's which had so many channels before latents said anything. Raises ValueError
    for a VAE of another release than the MODEL's that chose the LATENT's.
    """
    samples = latent["samples"]
    check_encoded_for(latent, vae_release(vae), "VAE")
    found, possible = vae_release(vae) or word_of(latent), releases_with(samples.shape[1])
    oldest = next((release for release in possible if release.latents.wordless), None)
    if found is not None or oldest is None:
        return found
    others = " or ".join(each.title for each in possible if each is not oldest)
    if others and samples.ndim == 5 and samples.shape[2] > 1:  # one frame is one frame in all of them
        tell(
            f"The latent does not say which release it is for and is read as {oldest.title}'s; for {others} make "
            "it with Empty Open-Sora Latent or Open-Sora Encode."
        )
    return oldest


def marked(latent: Latent, release: Release | None, *, by_model: bool = False) -> Latent:
    """The LATENT with the release it belongs to; without one where that is unknown. ``by_model``: a MODEL told it."""
    rest = {key: value for key, value in latent.items() if key not in (RELEASE_KEY, MODEL_KEY)}
    sure = {MODEL_KEY: True} if by_model else {}
    return rest if release is None else {**rest, RELEASE_KEY: release.id, **sure}


def check_encoded_for(latent: Latent, release: Release | None, what: str) -> None:
    """Refuse ``what`` where it belongs to a ``release`` whose latents the MODEL behind an empty LATENT cannot read."""
    own = word_of(latent) if latent.get(MODEL_KEY) else None
    if own is not None and release is not None and release.autoencoder != own.autoencoder:
        raise ValueError(
            f"The {what} is {release.title}'s but the clip is made for {own.title}, the release of the MODEL at its "
            f"empty latent; connect the VAE of {own.id}, or latents encoded with it."
        )


def vae_release(vae: Any) -> Release | None:
    """The release whose latents a VAE makes; None for other programs' VAEs."""
    return believed_release(vae=getattr(getattr(vae, "network", None), "version", None))


def word_of(latent: Latent) -> Release | None:
    """The release that a LATENT says it is for; None where it says nothing that can be."""
    return said_release(latent.get(RELEASE_KEY), latent["samples"].shape[1])


def _channels_of_releases() -> str:
    ids: dict[int, list[str]] = {}
    for release in RELEASES.values():
        ids.setdefault(release.latents.channels, []).append(release.id)
    return " or ".join(f"{count} channels ({', '.join(named)})" for count, named in ids.items())


def latent_for(latent: Latent, model: ModelPatcher) -> Latent:
    """The LATENT as ``model`` samples it, and a sentence where that is another clip than it was made as.

    Like ComfyUI's own samplers, an empty latent of another model gets the channels, and where it tells them the pixels
    and frames, of this one.

    Raises:
        ValueError: not an Open-Sora model, or latents with content that are another release's.
    """
    samples, release = latent["samples"], model_release(model)
    empty = not bool(samples.any())
    if samples.shape[1] != release.latents.channels and not empty:
        raise ValueError(
            f"The latent has {samples.shape[1]} channels but the model is {release.title}, which samples "
            f"{release.latents.channels}; encode or make the latent for {release.id}."
        )
    made, possible = word_of(latent), releases_with(samples.shape[1])
    if made is None and release not in possible:
        made = next((each for each in possible if each.latents.wordless), None)
    known = inspect.signature(comfy.sample.fix_empty_latent_channels).parameters  # older versions read no ratios
    ratios = {key: latent[key] for key in RATIOS if key in known and latent.get(key) is not None}
    fitted = comfy.sample.fix_empty_latent_channels(model, samples, **ratios)
    fitted = fitted if fitted.ndim == 5 else fitted.unsqueeze(2)
    if empty:
        tell(*_what_becomes(samples, fitted, made, release))
    elif made is not None and made is not release:
        tell(
            f"The latent says that it is {made.title}'s and is taken as {release.title}'s, the model's; if it was "
            f"encoded for {made.id}, encode it again with the VAE of {release.id}."
        )
    kept = {key: value for key, value in latent.items() if key not in RATIOS}
    return marked({**kept, "samples": fitted}, release)


def _what_becomes(samples: Tensor, fitted: Tensor, made: Release | None, release: Release) -> list[str]:
    """Sentences about an empty latent that stands for something else than the person who made it thought."""
    frames = release.latents.lengths.counting.frames(fitted.shape[2])
    if samples.ndim == 4:
        return ["The latent is a single picture, so 1 frame is made; for a clip use Empty Open-Sora Latent."]
    if made is not None and made is not release:
        meant, makes = _stands_for(samples, made), _stands_for(fitted, release)
        if meant != makes:
            return [
                f"The empty latent was made for {made.title}, where it stands for {meant}; the model is "
                f"{release.title} and makes {makes} of it."
            ]
    elif samples.shape[2:] != fitted.shape[2:]:
        sizes = ["×".join(str(side) for side in each.shape[2:]) for each in (samples, fitted)]
        return [
            f"The empty latent of another model, {sizes[0]}, was brought to {sizes[1]} for {release.title}, which "
            f"makes {frames} frames of it."
        ]
    lengths = release.latents.lengths
    if not lengths.is_good(frames):
        return [
            f"{fitted.shape[2]} latent frames do not fill the groups of {release.title}; they make {frames} "
            f"frames; the nearest good value is {lengths.nearest(frames)} frames."
        ]
    return []


def _stands_for(samples: Tensor, release: Release) -> str:
    """Frames and size of the clip that latents [B, C, T, h, w] are in a release."""
    frames = release.latents.lengths.counting.frames(samples.shape[2])
    size = "×".join(str(side * release.latents.space) for side in samples.shape[-2:])
    return f"{frames} frame{'s' * (frames > 1)} of {size}"


def model_release(model: ModelPatcher) -> Release:
    """Release of an Open-Sora MODEL; any other model is refused."""
    release = release_of(model)
    if release is None:
        raise ValueError("This node needs an Open-Sora model; load one with Open-Sora Load Model.")
    return release


def model_version(model: ModelPatcher) -> str:
    """Id of the release of an Open-Sora MODEL; any other model is refused."""
    return model_release(model).id


def clip_shift(clip: ClipSize, **options: Any) -> float:
    """The shift of the schedule for a clip; options as in :func:`...releases.time_shift.shift_for`.

    Options that the release's rule does not have are told and left out.
    """
    times = clip.known_release.times
    return times.shift(clip.frames, clip.height, clip.width, **_known_options(clip.known_release, options))


def clip_sigmas(clip: ClipSize, steps: int, *, denoise: float = 1.0, **options: Any) -> Tensor:
    """Noise levels ``[steps + 1]`` for a clip; ``denoise`` below 1 takes the end of a longer schedule, like core.

    Options: ``discrete``, and those of :func:`clip_shift`.
    """
    if not 0.0 < denoise <= 1.0:
        raise ValueError(f"denoise is {denoise:g} but must lie above 0 and at most at 1; the nearest good value is 1.")
    total = steps if denoise > 0.9999 else int(steps / denoise)
    known = _known_options(clip.known_release, options)
    discrete, dtype = known.pop("discrete", False), known.get("dtype", torch.float32)
    return schedule.sigmas(total, clip_shift(clip, **known), discrete=discrete, dtype=dtype)[-(steps + 1) :]


USUAL = {"transform_scale": 1.0, "scale_temporal": True, "dtype": torch.float32, "discrete": False}
"""Values that an option of the schedule has when nobody asks for anything."""
ON_NODES = {"scale_temporal": "count_frames", "dtype": "rounding"}
"""Names of options on the nodes, where they differ."""


def _known_options(release: Release, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options that the release's schedule has; the others are told unless they ask for nothing."""
    dropped = [name for name, value in options.items() if name not in release.times.options and value != USUAL[name]]
    if dropped:
        names = " and ".join(ON_NODES.get(name, name) for name in dropped)
        tell(f"The schedule of {release.title} knows no {names}; set aside.")
    return {name: value for name, value in options.items() if name in release.times.options}


def guidance_preset(
    name: str, release: Release, given: Mapping[str, Any], cfg: float, image_cfg: float | None
) -> Guidance:
    """The released guidance with the user's scales; ``automatic`` looks at the release and at what is given.

    ``given`` are the given-frame entries of a conditioning, see :func:`.guiders.given_values`.
    """
    preset = release.guidance.presets[use_of(given)] if name == AUTOMATIC else PRESETS[name]
    preset = replace(preset, text_scale=cfg)
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


def tell_untouched(
    release: Release, starts: Mapping[str, float], positive: Conditioning | None = None, **values: float | None
) -> None:
    """Say where the settings of a node are all as it ``starts`` and the release was published with others."""
    tell(untouched(release, use_of(given_values(positive or [])), values, starts), level=logging.INFO)


def sample_clip(
    model: ModelPatcher, positive: Conditioning, negative: Conditioning, latent: Latent, run: ClipRun
) -> Latent:
    """Sample one LATENT. Frames whose noise mask is 0 come back bit for bit."""
    latent, given = latent_for(latent, model), given_values(positive)
    clip, start = clip_size(latent, model), latent["samples"]
    scales = {"cfg": run.cfg, "image_cfg": run.image_cfg}
    tell_untouched(clip.known_release, RUN_STARTS, positive, steps=run.steps, **scales)
    tell(anothers_preset(clip.known_release, run.preset), level=logging.INFO)
    sigmas = clip_sigmas(clip, run.steps, denoise=run.denoise)
    # With the shift of this clip, parts of the run that conditionings and hooks name are parts of its steps.
    guider = OpenSoraGuider(
        patch_shift(model, clip_shift(clip)),
        guidance_preset(run.preset, clip.known_release, given, run.cfg, run.image_cfg),
    )
    guider.set_conds(positive, negative)
    done = guider.sample(
        comfy.sample.prepare_noise(start, run.seed, latent.get("batch_index")),
        start,
        sampler(renoise_given=run.renoise_given and bool(given)),
        sigmas,
        denoise_mask=latent.get("noise_mask"),
        callback=latent_preview.prepare_callback(model, len(sigmas) - 1),
        disable_pbar=not comfy.utils.PROGRESS_BAR_ENABLED,
        seed=run.seed,
    ).to(start)
    if not bool(done.isfinite().all()):
        tell(
            "The run made values that are not numbers (NaN or infinite). Load the model with fp32 or bf16 if weights "
            "or sums are fp16 or fp8; else look at what is connected to the MODEL, context windows for example."
        )
    return {**latent, "samples": _keep(start, done, latent.get("noise_mask"))}


def _keep(start: Tensor, done: Tensor, mask: Tensor | None) -> Tensor:
    """Normalising and back costs the last bits; frames that were to be kept get their own values again."""
    if mask is None:
        return done
    ratios = comfy.sampler_helpers.prepare_mask(mask, start.shape, start.device)
    return torch.where(ratios == 0, start, done)
