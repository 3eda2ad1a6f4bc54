"""The Gaussian an encoder describes, and how latents are taken from it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

# Limits of the logarithm of the variance (diffusers' DiagonalGaussianDistribution, used by both releases).
LOG_VARIANCE_LIMITS = (-30.0, 20.0)


@dataclass(frozen=True)
class Posterior:
    """Diagonal Gaussian over latents; ``moments`` [B, 2C, ...] holds mean and logarithm of variance."""

    moments: Tensor

    @property
    def mean(self) -> Tensor:
        """The mode [B, C, ...]."""
        return self.moments.chunk(2, dim=1)[0]

    @property
    def log_variance(self) -> Tensor:
        return self.moments.chunk(2, dim=1)[1].clamp(*LOG_VARIANCE_LIMITS)

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.log_variance)

    def draw(self, noise: Tensor) -> Tensor:
        """mean + std · noise for standard normal ``noise`` [B, C, ...]."""
        return self.mean + self.std * noise.to(device=self.moments.device, dtype=self.moments.dtype)


Draw = Callable[[Posterior], Tensor]
"""Takes latents from a posterior."""


def mode(posterior: Posterior) -> Tensor:
    """The mode: the same latents every time."""
    return posterior.mean


def seeded(seed: int) -> Draw:
    """Draws whose noise is made on the CPU in float32, item by item, so that batching does not change it."""
    generator = torch.Generator().manual_seed(seed)

    def draw(posterior: Posterior) -> Tensor:
        batch, *shape = posterior.mean.shape
        noise = torch.stack([torch.randn(shape, generator=generator) for _ in range(batch)])
        return posterior.draw(noise)

    return draw
