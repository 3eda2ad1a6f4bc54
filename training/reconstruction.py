"""The autoencoder's loss: L1, LPIPS and KL, summed the way each release does it, and small helpers beside it.

Sources: VAELoss of Open-Sora 1.2, 1.3 and 2.0; measure_perplexity, l1, l2 and batch_mean of their losses.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from .lpips import LPIPS
from .posterior import TrainingPosterior

PROBABILITY_GUARD = 1e-10


class Terms(NamedTuple):
    """Scalars of one batch. ``nll`` already contains reconstruction and perceptual part."""

    nll: Tensor
    weighted_nll: Tensor
    kl: Tensor
    reconstruction: Tensor
    perceptual: Tensor


class AutoencoderLoss(nn.Module):
    """Sums, not means: Σ over a frame's elements, averaged over frames; KL per clip (2.0: per latent frame).

    ``logvar`` is upstream's learnable balance; optimisers there never receive it, so it stays where it starts.
    """

    def __init__(self, perceptual_weight: float = 1.0, kl_weight: float = 1e-6, log_variance: float = 0.0) -> None:
        super().__init__()
        self.perceptual_weight = perceptual_weight
        self.kl_weight = kl_weight
        self.logvar = nn.Parameter(torch.tensor(float(log_variance)))
        self.perceptual_loss_fn = LPIPS()

    def forward(
        self,
        video: Tensor,
        again: Tensor,
        posterior: TrainingPosterior | None,
        *,
        nll_weights: Tensor | float = 1.0,
        perceptual: bool = True,
    ) -> Terms:
        """``video`` and its reconstruction ``again`` [B, C, T, H, W] (C 3, or 1 which LPIPS sees as gray).

        ``perceptual`` False leaves LPIPS out, as 1.2 and 1.3 do where its weight is 0; 2.0 always measures it.
        """
        frames, made = (clip.transpose(1, 2).flatten(0, 1) for clip in (video, again))
        count = frames.shape[0]
        error = (frames - made).abs()
        distance = self._distance(frames, made) if perceptual else None
        total = error if distance is None else error + self.perceptual_weight * distance
        nll = total / self.logvar.exp() + self.logvar
        seen = error.new_zeros(()) if distance is None else distance.sum() / count * frames[0].numel()
        return Terms(
            nll=nll.sum() / count,
            weighted_nll=(nll * nll_weights).sum() / count,
            kl=error.new_zeros(()) if posterior is None else self.kl_weight * posterior.kl().mean(),
            reconstruction=error.sum() / count,
            perceptual=seen,
        )

    def _distance(self, frames: Tensor, made: Tensor) -> Tensor:
        if frames.shape[1] == 1:
            frames, made = (picture.expand(-1, 3, -1, -1) for picture in (frames, made))
        return self.perceptual_loss_fn(frames, made)


def perplexity(indices: Tensor, entries: int) -> tuple[Tensor, Tensor]:
    """(exp of the entropy of a codebook's use, number of entries used) for indices in 0 … entries - 1."""
    shares = torch.bincount(indices.flatten(), minlength=entries).float() / indices.numel()
    return torch.exp(-(shares * torch.log(shares + PROBABILITY_GUARD)).sum()), (shares > 0).sum()


def batch_mean(values: Tensor) -> Tensor:
    """Sum of all elements divided by the first dimension."""
    return values.sum() / values.shape[0]
