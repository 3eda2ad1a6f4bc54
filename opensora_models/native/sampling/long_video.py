"""Long video in ComfyUI: segments sampled one after the other, each stored as soon as it is finished."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...messages.quoting import shown_path
from ...releases.release import Release
from ...sampling.given_input import untrained
from ...sampling.masks import KEPT, Span, listed
from ...sampling.segments import check_overlap, join, kept_latents, make_segments
from ...storage.locks import one_writer
from ...storage.segment_store import ADVICE, SegmentStore
from ...text.segments import SEGMENT_KEY, conditioning_of_segment
from ..identity import model_identity, vae_parts
from ..memory import check_latents_fit
from ..messages import tell
from ..previews.sending import showing_segment
from .clips import ClipRun, ClipSize, clip_size, latent_for, marked, sample_clip, vae_release
from .guiders import GIVEN_FRAMES, GIVEN_LATENT, GIVEN_PICTURES, Conditioning, given_values, with_given_frames
from .reference_inputs import (
    AUTOMATIC,
    FRAME_MASK,
    PlacedClip,
    ReferenceChain,
    check_clip,
    combined_mask,
    encoded,
    method_for,
    pictures_of,
    place_references,
)

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
    vae: Any = None
    """Where it is there, frames taken over are decoded and encoded again, so that they begin a clip of their own."""


def check_long_video(
    model: ModelPatcher,
    latent: dict[str, Any],
    chain: ReferenceChain | None,
    segments: int,
    overlap: int,
    method: str = AUTOMATIC,
    vae: Any = None,
) -> ClipSize:
    """The size of one segment; refuses, before prompts are encoded, what cannot be made or joined."""
    clip = clip_size(latent, model)
    if segments > 1:
        check_overlap(clip.opensora_version, overlap, clip.latent_frames)
    chain = chain or ReferenceChain()
    _check_segments(chain, segments)
    _check_vae(vae, clip.known_release)
    for segment, frames in check_clip(model, latent, chain, method, segments).items():
        if segment:
            _check_something_is_made(clip, frames, overlap)
    check_latents_fit(latent["samples"].shape, segments)
    return clip


def sample_long_video(inputs: Inputs, video: LongVideo, about: str = "") -> tuple[dict[str, Any], str]:
    """The joined LATENT and a report in sentences; ``about``: what people know stored segments by."""
    clip = check_long_video(
        inputs.model, inputs.latent, inputs.chain, video.segments, video.overlap, video.method, inputs.vae
    )
    release = clip.known_release
    if video.segments > 1:
        tell(*_overlap_notes(release, inputs, video, clip), *_what_is_cut(release, video, clip))
    tell(*_unused_texts(inputs.positive, video.segments))
    inputs = replace(inputs, latent=latent_for(inputs.latent, inputs.model))
    with _store(inputs, video, about) as store:
        clips = make_segments(
            video.segments,
            lambda index, before: _segment(inputs, video, clip, index, before),
            store,
            overlap=video.overlap,
            drift_control=video.drift_control,
        )
    joined = join(clips, video.overlap, release.latents.lengths.counting.group)
    return marked({"samples": joined}, clip.release), _report(video, clip, joined, store)


def _overlap_notes(release: Release, inputs: Inputs, video: LongVideo, clip: ClipSize) -> list[str]:
    """What of the overlap the release has not been trained with."""
    notes = untrained([Span(0, 0, 0, video.overlap, KEPT)], clip.latent_frames, release)
    counting = release.latents.lengths.counting
    lone = video.overlap == 1 or counting.holding(1, video.overlap) > 0
    if lone and inputs.vae is None and not release.given.anywhere:
        notes.append(
            f"Frames taken over keep their latents, of which the first stands for "
            f"{counting.frames(3) - counting.frames(2)} frames where {release.title} was trained with 1; connect the "
            "VAE to have them encoded anew."
        )
    if video.overlap_strength != KEPT and method_for(inputs.model, release.id, video.method) != FRAME_MASK:
        notes.append(
            f"The overlap strength {video.overlap_strength:g} is not used: frames taken over are given to the model as "
            "they are, only a frame mask lets them change."
        )
    return notes


def _what_is_cut(release: Release, video: LongVideo, clip: ClipSize) -> list[str]:
    """A sentence on latent frames that are made and cut off, so that whole groups are left."""
    group, fresh = release.latents.lengths.counting.group, clip.latent_frames - video.overlap
    made = clip.latent_frames + (video.segments - 1) * fresh
    parts = kept_latents(video.segments, clip.latent_frames, video.overlap, group)
    cut = made - sum(part.end - part.start for part in parts)
    if not parts or not cut:
        return []
    lost = cut // fresh
    vain = "" if not lost else f" The last {'segment is' if lost == 1 else f'{lost} segments are'} made in vain."
    better = "" if clip.latent_frames % group else f" An overlap of {group} or a multiple of it loses none."
    return [
        f"The last {cut} of {made} latent frames are cut off, so that whole groups of {group} are left.{vain}{better}"
    ]


def _unused_texts(conditioning: Conditioning, segments: int) -> list[str]:
    """A sentence on texts for segments that the video does not have."""
    first = {values[SEGMENT_KEY] for _, values in conditioning if SEGMENT_KEY in values}
    late = sorted(number for number in first if number >= segments)
    if not late:
        return []
    texts = f"text from segment {late[0]} on is" if len(late) == 1 else f"texts from segments {listed(late)} on are"
    return [f"The {texts} not used: the video has {segments} segment{'s' * (segments > 1)}, counted from 0."]


def _texts_of(conditioning: Conditioning, segment: int) -> Conditioning:
    """What holds in a segment, as the text of a clip of its own."""
    entries = conditioning_of_segment(conditioning, segment)
    return [[text, {key: each for key, each in values.items() if key != SEGMENT_KEY}] for text, values in entries]


def _segment(inputs: Inputs, video: LongVideo, clip: ClipSize, index: int, before: Tensor | None) -> Tensor:
    """One segment, with its own prompt, references, seed and the end of the segment before."""
    positive, negative = (_texts_of(each, index) for each in (inputs.positive, inputs.negative))
    latent = inputs.latent if index == 0 else {"samples": torch.zeros_like(inputs.latent["samples"])}
    method = method_for(inputs.model, clip.opensora_version, video.method)
    placed = place_references(
        inputs.chain, latent, clip, positive, negative, method=method, segment=index, segments=video.segments
    )
    _tell_places(inputs, placed, clip, index, 0 if before is None else video.overlap)
    if before is not None:
        end = _end_of(before, video.overlap, clip, inputs.vae)
        placed = _continued(placed, end, method, video.overlap_strength, clip.known_release)
    seed = video.run.seed + (index if video.seeds == NEW_SEED else 0)
    run = replace(video.run, seed=seed % 2**64)
    with showing_segment(index, video.segments):
        return sample_clip(inputs.model, placed.positive, placed.negative, placed.latent, run)["samples"]


def _tell_places(inputs: Inputs, placed: PlacedClip, clip: ClipSize, index: int, taken: int) -> None:
    """Say where the references of a segment went, whose first ``taken`` latent frames are those of the one before."""
    # The chain's own sentences come first and have been told by its nodes; what no training did is told of the whole.
    known = untrained(placed.spans, clip.latent_frames, clip.known_release) if taken else []
    places = [sentence for sentence in placed.notes[len(inputs.chain.notes) :] if sentence not in known]
    said = (*places, *_covered(placed, taken))
    tell(*(f"Segment {index}: {sentence}" for sentence in said), level=logging.INFO)


def _covered(placed: PlacedClip, taken: int) -> list[str]:
    """Sentences on references that lie where a segment takes ``taken`` latent frames over from the one before."""
    return [
        f"Reference {span.reference} is covered up to latent frame {min(taken, span.target + span.length) - 1} by what "
        "is taken over from the segment before."
        for span in placed.spans
        if span.target < taken
    ]


def _end_of(before: Tensor, overlap: int, clip: ClipSize, vae: Any) -> Tensor:
    """The last ``overlap`` latent frames of ``before`` [B, C, T, h, w]; with a VAE as the beginning of a clip."""
    if vae is None:
        return before[:, :, -overlap:]
    count = clip.known_release.latents.lengths.counting.frames(overlap)
    rows = [encoded(vae, pictures_of(vae, sample[None])[-count:]) for sample in before]
    return torch.stack(rows).to(before)


def _continued(placed: PlacedClip, end: Tensor, method: str, strength: float, release: Release) -> PlacedClip:
    """``placed`` with the end ``[B, C, n, h, w]`` of the segment before as its first frames."""
    overlap, length = end.shape[2], placed.latent["samples"].shape[2]
    frames = list(range(overlap))
    spans = (Span(0, 0, 0, overlap, KEPT), *(span for span in placed.spans if span.target >= overlap))
    tell(*untrained(spans, length, release))
    if method == FRAME_MASK:
        samples = torch.cat([end.to(placed.latent["samples"]), placed.latent["samples"][:, :, overlap:]], dim=2)
        ratios = torch.full((samples.shape[2],), strength)
        mask = combined_mask(placed.latent, samples.shape, ratios, frames)
        return replace(placed, latent={**placed.latent, "samples": samples, "noise_mask": mask})
    known = given_values(placed.positive)
    more = known.get(GIVEN_FRAMES, [])
    latent = known.get(GIVEN_LATENT, torch.zeros_like(placed.latent["samples"])).clone()
    latent[:, :, :overlap] = end.to(latent)
    pictures = [frame for frame in known.get(GIVEN_PICTURES, []) if frame >= overlap] + [0] * (overlap == 1)
    given = [
        with_given_frames(each, latent, sorted({*frames, *more}), sorted(pictures))
        for each in (placed.positive, placed.negative)
    ]
    return replace(placed, positive=given[0], negative=given[1])


def _check_vae(vae: Any, release: Release) -> None:
    """Refuse a VAE that is known to make latents of another release."""
    other = vae_release(vae)
    if other is not None and other.autoencoder != release.autoencoder:
        raise ValueError(
            f"The VAE is {other.title}'s but the model is {release.title}; connect the VAE of {release.title}, or none."
        )


def _check_segments(chain: ReferenceChain, segments: int) -> None:
    for reference in chain.references:
        if not -1 <= reference.segment < segments:
            raise ValueError(
                f"A reference belongs to segment {reference.segment} but the video has segments 0 to {segments - 1}; "
                f"the nearest good value is {segments - 1} (-1 means the last one)."
            )


def _check_something_is_made(clip: ClipSize, frames: Sequence[int], overlap: int) -> None:
    """Refuse an overlap that with the references of a segment leaves nothing to make, where frames are given whole."""
    rules, length = clip.known_release.given, clip.latent_frames
    free = [frame for frame in range(length) if frame not in frames]
    if not rules.frame_mask and free and free[-1] < overlap:
        best = f"the nearest good value is {free[-1]}" if free[-1] else "give fewer frames of the references"
        raise ValueError(
            f"References and an overlap of {overlap} fill all {length} latent frames of a segment, so nothing is left "
            f"to make; {best}."
        )


@contextmanager
def _store(inputs: Inputs, video: LongVideo, about: str) -> Iterator[SegmentStore | None]:
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
        tell(
            f"Segments of version 0.1 in '{shown_path(store)}' do not tell what they were made from and are not used.",
            level=logging.INFO,
        )
    folder = store / found.digest[:16]
    with one_writer(folder, waiting=interrupted, tell=tell, kept=ADVICE):
        yield SegmentStore(folder, found.digest, about)


def _parts(inputs: Inputs, video: LongVideo) -> dict[str, Any]:
    """Everything a segment depends on. The number of segments counts only where a reference waits for the last one."""
    references = inputs.chain.references
    ends = video.segments if any(reference.segment < 0 for reference in references) else None
    return {
        "video": replace(video, segments=0),
        "segments": ends,
        "references": list(references),
        # The release is the model's, whatever a latent says.
        "latent": marked(inputs.latent, None),
        "positive": inputs.positive,
        "negative": inputs.negative,
        "model": inputs.model,
        "vae": None if inputs.vae is None else vae_parts(inputs.vae),
    }


def _report(video: LongVideo, clip: ClipSize, joined: Tensor, store: SegmentStore | None) -> str:
    """How the video was made. Segments that an earlier run has made are told on the node as well."""
    count, length = video.segments, clip.latent_frames
    how = f"{count} segments of {length} latent frames, overlapping by {video.overlap}, joined to {joined.shape[2]}"
    lines = [f"{how if count > 1 else f'1 segment of {length}'} latent frames."]
    if store is not None:
        place = f"{store.folder.name} below output/{STORE_FOLDER}"
        lines.append(f"Finished segments are kept in {place}.")
        if store.taken:
            numbers = f"segment{'s' * (len(store.taken) > 1)} {listed(sorted(store.taken))}"
            taken = f"Made by an earlier run and taken from {place}: {numbers}, counted from 0, of {count}."
            tell(taken)
            lines.append(taken)
    return " ".join(lines)
