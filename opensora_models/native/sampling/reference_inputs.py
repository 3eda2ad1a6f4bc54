"""From pictures, a VAE and words to references, and from references to LATENT and CONDITIONING."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import comfy.sampler_helpers
import torch
from comfy.model_patcher import ModelPatcher
from comfy.utils import repeat_to_batch_size
from torch import Tensor

from ...releases.groups import SPATIAL_FACTOR
from ...releases.known import RELEASES
from ...releases.release import Release
from ...sampling.fitting import Fit, fit_pictures
from ...sampling.masks import FREE, KEPT, Span, format_strategy, listed, moved, parse_strategy
from ...sampling.placements import EDIT, plan, unused
from ...sampling.references import (
    Placed,
    Reference,
    apply_strategy,
    called,
    check_room_for,
    check_strength,
    lay_out,
    strategy_text,
    without_curves,
)
from ...vae.guards import check_pictures
from ..messages import tell
from .clips import RELEASE_KEY, ClipSize, clip_size, latent_for
from .guiders import GIVEN_FRAMES as GIVEN_NUMBERS
from .guiders import GIVEN_LATENT, GIVEN_PICTURES, Conditioning, given_values, with_given_frames

FRAME_MASK = "frame mask"
GIVEN_FRAMES = "given frames"
AUTOMATIC = "automatic"
METHODS = (AUTOMATIC, FRAME_MASK, GIVEN_FRAMES)
GIVEN_INPUTS = ("x_embedder_cond", "cond_in")
"""Names of a network's input for given frames, 1.3's and 2.0's."""


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
    release = clip.release
    if placing.placement != EDIT:  # refused as a whole where frames have no strength
        check_strength(placing.strength, release)
    counts = tuple(0 if batch is None else batch.shape[0] for batch in pictures)
    pieces = plan(
        placing.placement, (counts[0], counts[1]), clip.latent_frames, clip.version, take=placing.take, at=placing.at
    )
    height, width = _pixels(vae, clip)
    original = release is not None and release.given.original_fit
    references, notes = [], unused(pieces, (counts[0], counts[1]))
    for piece in pieces:
        batch = pictures[piece.source]
        if batch is None:
            continue
        taken = batch[piece.start : piece.start + piece.count]
        check_pictures(taken)
        fitted, note = fit_pictures(taken, height, width, placing.fit, original=original)
        transparency = "The transparency of a reference is not used." if taken.shape[-1] == 4 else None
        notes += [each for each in (note, transparency) if each is not None and each not in notes]
        latent = encoded(vae, fitted)
        target = -latent.shape[1] if piece.target is None else piece.target
        references.append(
            Reference(latent, target, edit_ratio=placing.strength, segment=placing.segment, release=clip.version)
        )
    return references, notes


def _pixels(vae: Any, clip: ClipSize) -> tuple[int, int]:
    """Height and width to encode at; another model's VAE knows how many pixels its latents have."""
    if clip.version is not None:
        return clip.height, clip.width
    factor = vae.spacial_compression_encode()
    return clip.height // SPATIAL_FACTOR * factor, clip.width // SPATIAL_FACTOR * factor


def encoded(vae: Any, pictures: Tensor) -> Tensor:
    """Latents ``[C, t, h, w]`` of one clip ``[N, H, W, 3]``."""
    latent = vae.encode(pictures[..., :3])
    return (latent[0] if latent.ndim == 5 else latent.movedim(0, 1)).float().cpu()


def pictures_of(vae: Any, latent: Tensor) -> Tensor:
    """Pictures ``[N, H, W, 3]`` of one sample's latents ``[1, C, t, h, w]``."""
    return vae.decode(latent).flatten(0, -4)


def latent_references(latent: dict[str, Any], clip: ClipSize, placing: Placing) -> list[Reference]:
    """A LATENT as one reference, every frame of its first sample."""
    check_strength(placing.strength, clip.release)
    samples = latent["samples"]
    if samples.ndim == 5 and samples.shape[0] > 1:
        tell(f"The reference holds a batch of {samples.shape[0]} clips; the first one is used.")
    frames = samples[0] if samples.ndim == 5 else samples.movedim(0, 1)[:, :1]
    release = latent.get(RELEASE_KEY)
    return [
        Reference(
            frames.float().cpu(), placing.at, edit_ratio=placing.strength, segment=placing.segment, release=release
        )
    ]


@dataclass(frozen=True)
class PlacedClip:
    """References in a clip: the LATENT to sample, both CONDITIONINGs, the strategy text, sentences."""

    latent: dict[str, Any]
    positive: Conditioning
    negative: Conditioning
    strategy: str
    notes: tuple[str, ...]
    spans: tuple[Span, ...] = ()


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
        positive, negative: the prompts; empty where none is connected. Frames they are given already stay.
        method: ``frame mask`` writes them into the latent with a noise mask, ``given frames`` (1.3, 2.0) into both
            conditionings; ``automatic`` takes the first for 1.2 and for edited references, else the second.
        strategy: a mask strategy that replaces the references' own places; empty keeps them.
        align: snap both starts to groups of 5 latent frames in 1.2.
        segment, segments: which part of a long video is being made.

    Raises:
        ValueError: anything that does not fit, see ``sampling.references.lay_out``.
    """
    laid = _lay_out(chain, latent, clip, method, strategy, align, segment, segments)
    first = laid.clips[0]
    notes, frames, ratios = (*chain.notes, *first.notes, *laid.notes), first.frames, first.mask
    if not frames:
        return PlacedClip(latent, positive, negative, laid.strategy, notes)
    filled = torch.stack([each.latent for each in laid.clips])
    if laid.method == FRAME_MASK:
        mask = combined_mask(latent, filled.shape, ratios, frames)
        masked = {**latent, "samples": filled, "noise_mask": mask}
        return PlacedClip(masked, positive, negative, laid.strategy, notes, first.spans)
    if not positive or not negative:
        raise ValueError("Given frames travel in the conditioning; connect both positive and negative.")
    given, more = _beside_earlier(positive, filled, first, clip.release)
    more += _under_a_mask(latent, filled.shape, frames)
    positive, negative = (with_given_frames(each, *given) for each in (positive, negative))
    return PlacedClip(latent, positive, negative, laid.strategy, (*notes, *more), first.spans)


def _beside_earlier(
    positive: Conditioning, filled: Tensor, placed: Placed, release: Release | None
) -> tuple[tuple[Tensor, list[int], list[int]], list[str]]:
    """What :func:`.guiders.with_given_frames` takes, frames that the prompt is given already among it, and sentences.

    ``filled`` [B, C, T, h, w] holds the frames that are ``placed``; they win over earlier ones in the same place.
    """
    known, frames, pictures = given_values(positive), list(placed.frames), list(placed.pictures)
    if not known:
        return (filled, frames, pictures), []
    earlier = known[GIVEN_LATENT]
    if earlier.shape[1:] != filled.shape[1:]:
        return (filled, frames, pictures), ["The frames given before are of another size of clip and are not used."]
    stay = [frame for frame in known[GIVEN_NUMBERS] if frame not in frames]
    check_room_for(len(frames) + len(stay), filled.shape[2], release)
    filled = filled.clone()
    filled[:, :, stay] = repeat_to_batch_size(earlier, len(filled))[:, :, stay].to(filled)
    pictures += [frame for frame in known.get(GIVEN_PICTURES, ()) if frame in stay]
    note = [f"Latent frames given before, {listed(stay)}, stay as well."] if stay else []
    return (filled, sorted([*frames, *stay]), sorted(pictures)), note


def _under_a_mask(latent: dict[str, Any], shape: Sequence[int], frames: Sequence[int]) -> list[str]:
    """A sentence on given frames of which the latent's own noise mask keeps something else."""
    if latent.get("noise_mask") is None:
        return []
    own = comfy.sampler_helpers.prepare_mask(latent["noise_mask"], shape, "cpu")[:, :1]
    kept = [frame for frame in frames if bool((own[:, :, frame] < FREE).any())]
    return [
        f"The noise mask of the latent counts for more than what is given: where it keeps, latent frame "
        f"{listed(kept)} stays as it is in the latent."
    ] * bool(kept)


def check_references(
    chain: ReferenceChain,
    latent: dict[str, Any],
    clip: ClipSize,
    *,
    method: str = AUTOMATIC,
    strategy: str = "",
    align: bool = True,
    segments: int = 1,
) -> dict[int, tuple[int, ...]]:
    """Refuse what :func:`place_references` would refuse in any segment, before prompts are encoded.

    Returns the latent frames that are filled, for every segment that has references.
    """
    own = {0} | {reference.segment % segments for reference in chain.references}
    laid = {number: _lay_out(chain, latent, clip, method, strategy, align, number, segments) for number in own}
    return {number: found.clips[0].frames for number, found in laid.items()}


@dataclass(frozen=True)
class _Laid:
    """References laid into every clip of a batch, and the method by which the model learns of them."""

    clips: list[Placed]
    method: str
    strategy: str
    notes: tuple[str, ...]


def _lay_out(
    chain: ReferenceChain, latent: dict[str, Any], clip: ClipSize, method: str, strategy: str, align: bool,
    segment: int, segments: int,
) -> _Laid:  # fmt: skip
    groups = parse_strategy(strategy)
    references = apply_strategy(chain.references, groups) if groups else list(chain.references)
    samples = latent["samples"]
    samples = samples if samples.ndim == 5 else samples.unsqueeze(2)
    release = clip.release
    snap = release.given.align if align and release is not None else None
    clips = [
        lay_out(references, sample, segment=segment, align=snap, segments=segments, release=release)
        for sample in samples
    ]
    edited = any(ratio != KEPT for ratio in clips[0].mask[list(clips[0].frames)].tolist())
    chosen = _method(method, release, edited)
    notes = without_curves(chain.references, groups) + _as_they_are(clips[0], edited and chosen == GIVEN_FRAMES)
    notes += _all_kept(clips[0])
    text = format_strategy(groups) if groups else strategy_text(references, samples.shape[2], snap)
    return _Laid(clips, chosen, text, tuple(notes))


def _all_kept(placed: Placed) -> list[str]:
    """A sentence where references keep every frame of a clip."""
    frames = "the only latent frame" if len(placed.mask) == 1 else f"all {len(placed.mask)} latent frames"
    return [f"The references fill {frames} and leave nothing to make."] * (not placed.mask.any())


def _as_they_are(placed: Placed, unused: bool) -> list[str]:
    """A sentence on strengths that given frames do not have."""
    numbers = sorted({span.reference for span in placed.spans if any(span.ratios)})
    return [
        f"The strength of {called(numbers)} is not used: given frames are shown to the model as they are, "
        "only a frame mask lets them change."
    ] * unused


def strategy_notes(chain: ReferenceChain, clip: ClipSize, strategy: str, align: bool) -> list[str]:
    """A sentence on what a strategy made of the chain needs to be read back, where aligning would move a curve."""
    release, curved = clip.release, {n for n, reference in enumerate(chain.references) if reference.curves}
    if not curved or not align or release is None or release.given.align is None:
        return []
    lengths = [reference.frames for reference in chain.references]
    elsewhere = moved(parse_strategy(strategy), lengths, clip.latent_frames, release.given.align)
    numbers = [number for number in elsewhere if number in curved]
    if not numbers:
        return []
    return [
        f"The strategy says the curve on {called(numbers)} by groups of one strength each, which begin between the "
        f"groups of {release.given.align} latent frames: read it with align off."
    ]


def clip_of(latent: dict[str, Any], chain: ReferenceChain) -> ClipSize:
    """The size of a LATENT; one that does not tell its release is for the one its references were encoded for."""
    found = {reference.release for reference in chain.references}
    if len(found) == 1 and RELEASE_KEY not in latent:
        latent = {**latent, RELEASE_KEY: found.pop()}
    return clip_size(latent)


def check_clip(
    model: ModelPatcher,
    latent: dict[str, Any],
    chain: ReferenceChain | None,
    method: str = AUTOMATIC,
    segments: int = 1,
) -> dict[int, tuple[int, ...]]:
    """Refuse what a run would refuse, before prompts are encoded: a latent or references that do not fit the model.

    Returns what :func:`check_references` does.
    """
    clip, chain = clip_size(latent, model), chain or ReferenceChain()
    method = method_for(model, clip.opensora_version, method)
    return check_references(chain, latent_for(latent, model), clip, method=method, segments=segments)


def method_for(model: ModelPatcher, version: str, method: str) -> str:
    """``automatic`` becomes ``frame mask`` where the model cannot use given frames.

    1.2 has no input for them, and 1.3 text-to-video weights carry zeros in their embedders.
    """
    rules = RELEASES[version].given
    if method != AUTOMATIC:
        return method
    if rules.kind != "input":
        return FRAME_MASK
    inputs = [getattr(model.model.diffusion_model, name, None) for name in GIVEN_INPUTS]
    weights = [tensor for each in inputs if each is not None for tensor in each.state_dict().values()]
    if not rules.frame_mask and not weights:
        raise ValueError("This model has no input for references; load Open-Sora 2.0, or leave the references away.")
    return AUTOMATIC if not rules.frame_mask or any(bool(tensor.any()) for tensor in weights) else FRAME_MASK


def _method(method: str, release: Release | None, edited: bool) -> str:
    """The method that is used. Raises ValueError where the release does not have the one asked for."""
    takes_frames = release is not None and release.given.kind == "input"
    takes_masks = release is None or release.given.frame_mask
    if method == AUTOMATIC:
        return GIVEN_FRAMES if takes_frames and not (edited and takes_masks) else FRAME_MASK
    if method == GIVEN_FRAMES and not takes_frames:
        raise ValueError("Only Open-Sora 1.3 and 2.0 have an input for given frames; use the method frame mask.")
    if method == FRAME_MASK and release is not None and not takes_masks:
        raise ValueError(
            f"{release.title} has one time for all frames, so the method frame mask has no effect it could use; the "
            f"nearest good value is {GIVEN_FRAMES}."
        )
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
