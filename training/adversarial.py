"""Adversarial losses and what balances them against the reconstruction.

Sources: opensora/models/vae/losses.py of releases 1.2 and 2.0, opensora/models/vae_v1_3/losses.py of release 1.3. R and
K are the logits on real and made clips.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

Kind = Literal["hinge", "vanilla", "wgan-gp", "non-saturating"]
KINDS: tuple[Kind, ...] = ("hinge", "vanilla", "wgan-gp", "non-saturating")

NORM_GUARD = 1e-4  # added to the generator's gradient norm before dividing by it
MAX_WEIGHT = 1e4
DISCRIMINATOR_START = 2001  # steps before the discriminator counts (1.3, 2.0; 1.2: 50001)


def hinge(real: Tensor, made: Tensor) -> Tensor:
    """½(mean max(0, 1 - R) + mean max(0, 1 + K))."""
    return 0.5 * (F.relu(1.0 - real).mean() + F.relu(1.0 + made).mean())


def vanilla(real: Tensor, made: Tensor) -> Tensor:
    """½(mean softplus(-R) + mean softplus(K)); 1.2's "non-saturating" discriminator is the same."""
    return 0.5 * (F.softplus(-real).mean() + F.softplus(made).mean())


def wasserstein(real: Tensor, made: Tensor) -> Tensor:
    """½(mean K - mean R), without a penalty (2.0's "wgan-gp")."""
    return 0.5 * (made.mean() - real.mean())


_DISCRIMINATOR = {"hinge": hinge, "vanilla": vanilla, "wgan-gp": wasserstein, "non-saturating": vanilla}


def sigmoid_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Per element: max(x, 0) - x·y + log(1 + exp(-|x|))."""
    return F.relu(logits) - logits * labels + torch.log1p(torch.exp(-logits.abs()))


def adopt_weight(weight: float, step: int, threshold: int, before: float = 0.0) -> float:
    """``before`` while step < threshold, then ``weight``."""
    return before if step < threshold else weight


def adaptive_weight(reconstruction: Tensor, generator: Tensor, last_layer: Tensor) -> Tensor:
    """How strong the generator term must be for both gradients on ``last_layer`` to have the same norm (Esser et al.
    2021, arXiv 2012.09841); no gradient flows through it."""
    wanted = torch.autograd.grad(reconstruction, last_layer, retain_graph=True)[0].norm()
    given = torch.autograd.grad(generator, last_layer, retain_graph=True)[0].norm()
    return (wanted / (given + NORM_GUARD)).clamp(0.0, MAX_WEIGHT).detach()


def generator_term(made: Tensor, kind: Kind = "hinge") -> Tensor:
    """-mean K; 1.2's "non-saturating" generator is mean softplus(-K)."""
    return F.softplus(-made).mean() if kind == "non-saturating" else -made.mean()


@dataclass(frozen=True)
class GeneratorLoss:
    """The autoencoder's reward for deceiving the discriminator.

    ``factor``: upstream's discriminator factor, 0 switches the term off; ``weight``: its generator weight.
    """

    start: int = DISCRIMINATOR_START
    factor: float = 1.0
    weight: float = 0.5
    kind: Kind = "hinge"

    def __call__(self, made: Tensor, reconstruction: Tensor, last_layer: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """(weighted term, plain term); ``reconstruction`` is the unweighted nll of the batch."""
        plain = generator_term(made, self.kind)
        share = adopt_weight(self.factor, step, self.start)
        if share == 0.0:
            return plain * 0.0, plain
        return self.weight * adaptive_weight(reconstruction, plain, last_layer) * share * plain, plain


@dataclass(frozen=True)
class DiscriminatorLoss:
    """The discriminator's own loss; ``lecam_weight`` adds the LeCam term, which no release switches on."""

    start: int = DISCRIMINATOR_START
    factor: float = 1.0
    kind: Kind = "hinge"
    lecam_weight: float = 0.0

    def __call__(self, real: Tensor, made: Tensor, step: int, means: LogitMeans | None = None) -> tuple[Tensor, Tensor]:
        """(loss, weighted LeCam term), the second already part of nothing: add them."""
        loss = adopt_weight(self.factor, step, self.start) * _DISCRIMINATOR[self.kind](real, made)
        if self.lecam_weight <= 0.0 or means is None:
            return loss, loss.new_zeros(())
        return loss, self.lecam_weight * lecam(real.mean(), made.mean(), means.real, means.made)


class LogitMeans:
    """Running means of the logits for the LeCam term: e ← d·e + (1 - d)·new.

    ``dtype`` is that of the start; as in the original, float32 logits make the means float32.
    """

    def __init__(
        self, decay: float = 0.999, dtype: torch.dtype = torch.bfloat16, *, real: float = 0.0, made: float = 0.0
    ) -> None:
        self.decay = decay
        self.real = torch.tensor(real, dtype=dtype)
        self.made = torch.tensor(made, dtype=dtype)

    def update(self, real: Tensor, made: Tensor) -> None:
        """Take in the mean logits of one step."""
        self.real = self._moved(self.real, real)
        self.made = self._moved(self.made, made)

    def _moved(self, mean: Tensor, new: Tensor) -> Tensor:
        return mean * self.decay + new.detach().to(mean.device) * (1.0 - self.decay)


def lecam(real: Tensor, made: Tensor, mean_real: Tensor, mean_made: Tensor) -> Tensor:
    """Mean relu(R - running K)² + mean relu(running R - K)² (Tseng et al. 2021, arXiv 2104.03310)."""
    return F.relu(real - mean_made).square().mean() + F.relu(mean_real - made).square().mean()


def gradient_penalty(clips: Tensor, logits: Tensor) -> Tensor:
    """Mean over clips of (norm of the gradient of Σ logits - 1)²; ``clips`` must require gradients."""
    gradient = torch.autograd.grad(logits.sum(), clips, create_graph=True)[0]
    return (gradient.flatten(1).norm(dim=1) - 1.0).square().mean()
