"""Refuses what cannot be decoded, in one sentence with the nearest good value, before any work is done."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..releases.groups import LATENT_CHANNELS, VERSIONS, Version, decoded_frames, latent_frames


def check_latents(latents: Tensor, version: Version, channels: int) -> None:
    """ValueError unless ``latents`` is a finite [B, channels, T, h, w]."""
    shape = tuple(latents.shape)
    if latents.ndim != 5:
        raise ValueError(
            f"Open-Sora {version} latents are [batch, {channels}, frames, height, width], these are {list(shape)}; "
            "use latents of an Open-Sora model."
        )
    if shape[1] != channels:
        other = next((v for v in VERSIONS if LATENT_CHANNELS[v] == shape[1] and v != version), None)
        belongs = f" as Open-Sora {other} has them" if other else ""
        raise ValueError(
            f"These latents have {shape[1]} channels{belongs}, the Open-Sora {version} VAE needs {channels}; "
            "load the VAE that belongs to the model."
        )
    if 0 in shape:
        raise ValueError(f"These latents are empty ({list(shape)}); every size must be at least 1.")
    check_numbers(latents)


def check_numbers(latents: Tensor) -> None:
    """ValueError if latents hold values that are not numbers."""
    if not bool(torch.isfinite(latents).all()):
        raise ValueError(
            "These latents hold values that are not numbers (NaN or infinite); sample again with fp32 or bf16."
        )


def check_pixels(frames: Tensor) -> None:
    """ValueError if decoded pixels are not numbers."""
    if not bool(torch.isfinite(frames).all()):
        raise ValueError("Decoding gave values that are not numbers (NaN); load the VAE with dtype fp32 and try again.")


def possible_lengths(version: Version, latents: int) -> list[int]:
    """Every number of frames that encodes to ``latents`` latent frames, ascending; never empty."""
    if version == "1.3":
        return [decoded_frames(version, latents)]
    top = decoded_frames(version, latents) + 3
    return [n for n in range(max(1, top - 20), top + 1) if latent_frames(version, n) == latents] or [top - 3]


def check_num_frames(version: Version, latents: int, num_frames: int) -> None:
    """ValueError unless a clip of ``num_frames`` frames has ``latents`` latent frames."""
    good = possible_lengths(version, latents)
    if num_frames not in good:
        nearest = min(good, key=lambda n: abs(n - num_frames))
        raise ValueError(
            f"{latents} latent frames of Open-Sora {version} decode to {_listed(good)} frames, {num_frames} was asked "
            f"for; the nearest good value is {nearest}."
        )


def _listed(values: Sequence[int]) -> str:
    return str(values[0]) if len(values) == 1 else f"{values[0]} to {values[-1]}"
