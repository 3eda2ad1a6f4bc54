"""What one training step asks of the networks: velocities, what their own words show and a rival's do not, the time."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..opensora_models.sampling.schedule import TRAIN_TIMESTEPS
from .clip_bank import expected
from .flow_batches import Batch
from .mmdit_pair import MMDiTPair
from .pair import Pair
from .text_encoder import Tokenizer

LEAST_APART = 0.5  # squared distance of two clips, of latents whose deviation is about 1


@dataclass(frozen=True)
class Losses:
    """Sums over a batch, so that those of its parts add up: ``velocity`` over the latent frames that count, the others
    over rows. ``mistaken`` needs rivals, ``clock`` more than one frame, ``worded`` rows in twos, ``unrecognised``
    the shapes that rows are told."""

    velocity: Tensor
    mistaken: Tensor | None
    clock: Tensor | None
    worded: Tensor | None
    unrecognised: Tensor | None


def losses_of(pair: Pair | MMDiTPair, tokenizer: Tokenizer, batch: Batch) -> Losses:
    """The losses of a batch or of some of its rows. Clean frames of a frame mask do not count."""
    told = pair.conditions(tokenizer, batch)
    level = (batch.times / TRAIN_TIMESTEPS)[:, None, None, None, None]
    x = (1 - level) * batch.latents + level * batch.noise
    if batch.frame_mask is not None:
        x = torch.where(batch.frame_mask[:, None, :, None, None], x, batch.latents)
    got, tokens = pair.velocity_and_tokens(x, batch.times, bucket=batch.bucket, frame_mask=batch.frame_mask, **told)
    # x0 - noise is (x0 - x) / level; a bank gives the mean of all x0 that x may become.
    bank = batch.latents[:, None] if batch.bank is None else batch.bank
    error = got - (expected(x, level.flatten(), bank) - x) / level
    counted = error.square().mean(dim=(1, 3, 4))
    taken = None if batch.rivals is None else mistaken(error * level, x, level.flatten(), bank, batch.rivals)
    return Losses(
        velocity=(counted if batch.frame_mask is None else counted[batch.frame_mask]).sum(),
        mistaken=None if taken is None else taken.sum(),
        clock=None if batch.bucket.frames == 1 else pair.clock_losses(tokens).sum(),
        worded=worded(got, batch.untold).sum() if batch.decided else None,
        unrecognised=None if batch.shapes is None else pair.shape_losses(tokens, batch.shapes, batch.untold).sum(),
    )


def worded(velocity: Tensor, frame_mask: Tensor) -> Tensor:
    """[B]: mean square of what words change in the noisy frames of rows in twos [B, C, T, h, w], as guidance would
    multiply it."""
    changed = (velocity[0::2] - velocity[1::2]).square().mean(dim=(1, 3, 4)) * frame_mask[0::2]
    return (changed.sum(1) / frame_mask[0::2].sum(1).clamp(min=1)).repeat_interleave(2)


def mistaken(error: Tensor, x: Tensor, level: Tensor, bank: Tensor, rivals: Tensor) -> Tensor:
    """[B]: mean squared share of what sets rivals apart that ``error``, of the clean clip, shows: 0 where ``x`` is read
    as its own words say, 1 where it is read as the rival's. Differences that hardly are any count little."""
    right = expected(x, level, bank)
    apart = torch.stack([expected(x, level, rivals[:, number]) - right for number in range(rivals.shape[1])]).flatten(2)
    shown = (error.flatten(1) * apart).sum(2) / apart.square().sum(2).clamp(min=LEAST_APART)
    return shown.square().mean(0)
