"""The conditions Open-Sora 2.0 was trained with: which latent frames are shown to it beside the noise.

The network sees a mask channel and the given latents (:func:`..mmdit.tokens.reference_features`). Source: upstream
``opensora/utils/sampling.py`` (``prepare_inference_condition``) and ``inference.py`` of release 2.0.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..releases.release import Release
from .masks import KEPT, Span, write_spans

NOTHING = "t2v"
PICTURES: dict[str, tuple[str, ...]] = {
    "i2v_head": ("start",),
    "i2v_tail": ("end",),
    "i2v_loop": ("start", "end"),
}
"""Conditions of single pictures: the first frame of the first reference, the last frame of the last one, or both."""
CLIPS: dict[str, tuple[str, int]] = {
    "v2v_head": ("start", 8),
    "v2v_tail": ("end", 8),
    "v2v_head_easy": ("start", 16),
    "v2v_tail_easy": ("end", 16),
}
"""Conditions of clips: where they stand and how many latent frames they give, one more with a causal autoencoder."""
ALIASES = {"v2v_head_half": "v2v_head", "v2v_tail_half": "v2v_tail"}
"""Names the original documents and does not know."""
CONDITIONS = (NOTHING, *PICTURES, *CLIPS)


def given_latents(kind: str, causal: bool = True) -> int:
    """Latent frames one reference gives in a condition of clips, 1 in one of pictures, 0 in none."""
    kind = _known(kind)
    if kind in CLIPS:
        return CLIPS[kind][1] + causal
    return 0 if kind == NOTHING else 1


def condition_spans(kind: str, lengths: Sequence[int], clip_length: int, *, causal: bool = True) -> list[Span]:
    """Given frames of a clip.

    Args:
        kind: one of :data:`CONDITIONS`.
        lengths: latent frames of each reference; a clip's are those of its own end that is given.
        clip_length: latent frames of the clip; a single picture is made without references.
        causal: whether the autoencoder gives the first frame a latent of its own.

    A reference shorter than the condition gives what it has. Raises ValueError for an unknown condition, or one that
    needs a reference where there is none.
    """
    kind = _known(kind)
    if kind == NOTHING or clip_length == 1:
        return []
    if not lengths:
        raise ValueError(f"The condition {kind} needs a reference, none was given; connect one or use {NOTHING}.")
    last = len(lengths) - 1
    if kind in PICTURES:
        places = {"start": Span(0, 0, 0, 1, KEPT), "end": Span(last, lengths[last] - 1, clip_length - 1, 1, KEPT)}
        return [places[place] for place in PICTURES[kind]]
    reference = 0 if CLIPS[kind][0] == "start" else last
    count = min(given_latents(kind, causal), lengths[reference], clip_length)
    if CLIPS[kind][0] == "start":
        return [Span(reference, 0, 0, count, KEPT)]
    return [Span(reference, lengths[reference] - count, clip_length - count, count, KEPT)]


def lay_in(references: Sequence[Tensor], spans: Sequence[Span], clip: Tensor) -> tuple[Tensor, Tensor]:
    """References [C, t, h, w] in a clip of zeros shaped like ``clip`` [C, T, h, w], and its mask [T], 1 = given."""
    latent, ratios = torch.zeros_like(clip), torch.ones(clip.shape[1])
    write_spans(latent, ratios, [reference.to(clip) for reference in references], spans)
    return latent, (ratios == KEPT).to(clip)


def untrained(spans: Sequence[Span], clip_length: int, release: Release) -> list[str]:
    """What of given frames the release has not been trained with, as sentences; they are still shown to it.

    Trained are pictures at the ends, or one clip of a usual length at one end.
    """
    rules = release.given
    if rules.kind != "input" or rules.anywhere or not spans:
        return []
    said = []
    if any(span.target > 0 and span.target + span.length < clip_length for span in spans):
        said.append("frames given between the ends of a clip")
    clips = [span for span in spans if span.length > 1]
    if clips and len(spans) > 1:
        said.append("a clip together with other references")
    usual = [release.latents.lengths.counting.latents(frames) for frames in rules.takes]
    said += [
        f"a given clip of {span.length} latent frames instead of {_or(usual)}"
        for span in clips
        if span.length not in usual
    ]
    takes = _or(rules.takes)
    return [
        f"An experiment: {release.title} was trained with pictures at the first and the last frame, or with {takes} "
        f"frames of a clip at one end; not with {_or(said)}."
    ] * bool(said)


def _or(items: Iterable[object]) -> str:
    return " or ".join(dict.fromkeys(map(str, items)))


def is_written_back(kind: str) -> bool:
    """Whether the given frames replace the finished ones: pictures do, clips do not."""
    return _known(kind) in PICTURES


def write_back(finished: Tensor, reference: Tensor, frames: Sequence[int]) -> Tensor:
    """``finished`` [B, C, T, h, w] with some latent frames taken from ``reference`` (the same shape, or one row)."""
    if not frames:
        return finished
    written = finished.clone()
    written[:, :, list(frames)] = reference.to(finished)[:, :, list(frames)]
    return written


def _known(kind: str) -> str:
    kind = ALIASES.get(kind, kind)
    if kind not in CONDITIONS:
        raise ValueError(f"There is no condition {kind!r}; use one of {', '.join(CONDITIONS)}.")
    return kind
