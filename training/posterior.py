"""The encoder's Gaussian as training needs it: Kullback-Leibler divergence and likelihood.

Sources: DiagonalGaussianDistribution (opensora/models/vae/utils.py of releases 1.2, 1.3 and 2.0), which in 2.0 sums
over other axes.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..opensora_models.vae.distribution import Posterior

CLIP_AXES = (1, 2, 3, 4)  # one value per clip: 1.2 and 1.3
FRAME_AXES = (1, 3, 4)  # one value per clip and frame: 2.0


@dataclass(frozen=True)
class TrainingPosterior(Posterior):
    """Diagonal Gaussian over latents [B, C, T, h, w].

    ``per_frame`` chooses the reduction of 2.0; ``deterministic`` is a point: no deviation, and divergences of [0].
    """

    per_frame: bool = False
    deterministic: bool = False

    @property
    def std(self) -> Tensor:
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(0.5 * self.log_variance)

    @property
    def variance(self) -> Tensor:
        return torch.zeros_like(self.mean) if self.deterministic else torch.exp(self.log_variance)

    def kl(self, other: Posterior | None = None) -> Tensor:
        """Divergence from ``other`` (None: the standard normal), [B] or with ``per_frame`` [B·T]."""
        if self.deterministic:
            return self.mean.new_zeros(1)
        if other is None:
            terms = self.mean.square() + self.variance - 1.0 - self.log_variance
        else:
            variance = torch.exp(other.log_variance)
            distance = (self.mean - other.mean).square() / variance
            terms = distance + self.variance / variance - 1.0 - self.log_variance + other.log_variance
        return 0.5 * self._summed(terms)

    def nll(self, sample: Tensor) -> Tensor:
        """Negative log likelihood of ``sample`` [B, C, T, h, w], [B] (with ``per_frame`` [B·T])."""
        if self.deterministic:
            return self.mean.new_zeros(1)
        distance = (sample - self.mean).square() / self.variance
        return 0.5 * self._summed(math.log(2.0 * math.pi) + self.log_variance + distance)

    def _summed(self, terms: Tensor) -> Tensor:
        return terms.sum(dim=FRAME_AXES).flatten() if self.per_frame else terms.sum(dim=CLIP_AXES)
