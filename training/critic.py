"""What judges the autoencoder's pictures beside pixel distance: a discriminator that learns along, and LPIPS."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from .adversarial import DiscriminatorLoss, GeneratorLoss, Kind
from .discriminator import PatchDiscriminator, released_config
from .lpips import LPIPS
from .weights_files import fill, weights_in


@dataclass(frozen=True)
class CriticConfig:
    """A narrow version of 1.3's 3-D discriminator and its loss; released: width 64, weight 0.5, hinge."""

    width: int = 16
    blocks: int = 3
    kind: Kind = "hinge"
    weight: float = 0.1
    rate: float = 2e-4


class Critic(nn.Module):
    """The discriminator with its optimiser and both losses; it counts from its first step."""

    def __init__(self, config: CriticConfig) -> None:
        super().__init__()
        self.discriminator = PatchDiscriminator(released_config("1.3", width=config.width, blocks=config.blocks))
        self.optimiser = torch.optim.Adam(self.discriminator.parameters(), lr=config.rate, betas=(0.5, 0.9))
        self.generator_loss = GeneratorLoss(start=0, weight=config.weight)
        self.discriminator_loss = DiscriminatorLoss(start=0, kind=config.kind)

    def reward(self, made: Tensor, reconstruction: Tensor, last_layer: Tensor, step: int) -> Tensor:
        """The generator's term for clips ``made`` [B, 3, T, H, W], balanced against ``reconstruction``."""
        self.discriminator.requires_grad_(False)
        weighted, _ = self.generator_loss(self.discriminator(made), reconstruction, last_layer, step)
        self.discriminator.requires_grad_(True)
        return weighted

    def learn(self, real: Tensor, made: Tensor, step: int) -> float:
        """One step of the discriminator; returns its loss."""
        loss, _ = self.discriminator_loss(self.discriminator(real), self.discriminator(made.detach()), step)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self.optimiser.step()
        return float(loss.detach())


def load_lpips(path: Path) -> LPIPS:
    """LPIPS with weights from a safetensors file holding ``net.*`` and ``lin*`` under upstream's names; Refused if it
    holds others."""
    network = LPIPS()
    fill(network, weights_in(path), path, own=("scaling_layer.",))
    return network
