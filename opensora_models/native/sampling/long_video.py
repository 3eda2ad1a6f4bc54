"""Long video in ComfyUI: segments sampled one after the other, each stored as soon as it is finished."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...sampling.segments import check_overlap, join, make_segments
from ...storage.locks import one_writer
from ...storage.segment_store import ADVICE, SegmentStore
from ...text.segments import conditioning_of_segment
from ..identity import model_identity
from ..memory import check_latents_fit
from ..messages import tell
from .clips import ClipRun, ClipSize, clip_size, latent_for, marked, sample_clip
from .guiders import Conditioning, given_values, with_given_frames
from .reference_inputs import (
    AUTOMATIC,
    FRAME_MASK,
    PlacedClip,
    ReferenceChain,
    check_clip,
    combined_mask,
    method_for,
    place_references,
)

logger = logging.getLogger("opensora")

STORE_FOLDER = "opensora_segments"
OLD_MANIFEST = "manifest.json"
"""A file that only folders of version 0.1 have."""
NEW_SEED, SAME_SEED = "new for every segment", "same for all"
SEED_MODES = (NEW_SEED, SAME_SEED)


@dataclass(frozen=True)
class LongVideo:
    """How a long video is made of segments; ``overlap`` in latent frames."""

    segments: int
    overlap: int
    run: ClipRun
    overlap_strength: float = 0.0
    drift_control: float = 0.0
    seeds: str = NEW_SEED
    method: str = AUTOMATIC
    resume: bool = True


@dataclass(frozen=True)
class Inputs:
    """What the segments are made from."""

    model: ModelPatcher
    positive: Conditioning
    negative: Conditioning
    latent: dict[str, Any]
    chain: ReferenceChain


def check_long_video(
    model: ModelPatcher, latent: dict[str, Any], chain: ReferenceChain | None, segments: int, overlap: int
) -> ClipSize:
    """The size of one segment; refuses, before prompts are encoded, what cannot be made or joined."""
    clip = clip_size(latent, model)
    if segments > 1:
        check_overlap(clip.opensora_version, overlap, clip.latent_frames)
    if chain is not None:
        _check_segments(chain, segments)
    check_clip(model, latent, chain)
    check_latents_fit(latent["samples"].shape, segments)
    return clip


def sample_long_video(inputs: Inputs, video: LongVideo) -> tuple[dict[str, Any], str]:
    """The joined LATENT and a report in sentences."""
    clip = check_long_video(inputs.model, inputs.latent, inputs.chain, video.segments, video.overlap)
    inputs = replace(inputs, latent=latent_for(inputs.latent, inputs.model))
    with _store(inputs, video) as store:
        clips = make_segments(
            video.segments,
            lambda index, before: _segment(inputs, video, clip, index, before),
            store,
            overlap=video.overlap,
            drift_control=video.drift_control,
        )
    joined = join(clips, video.overlap)
    return marked({"samples": joined}, clip.release), _report(video, clip, joined, store)


def _segment(inputs: Inputs, video: LongVideo, clip: ClipSize, index: int, before: Tensor | None) -> Tensor:
    """One segment, with its own prompt, references, seed and the end of the segment before."""
    positive, negative = (conditioning_of_segment(each, index) for each in (inputs.positive, inputs.negative))
    latent = inputs.latent if index == 0 else {"samples": torch.zeros_like(inputs.latent["samples"])}
    method = method_for(inputs.model, clip.opensora_version, video.method)
    placed = place_references(
        inputs.chain, latent, clip, positive, negative, method=method, segment=index, segments=video.segments
    )
    if before is not None:
        placed = _continued(placed, before[:, :, -video.overlap :], method, video.overlap_strength)
    seed = video.run.seed + (index if video.seeds == NEW_SEED else 0)
    run = replace(video.run, seed=seed % 2**64)
    return sample_clip(inputs.model, placed.positive, placed.negative, placed.latent, run)["samples"]


def _continued(placed: PlacedClip, end: Tensor, method: str, strength: float) -> PlacedClip:
    """``placed`` with the end ``[B, C, n, h, w]`` of the segment before as its first frames."""
    overlap = end.shape[2]
    frames = list(range(overlap))
    if method == FRAME_MASK:
        samples = torch.cat([end.to(placed.latent["samples"]), placed.latent["samples"][:, :, overlap:]], dim=2)
        ratios = torch.full((samples.shape[2],), strength)
        mask = combined_mask(placed.latent, samples.shape, ratios, frames)
        return replace(placed, latent={**placed.latent, "samples": samples, "noise_mask": mask})
    known = given_values(placed.positive)
    latent, more = (list(known.values()) or [torch.zeros_like(placed.latent["samples"]), []])[:2]
    latent = latent.clone()
    latent[:, :, :overlap] = end.to(latent)
    given = [with_given_frames(each, latent, sorted({*frames, *more})) for each in (placed.positive, placed.negative)]
    return replace(placed, positive=given[0], negative=given[1])


def _check_segments(chain: ReferenceChain, segments: int) -> None:
    for reference in chain.references:
        if not -1 <= reference.segment < segments:
            raise ValueError(
                f"A reference belongs to segment {reference.segment} but the video has segments 0 to {segments - 1}; "
                f"the nearest good value is {segments - 1} (-1 means the last one)."
            )


@contextmanager
def _store(inputs: Inputs, video: LongVideo) -> Iterator[SegmentStore | None]:
    """The store of this very run, for one process at a time; None where segments are not to be kept."""
    if not video.resume:
        yield None
        return
    interrupted = comfy.model_management.throw_exception_if_processing_interrupted
    found = model_identity(_parts(inputs, video), interrupted)
    if found.unknown:
        tell(
            f"Segments are not stored and none is taken from an earlier run: {found.unknown[0]} has nothing by which "
            "two runs could be compared."
        )
        yield None
        return
    store = Path(folder_paths.get_output_directory()) / STORE_FOLDER
    if any(store.glob(f"*/{OLD_MANIFEST}")):
        logger.info("Segments of version 0.1 in '%s' do not tell what they were made from and are not used.", store)
    folder = store / found.digest[:16]
    with one_writer(folder, waiting=interrupted, tell=tell, kept=ADVICE):
        yield SegmentStore(folder, found.digest)


def _parts(inputs: Inputs, video: LongVideo) -> dict[str, Any]:
    """Everything a segment depends on. The number of segments counts only where a reference waits for the last one."""
    references = inputs.chain.references
    ends = video.segments if any(reference.segment < 0 for reference in references) else None
    return {
        "video": replace(video, segments=0),
        "segments": ends,
        "references": list(references),
        "latent": inputs.latent,
        "positive": inputs.positive,
        "negative": inputs.negative,
        "model": inputs.model,
    }


def _report(video: LongVideo, clip: ClipSize, joined: Tensor, store: SegmentStore | None) -> str:
    """How the video was made. Segments that an earlier run has made are told on the node as well."""
    lines = [
        f"{video.segments} segments of {clip.latent_frames} latent frames, overlapping by {video.overlap}, "
        f"joined to {joined.shape[2]} latent frames."
    ]
    if store is not None:
        place = f"{store.folder.name} below output/{STORE_FOLDER}"
        lines.append(f"Finished segments are kept in {place}.")
        if store.taken:
            numbers = ", ".join(str(index + 1) for index in store.taken)
            taken = f"Made by an earlier run and taken from {place}: segment {numbers} of {video.segments}."
            tell(taken)
            lines.append(taken)
    return " ".join(lines)
