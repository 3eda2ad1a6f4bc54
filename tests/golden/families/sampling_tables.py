"""Schedule, masks, references, guidance and joins of ``timesteps.json`` and ``utils.json``."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor

from golden.runner import Row, runs_table
from opensora.opensora_models.releases.time_shift import shift_for
from opensora.opensora_models.sampling import guidance, masks, references, schedule, segments

REFUSED = "refused"
VERSIONS = ("v1.2", "v1.3")
PREVIOUS_CLIP_LABEL = 100
"""The tables write 100 + k for frame k of the clip made before."""


def outcome(call: Callable[[], Any]) -> Any:
    """What a rule returns, or that it refuses its input (the tables only say that the original raised)."""
    try:
        return call()
    except ValueError:
        return REFUSED


def wanted(row: dict[str, Any]) -> Any:
    """The recorded result in the same form as :func:`outcome`."""
    return row.get("out", REFUSED)


def labelled(frames: int, base: int) -> Tensor:
    """A one-channel, one-pixel reference whose frames carry the numbers ``base``, ``base + 1``, …"""
    return torch.arange(base, base + frames, dtype=torch.float32).reshape(1, -1, 1, 1)


def strategy_result(arguments: list[Any]) -> dict[str, Any]:
    """``apply_mask_strategy``: frame labels per row (-1 = untouched) and the mask."""
    clip_length, reference_lengths, strategies, loop, align = arguments
    frames, mask = [], []
    for lengths, text in zip(reference_lengths, strategies, strict=True):
        latent, ratios = torch.full((1, clip_length, 1, 1), -1.0), torch.ones(clip_length)
        spans = masks.place(masks.parse_strategy(text), lengths, clip_length, loop, align)
        labels = [labelled(length, 1000 * number) for number, length in enumerate(lengths)]
        masks.write_spans(latent, ratios, labels, spans)
        frames.append(latent.flatten().int().tolist())
        mask.append([round(value, 6) for value in ratios.tolist()])
    return {"frames": frames, "mask": mask or None}


def given_result(spans: list[masks.Span], labels: list[Tensor], clip_length: int) -> dict[str, Any]:
    """Reference labels per frame (0 = empty) and the numbers of the given frames."""
    latent, mask = torch.zeros(1, clip_length, 1, 1), torch.ones(clip_length)
    masks.write_spans(latent, mask, labels, spans)
    given = [frame for frame, ratio in enumerate(mask.tolist()) if ratio == masks.KEPT]
    return {"ref_frames": [latent.flatten().int().tolist()], "mask_index": given}


def first_clip(arguments: list[Any]) -> dict[str, Any]:
    """``prep_ref_and_mask``, which may have references of several prompts; the shortest decides how many frames."""
    kind, most, rows, clip_length, loops = arguments
    if kind == "v2v_head":
        most = min(most, *(lengths[0] for lengths in rows))
    results = []
    for lengths in rows or [[]]:
        spans = references.given_spans(kind, lengths, clip_length, most, close=loops <= 1)
        labels = [labelled(length, 1000 * (number + 1)) for number, length in enumerate(lengths)]
        results.append(given_result(spans, labels, clip_length))
    return {**results[0], "ref_frames": [frames for result in results for frames in result["ref_frames"]]}


def further_clip(arguments: list[Any]) -> dict[str, Any]:
    """``prep_ref_and_update_mask_in_loop``. The original closes a loop in every clip, we do in the last one only."""
    kind, most, rows, clip_length, is_last = arguments
    close = is_last or kind == "i2v_loop"
    results = []
    for lengths in rows:
        spans = references.continued_spans(kind, lengths, clip_length, clip_length, most, close=close)
        labels = [labelled(length, 1000 * (number + 1)) for number, length in enumerate(lengths)]
        results.append(given_result(spans, [*labels, labelled(clip_length, PREVIOUS_CLIP_LABEL)], clip_length))
    return {**results[0], "ref_frames": [frames for result in results for frames in result["ref_frames"]]}


def joined(kept: list[segments.Kept]) -> dict[str, Any]:
    """``loop_stitch``."""
    parts = [list(astuple(part)) for part in kept]
    return {"segments": parts, "total": sum(end - start for _, start, end in parts)}


def generated(arguments: list[Any]) -> dict[str, Any]:
    """``append_generated``."""
    strategies, counts, loop, frames, edit_ratio = arguments
    texts = [
        references.append_generated(text, count, loop, frames, edit_ratio)
        for text, count in zip(strategies, counts, strict=True)
    ]
    return {"mask_strategy": texts, "num_refs": [count + 1 for count in counts]}


for version in VERSIONS:

    @runs_table("timesteps", version)
    def _(rows: list[dict[str, Any]], version: str = version) -> Iterator[Row]:
        """Clips too short to count are 0/0 in the original; they count as one frame here, which must be finite."""
        for row in rows:
            dtype = getattr(torch, row.get("args_dtype") or "float32")
            settings = {name: row[name] for name in ("transform_scale", "scale_temporal") if row.get(name) is not None}
            size = (row["height"], row["width"], row["num_frames"])
            shift = shift_for(version[1:], *size, **settings, dtype=dtype)
            got = schedule.timesteps(row["steps"], shift, discrete=bool(row.get("discrete")), dtype=dtype).tolist()
            label = f"{size} in {dtype}"
            if any(time is None or math.isnan(time) for time in row["timesteps"]):
                yield Row(label, all(math.isfinite(time) for time in got), True)
                continue
            yield Row(label, got, row["timesteps"], 1e-3 if dtype == torch.float32 else 0.05)

    @runs_table("utils", version, "parse_mask_strategy")
    def _(rows: list[dict[str, Any]]) -> Iterator[Row]:
        for row in rows:
            got = outcome(lambda text=row["in"]: [list(astuple(group)) for group in masks.parse_strategy(text)])
            yield Row(repr(row["in"]), got, wanted(row))
            if got != REFUSED:
                text = masks.format_strategy(masks.parse_strategy(row["in"]))
                yield Row(f"{text} read back", [list(astuple(g)) for g in masks.parse_strategy(text)], wanted(row))

    @runs_table("utils", version, "find_nearest_point")
    def _(rows: list[dict[str, Any]]) -> Iterator[Row]:
        for row in rows:
            start, align, length = row["in"]
            yield Row(str(row["in"]), masks.snap_to_group(start, length, align), row["out"])

    @runs_table("utils", version, "apply_mask_strategy")
    def _(rows: list[dict[str, Any]]) -> Iterator[Row]:
        for row in rows:
            yield Row(str(row["in"]), outcome(lambda given=row["in"]: strategy_result(given)), wanted(row))

    @runs_table("utils", version, "append_generated")
    def _(rows: list[dict[str, Any]]) -> Iterator[Row]:
        for row in rows:
            yield Row(str(row["in"]), generated(row["in"]), row["out"])

    @runs_table("utils", version, "prepare_multi_resolution_info")
    def _(rows: list[dict[str, Any]]) -> Iterator[Row]:
        for row in rows:
            (height, width), frames, fps, dtype = row["in"]
            got = schedule.size_conditioning(height, width, frames, fps, getattr(torch, dtype))
            for name, values in row["out"].items():
                yield Row(f"{row['in']} {name}", [got[name]], values, 1e-6)


@runs_table("utils", "v1.2", "loop_stitch")
def _(rows: list[dict[str, Any]]) -> Iterator[Row]:
    for row in rows:
        yield Row(str(row["in"]), outcome(lambda given=row["in"]: joined(segments.kept_frames(*given))), wanted(row))


@runs_table("utils", "v1.3", "loop_stitch")
def _(rows: list[dict[str, Any]]) -> Iterator[Row]:
    for row in rows:
        yield Row(str(row["in"]), joined(segments.kept_latents(*row["in"])), wanted(row))


@runs_table("utils", "v1.3", "prep_ref_and_mask")
def _(rows: list[dict[str, Any]]) -> Iterator[Row]:
    for row in rows:
        yield Row(str(row["in"]), outcome(lambda given=row["in"]: first_clip(given)), wanted(row))


@runs_table("utils", "v1.3", "prep_ref_and_update_mask_in_loop")
def _(rows: list[dict[str, Any]]) -> Iterator[Row]:
    for row in rows:
        yield Row(str(row["in"]), outcome(lambda given=row["in"]: further_clip(given)), wanted(row))


@runs_table("utils", "v1.3", "get_oscillation_gs")
def _(rows: list[dict[str, Any]]) -> Iterator[Row]:
    for row in rows:
        yield Row(str(row["in"]), guidance.oscillating(*row["in"]), row["out"])


@runs_table("utils", "v1.3", "image_weight")
def _(rows: list[dict[str, Any]]) -> Iterator[Row]:
    for row in rows:
        yield Row(str(row["in"]), list(guidance.image_weights(*row["in"])), row["out"], 1e-5)
