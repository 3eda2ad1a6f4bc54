"""The table of the autoencoders' size functions."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from golden.runner import Row, runs_table
from opensora.opensora_models.releases.groups import Version, latent_size
from opensora.opensora_models.vae.autoencoder import OpenSora12, OpenSora13
from opensora.opensora_models.vae.causal import CausalConfig
from opensora.opensora_models.vae.image import ImageConfig
from opensora.opensora_models.vae.temporal import TemporalConfig


@cache
def _grouped(version: str, group_frames: int | None, overlap: bool) -> OpenSora12 | OpenSora13:
    with torch.device("meta"):
        if version == "1.2":
            return OpenSora12(ImageConfig(widths=(32,) * 4), TemporalConfig(filters=32), group_frames=group_frames)
        return OpenSora13(CausalConfig(width=32), group_frames=group_frames, overlap=overlap)


def _latent_count(version: str, row: dict[str, Any], frames: int) -> int:
    """Latent frames by the groups of our autoencoder; 1.3's recorded rule ignores a group that is not full."""
    model = _grouped(version, row.get("micro_frame_size"), bool(row.get("temporal_overlap")))
    if version == "1.2" or model.group_frames is None or frames == 1:
        return model.latents_of(frames)
    full = [part for part in model.encode_slices(frames) if part.stop - part.start == model.group_frames]
    return sum(model.latents_of(part.stop - part.start) for part in full)


def _rows(version: Version, rows: list[dict[str, Any]]) -> Iterator[Row]:
    """All rows with a known axis; an unknown one is only filled in to make the call."""
    for row in rows:
        known = [size is not None for size in row["input"]]
        if not any(known):
            continue
        frames, height, width = (size or 17 for size in row["input"])
        size = latent_size(version, frames, height, width)
        label = f"{row['input']} in groups of {row.get('micro_frame_size')}"
        ways = [(_latent_count(version, row, frames), *size[1:])]
        if row.get("micro_frame_size") == 17 and row.get("temporal_overlap", True):
            ways.append(size)
        for got in ways:
            yield Row(label, [value if given else None for value, given in zip(got, known, strict=True)], row["latent"])


@runs_table("latent_size", "v1.2")
def latent_size_12(rows: list[dict[str, Any]]) -> Iterator[Row]:
    """v1.2's size function."""
    return _rows("1.2", rows)


@runs_table("latent_size", "v1.3")
def latent_size_13(rows: list[dict[str, Any]]) -> Iterator[Row]:
    """v1.3's size function."""
    return _rows("1.3", rows)
