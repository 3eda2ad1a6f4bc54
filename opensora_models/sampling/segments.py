"""Long video: clips made one after the other, each starting from the end of the one before.

Clips are continued and joined as latents, so nothing is decoded and encoded again between them. Every finished
segment is stored; an interrupted run resumes at the first missing one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from ..releases.groups import GROUP_FRAMES, GROUP_LATENTS, frames_of_groups
from ..releases.known import release_named
from ..releases.lengths import Lengths
from ..storage.beside import beside
from ..storage.identity import fingerprint as fingerprint
from ..storage.segment_store import SegmentStore

logger = logging.getLogger("opensora")

STORING_SECONDS = 1.0
"""How long storing a segment may hold up the next one, whose making a full disk would waste."""


@dataclass(frozen=True)
class Kept:
    """The part of one clip that goes into the joined video: frames ``start`` to ``end`` (exclusive)."""

    clip: int
    start: int
    end: int


def kept_frames(clips: int, length: int, overlap: int) -> list[Kept]:
    """Pixel frames kept of every clip of release 1.2; ``overlap`` is in latent frames, whole groups of 5."""
    return _kept(clips, length, frames_of_groups(overlap))


def kept_latents(clips: int, length: int, overlap: int, group: int = GROUP_LATENTS) -> list[Kept]:
    """Latent frames kept of every clip; the sum is cut down to whole groups, which is what the decoder takes."""
    parts = _kept(clips, length, overlap)
    surplus = sum(part.end - part.start for part in parts) % group
    while surplus and parts:
        last = parts.pop()
        cut = min(surplus, last.end - last.start)
        surplus -= cut
        if last.end - cut > last.start:
            parts.append(Kept(last.clip, last.start, last.end - cut))
    return parts


def _kept(clips: int, length: int, dropped: int) -> list[Kept]:
    parts = [Kept(0, 0, length)] + [Kept(clip, dropped, length) for clip in range(1, clips)]
    return [part for part in parts if part.end > part.start]


def join(clips: list[Tensor], overlap: int, group: int = GROUP_LATENTS) -> Tensor:
    """One latent video ``[B, C, T, h, w]`` of clips that overlap by ``overlap`` latent frames; see ``kept_latents``.

    The overlap of every further clip repeats the end of the one before and is dropped, so no frame comes twice.
    A clip shorter than one group (an image) is returned as it is; the original would leave nothing of it.
    """
    parts = kept_latents(len(clips), clips[0].shape[2], overlap, group)
    if not parts:
        return clips[0]
    return torch.cat([clips[part.clip][:, :, part.start : part.end] for part in parts], dim=2)


def check_overlap(version: str, overlap: int, length: int) -> None:
    """Refuse an overlap that leaves nothing to make or splits the groups of 1.2; ``length`` is a segment's.

    ``version`` is the id of the release.
    """
    release = release_named(version)
    step, lengths = release.given.align or 1, release.latents.lengths
    most = (length - 1) // step * step
    if most < step:
        least = _shortest(lengths, step + 1)
        raise ValueError(
            f"Segments of {length} latent frame{'s' * (length > 1)} are too short to overlap and go on; give the "
            f"latent at least {lengths.counting.frames(least)} frames, which are {least} latent ones and overlap by at "
            f"most {(least - 1) // step * step}, or make 1 segment."
        )
    good = min(max(step, round(overlap / step) * step), most)
    if overlap != good:
        rule = f"by whole groups of {step} latent frames ({GROUP_FRAMES} frames), and " if step > 1 else ""
        raise ValueError(
            f"Segments overlap {rule}by at most {most} of their {length} latent frames; {overlap} was given. The "
            f"nearest good value is {good}."
        )


def _shortest(lengths: Lengths, latents: int) -> int:
    """Latent frames of the shortest good clip that has at least ``latents``."""
    frames = lengths.first
    while lengths.counting.latents(frames) < latents:
        frames += lengths.step
    return lengths.counting.latents(frames)


def keep_statistics(clip: Tensor, first: Tensor, strength: float, overlap: int) -> Tensor:
    """Drift control: pull the new frames of ``clip`` towards the mean and spread of the ``first`` segment.

    Colours and contrast of a video that feeds on its own output wander; per sample and channel the statistics of the
    new frames are moved ``strength`` (0..1) of the way back. The correction grows linearly from nothing at the joint
    to its full strength at the last frame, so the joint stays seamless. Shapes ``[B, C, T, h, w]``.
    """
    fresh = clip.shape[2] - overlap
    if strength <= 0 or fresh < 1:
        return clip
    new = clip[:, :, overlap:]
    mean, spread = _statistics(new)
    wanted_mean, wanted_spread = _statistics(first)
    corrected = (new - mean) / spread.clamp_min(1e-6) * wanted_spread + wanted_mean
    ramp = torch.arange(1, fresh + 1, dtype=clip.dtype, device=clip.device) / fresh * strength
    pulled = torch.lerp(new, corrected, ramp.reshape(1, 1, -1, 1, 1))
    return torch.cat([clip[:, :, :overlap], pulled], dim=2)


def _statistics(latent: Tensor) -> tuple[Tensor, Tensor]:
    dims = (2, 3, 4)
    return latent.mean(dim=dims, keepdim=True), latent.std(dim=dims, keepdim=True)


MakeSegment = Callable[[int, Tensor | None], Tensor]
"""``(number of the segment, the segment before or None) -> latents [B, C, T, h, w]``."""


def make_segments(
    count: int, make: MakeSegment, store: SegmentStore | None, *, overlap: int, drift_control: float = 0.0
) -> list[Tensor]:
    """Make the missing segments of a long video in order; each is stored, on a slow disk while the next is made."""
    clips: list[Tensor] = []
    with beside() as writer:
        for index in range(count):
            clip = store.load(index) if store else None
            if clip is None:
                clip = make(index, clips[-1] if clips else None)
                if clips:
                    clip = keep_statistics(clip, clips[0], drift_control, overlap)
                if store:
                    writer.start(partial(store.save, index, clip), STORING_SECONDS)
            else:
                logger.info("Segment %d was finished earlier and is taken from the store.", index)
            clips.append(clip)
    return clips
