"""Samples from the tiny 2.0 without ComfyUI; see :mod:`.flow_sampling`."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..opensora_models.mmdit.tokens import reference_features
from ..opensora_models.releases.known import release_named
from ..opensora_models.sampling.given_input import write_back
from ..opensora_models.sampling.schedule import TRAIN_TIMESTEPS, timesteps
from .clip_l import PairTokenizer
from .flow_batches import Bucket
from .flow_sampling import SamplingConfig, mixed
from .mmdit_pair import MMDiTPair


@torch.no_grad()
def sample_mmdit(
    pair: MMDiTPair, tokenizer: PairTokenizer, captions: Sequence[str], bucket: Bucket, config: SamplingConfig,
    *, given: Tensor | None = None, indices: tuple[int, ...] = (),
) -> Tensor:  # fmt: skip
    """Normalised latents [B, C, l, h, w] for captions, which end as prompts of 2.0 do.

    ``given`` [B, C, l, h, w] holds the frames ``indices``. Single frames at the ends are written back, clips are not.
    """
    release, count = release_named("2.0"), len(captions)
    shape = release.latent_shape(bucket.frames, bucket.height, bucket.width)
    z = torch.randn((count, *shape), generator=torch.Generator().manual_seed(config.seed))
    words, empty = (pair.read(tokenizer, texts) for texts in (captions, [""] * count))
    # Rows: text and frames, frames alone (only with given frames), nothing.
    rows = [words, empty] if given is None else [words, empty, empty]
    states, pooled = (torch.cat(parts) for parts in zip(*rows, strict=True))
    reference = None
    if given is not None:
        mask = torch.zeros(shape[1])
        mask[list(indices)] = 1.0
        told = reference_features(given, mask)
        reference = torch.cat([told, told, torch.zeros_like(told)])
    times = timesteps(config.steps, release.times.shift(bucket.frames, bucket.height, bucket.width))
    for now, then in zip(times, [*times[1:], torch.zeros(())], strict=True):
        v, _ = pair.velocity_and_tokens(
            z.repeat(len(rows), 1, 1, 1, 1), now.expand(count * len(rows)), states, pooled, bucket, reference
        )
        z = z + mixed(v.chunk(len(rows)), config) * float(now - then) / TRAIN_TIMESTEPS
    if given is not None and set(indices) <= {0, shape[1] - 1}:
        z = write_back(z, given, indices)
    return z
