"""From pictures, a VAE and words to references, and from references to LATENT and CONDITIONING."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sampler_helpers
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...releases.groups import SPATIAL_FACTOR, Version
from ...sampling.fitting import Fit, fit_pictures
from ...sampling.masks import KEPT, format_strategy, parse_strategy
from ...sampling.placements import plan
from ...sampling.references import ALIGN, Reference, apply_strategy, lay_out, strategy_text
from ..messages import tell
from .clips import ClipSize, clip_size, latent_for
from .guiders import Conditioning, with_given_frames

FRAME_MASK = "frame mask"
GIVEN_FRAMES = "given frames"
AUTOMATIC = "automatic"
METHODS = (AUTOMATIC, FRAME_MASK, GIVEN_FRAMES)


@dataclass(frozen=True)
class ReferenceChain:
    """What travels on a references wire: the references in order, and what was done to them, as sentences."""

    references: tuple[Reference, ...] = ()
    notes: tuple[str, ...] = ()

    def add(self, references: Sequence[Reference], notes: Sequence[str]) -> ReferenceChain:
        """A longer chain; this one stays as it is."""
        return ReferenceChain((*self.references, *references), (*self.notes, *notes))


@dataclass(frozen=True)
class Placing:
    """How pictures are placed: see ``sampling.placements.plan``; ``strength`` is the edit ratio."""

    placement: str
    at: int = 0
    take: int = 0
    strength: float = KEPT
    segment: int = 0
    fit: Fit = "crop"


def encode_pictures(
    vae: Any, pictures: Sequence[Tensor | None], clip: ClipSize, placing: Placing
) -> tuple[list[Reference], list[str]]:
    """References made of pictures ``[N, H, W, 3]``; only frames that are used are encoded, at the clip's size."""
    if vae is None:
        raise ValueError("Pictures are encoded by the Open-Sora VAE, none was given; connect one.")
    counts = tuple(0 if batch is None else batch.shape[0] for batch in pictures)
    pieces = plan(
        placing.placement, (counts[0], counts[1]), clip.latent_frames, clip.version, take=placing.take, at=placing.at
    )
    height, width = _pixels(vae, clip)
    references, notes = [], []
    for piece in pieces:
        batch = pictures[piece.source]
        if batch is None:
            continue
        taken = batch[piece.start : piece.start + piece.count]
        fitted, note = fit_pictures(taken, height, width, placing.fit)
        transparency = "The transparency of a reference is not used." if taken.shape[-1] == 4 else None
        notes += [each for each in (note, transparency) if each is not None and each not in notes]
        latent = _encode(vae, fitted)
        target = -latent.shape[1] if piece.target is None else piece.target
        references.append(Reference(latent, target, edit_ratio=placing.strength, segment=placing.segment))
    return references, notes


def _pixels(vae: Any, clip: ClipSize) -> tuple[int, int]:
    """Height and width to encode at; another model's VAE knows how many pixels its latents have."""
    if clip.version is not None:
        return clip.height, clip.width
    factor = vae.spacial_compression_encode()
    return clip.height // SPATIAL_FACTOR * factor, clip.width // SPATIAL_FACTOR * factor


def _encode(vae: Any, pictures: Tensor) -> Tensor:
    """Latents ``[C, t, h, w]`` of one clip ``[N, H, W, 3]``."""
    latent = vae.encode(pictures[..., :3])
    return (latent[0] if latent.ndim == 5 else latent.movedim(0, 1)).float().cpu()


def latent_references(latent: dict[str, Any], placing: Placing) -> list[Reference]:
    """A LATENT as one reference, every frame of its first sample."""
    samples = latent["samples"]
    if samples.ndim == 5 and samples.shape[0] > 1:
        tell(f"The reference holds a batch of {samples.shape[0]} clips; the first one is used.")
    frames = samples[0] if samples.ndim == 5 else samples.movedim(0, 1)[:, :1]
    return [Reference(frames.float().cpu(), placing.at, edit_ratio=placing.strength, segment=placing.segment)]


@dataclass(frozen=True)
class PlacedClip:
    """References in a clip: the LATENT to sample, both CONDITIONINGs, the strategy text, sentences."""

    latent: dict[str, Any]
    positive: Conditioning
    negative: Conditioning
    strategy: str
    notes: tuple[str, ...]


def place_references(
    chain: ReferenceChain,
    latent: dict[str, Any],
    clip: ClipSize,
    positive: Conditioning,
    negative: Conditioning,
    *,
    method: str = AUTOMATIC,
    strategy: str = "",
    align: bool = True,
    segment: int = 0,
    segments: int = 1,
) -> PlacedClip:
    """Put references into a clip.

    Args:
        positive, negative: the prompts; empty where none is connected.
        method: ``frame mask`` writes them into the latent with a noise mask, ``given frames`` (1.3) into both
            conditionings; ``automatic`` takes the first for 1.2 and for edited references, else the second.
        strategy: a mask strategy that replaces the references' own places; empty keeps them.
        align: snap both starts to groups of 5 latent frames in 1.2.
        segment, segments: which part of a long video is being made.

    Raises:
        ValueError: anything that does not fit, see ``sampling.references.lay_out``.
    """
    groups = parse_strategy(strategy)
    references = apply_strategy(chain.references, groups) if groups else list(chain.references)
    samples = latent["samples"]
    samples = samples if samples.ndim == 5 else samples.unsqueeze(2)
    snap = ALIGN.get(clip.version) if align else None
    placed = [lay_out(references, sample, segment=segment, align=snap, segments=segments) for sample in samples]
    notes = (*chain.notes, *placed[0].notes)
    text = format_strategy(groups) if groups else strategy_text(references)
    frames, ratios = placed[0].frames, placed[0].mask
    if not frames:
        return PlacedClip(latent, positive, negative, text, notes)
    filled = torch.stack([each.latent for each in placed])
    if _method(method, clip.version, ratios, frames) == FRAME_MASK:
        mask = combined_mask(latent, samples.shape, ratios, frames)
        return PlacedClip({**latent, "samples": filled, "noise_mask": mask}, positive, negative, text, notes)
    if not positive or not negative:
        raise ValueError("Given frames travel in the conditioning; connect both positive and negative.")
    positive, negative = (with_given_frames(each, filled, frames) for each in (positive, negative))
    return PlacedClip(latent, positive, negative, text, notes)


def check_clip(model: ModelPatcher, latent: dict[str, Any], chain: ReferenceChain | None) -> None:
    """Refuse what a run would refuse, before prompts are encoded: a latent or references that do not fit the model."""
    clip = clip_size(latent, model)
    if chain is not None:
        place_references(chain, latent_for(latent, model), clip, [], [], method=FRAME_MASK)


def method_for(model: ModelPatcher, version: Version, method: str) -> str:
    """``automatic`` becomes ``frame mask`` where the model cannot use given frames.

    1.2 has no input for them, and 1.3 text-to-video weights carry zeros in their embedders.
    """
    if method != AUTOMATIC:
        return method
    embedder = getattr(model.model.diffusion_model, "x_embedder_cond", None)
    learned = embedder is not None and any(bool(tensor.any()) for tensor in embedder.state_dict().values())
    return AUTOMATIC if version == "1.3" and learned else FRAME_MASK


def _method(method: str, version: Version | None, ratios: Tensor, frames: Sequence[int]) -> str:
    if method == AUTOMATIC:
        edited = bool((ratios[list(frames)] != KEPT).any())
        return GIVEN_FRAMES if version == "1.3" and not edited else FRAME_MASK
    if method == GIVEN_FRAMES and version != "1.3":
        raise ValueError("Only Open-Sora 1.3 has an input for given frames; use the method frame mask.")
    return method


def combined_mask(latent: dict[str, Any], shape: Sequence[int], ratios: Tensor, frames: Sequence[int]) -> Tensor:
    """Noise mask ``[B, 1, T, h or 1, w or 1]``: ``ratios`` on ``frames``, the latent's own mask elsewhere."""
    batch, _, length = shape[:3]
    if latent.get("noise_mask") is None:
        own = torch.ones(batch, 1, length, 1, 1)
    else:
        own = comfy.sampler_helpers.prepare_mask(latent["noise_mask"], shape, "cpu")[:, :1].clone()
    chosen = list(frames)
    own[:, :, chosen] = ratios[chosen].reshape(1, 1, -1, 1, 1).to(own)
    return own
