"""Samples from a trained pair with the released settings, without ComfyUI: for looks and numbers during training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..opensora_models.releases.groups import latent_frames
from ..opensora_models.releases.time_shift import shift_for
from ..opensora_models.sampling.schedule import TRAIN_TIMESTEPS, timesteps
from ..opensora_models.stdit3.conditions import GivenFrames
from .flow_batches import Bucket
from .pair import Pair, padded
from .text_encoder import Tokenizer


@dataclass(frozen=True)
class SamplingConfig:
    """Released settings of v1.3, except that guidance stays the same in every step."""

    steps: int = 30
    guidance: float = 5.0
    image_guidance: float = 2.0
    seed: int = 0


@torch.no_grad()
def sample(
    pair: Pair, tokenizer: Tokenizer, captions: Sequence[str], bucket: Bucket, config: SamplingConfig,
    *, given: Tensor | None = None, indices: tuple[int, ...] = (),
) -> Tensor:  # fmt: skip
    """Normalised latents [B, C, l, h, w] for captions. ``given`` [B, C, l, h, w] holds the frames ``indices``; 1.3 is
    told them, 1.2 keeps them."""
    count, channels = len(captions), pair.network.config.in_channels
    version = pair.network.config.version
    shape = (count, channels, latent_frames(version, bucket.frames), bucket.height // 8, bucket.width // 8)
    z = torch.randn(shape, generator=torch.Generator().manual_seed(config.seed))
    ids, kept = padded(tokenizer, captions)
    yes = torch.ones(count, dtype=torch.bool)
    words, null = (pair.states(ids, kept, yes if has_text else ~yes) for has_text in (True, False))
    told = given is not None and pair.network.config.takes_given_frames
    # Rows: text and frames, frames alone (only with told frames), nothing.
    rows = [words, null, null] if told else [words, null]
    states, keeps = torch.cat(rows), kept.repeat(len(rows), 1)
    frames = _given_rows(pair, given, indices, ids.shape[1]) if told else None
    noisy = None
    if given is not None and not told:
        noisy = torch.ones(count, shape[2], dtype=torch.bool)
        noisy[:, list(indices)] = False
        z = _kept(given, z, noisy)
    frame_mask = None if noisy is None else noisy.repeat(len(rows), 1)
    times = timesteps(config.steps, shift_for(version, bucket.height, bucket.width, bucket.frames))
    for now, then in zip(times, [*times[1:], torch.zeros(())], strict=True):
        time = now.expand(count * len(rows))
        v = pair.velocity(z.repeat(len(rows), 1, 1, 1, 1), time, states, keeps, bucket, frames, frame_mask)
        z = z + mixed(v.chunk(len(rows)), config) * float(now - then) / TRAIN_TIMESTEPS
        if noisy is not None:
            z = _kept(given, z, noisy)
    return z


def _kept(given: Tensor, z: Tensor, noisy: Tensor) -> Tensor:
    """``z`` with the clean frames of ``noisy`` [B, T] from ``given``."""
    return torch.where(noisy[:, None, :, None, None], z, given)


def mixed(rows: Sequence[Tensor], config: SamplingConfig) -> Tensor:
    """Guidance over rows with text and frames, frames alone if there are any, and nothing."""
    if len(rows) == 2:
        words, nothing = rows
        return nothing + config.guidance * (words - nothing)
    words, frames, nothing = rows
    return nothing + config.image_guidance * (frames - nothing) + config.guidance * (words - frames)


def _given_rows(pair: Pair, given: Tensor, indices: tuple[int, ...], text_length: int) -> GivenFrames:
    mask = torch.zeros_like(given)
    mask[:, :, list(indices)] = 1.0
    latents = torch.cat([given * mask, given * mask, torch.zeros_like(given)])
    null = pair.network.y_embedder.y_embedding[:text_length].expand(len(latents), -1, -1)
    return GivenFrames(latents, mask.repeat(3, 1, 1, 1, 1), indices, null)
