"""Refuses what cannot be decoded, in one sentence with the nearest good value, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..releases.known import release_named, releases_with, said_release


def check_latents(latents: Tensor, version: str, channels: int) -> None:
    """ValueError unless ``latents`` is a finite [B, channels, T, h, w]; ``version`` is the release of the VAE."""
    shape, title = tuple(latents.shape), release_named(version).title
    if latents.ndim != 5:
        raise ValueError(
            f"{title} latents are [batch, {channels}, frames, height, width], these are {list(shape)}; use latents of "
            "an Open-Sora model."
        )
    if shape[1] != channels:
        raise ValueError(
            f"These latents have {shape[1]} channels{_owners(shape[1])}, the {title} VAE needs {channels}; load the "
            "VAE that belongs to the model."
        )
    if 0 in shape:
        raise ValueError(f"These latents are empty ({list(shape)}); every size must be at least 1.")
    check_numbers(latents)


def _owners(channels: int) -> str:
    """Whose latents have so many channels, as the middle of a sentence."""
    first, *others = [release.title for release in releases_with(channels)] or [""]
    also = f" ({' and '.join(other.removeprefix('Open-Sora ') for other in others)} as well)" if others else ""
    return f" as {first} has them{also}" if first else ""


def otherwise_said(word: object, channels: int, version: str) -> str:
    """A sentence where latents say that they are another release's than the VAE's, and their channels agree; else "".

    ``word``: what their LATENT carries. It is told and not refused: samplers of other programs copy it along, whatever
    the model is.
    """
    said, title = said_release(word, channels), release_named(version).title
    if said is None or said.id == version:
        return ""
    return (
        f"The latents say that they are {said.title}'s and are decoded as {title}'s, the VAE's; if pictures are noise, "
        "load the VAE that belongs to the model that sampled them."
    )


def check_numbers(latents: Tensor) -> None:
    """ValueError if latents hold values that are not numbers."""
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(
            "These latents hold values that are not numbers (NaN or infinite); sample again, with fp32 or bf16 if "
            "weights or sums were fp16 or fp8."
        )


def check_pictures(images: Tensor) -> None:
    """ValueError if pictures to be encoded hold values that are not numbers; found out later it costs a run."""
    if not bool(torch.isfinite(images).all()):
        raise ValueError(
            "The pictures hold values that are not numbers (NaN or infinite); look at the node that made them."
        )


def check_pixels(frames: Tensor) -> None:
    """ValueError if decoded pixels are not numbers."""
    if not bool(torch.isfinite(frames).all()):
        raise ValueError("Decoding gave values that are not numbers (NaN); load the VAE with dtype fp32 and try again.")


def possible_lengths(version: str, latents: int) -> list[int]:
    """Every number of frames that ``latents`` latent frames can be decoded to, ascending; never empty."""
    return release_named(version).latents.lengths.counting.true_lengths(latents)


def check_num_frames(version: str, latents: int, num_frames: int) -> None:
    """ValueError unless a clip of ``num_frames`` frames has ``latents`` latent frames."""
    good = possible_lengths(version, latents)
    if num_frames not in good:
        nearest = min(good, key=lambda n: abs(n - num_frames))
        raise ValueError(
            f"{latents} latent frames of {release_named(version).title} decode to {_listed(good)} frames, {num_frames} "
            f"was asked for; the nearest good value is {nearest}."
        )


def _listed(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
