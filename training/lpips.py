"""LPIPS: a distance between pictures that follows the eye, measured in the features of a VGG16 (arXiv 1801.03924).

The structure only: real weights are ImageNet's VGG16 and the public LPIPS linear layers; ``load_state_dict`` takes
both under upstream's keys. Source: opensora/models/vae/lpips.py of release 2.0.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

# Channels of the 3×3 convolutions of each slice; a slice ends after its last ReLU and the next starts with pooling.
SLICES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
SHIFT = (-0.030, -0.088, -0.188)  # ImageNet's mean and deviation for pictures in [-1, 1]
SCALE = (0.458, 0.448, 0.450)
LENGTH_GUARD = 1e-10


class _Scaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.tensor(SHIFT)[None, :, None, None])
        self.register_buffer("scale", torch.tensor(SCALE)[None, :, None, None])

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.shift) / self.scale


def _slices() -> nn.Module:
    """VGG16's convolutions named ``slice{1…5}.{index in torchvision's list}``."""
    net = nn.Module()
    index, channels = 0, 3
    for number, widths in enumerate(SLICES, start=1):
        part = nn.Sequential()
        if number > 1:
            part.add_module(str(index), nn.MaxPool2d(2, 2))
            index += 1
        for width in widths:
            part.add_module(str(index), nn.Conv2d(channels, width, 3, padding=1))
            part.add_module(str(index + 1), nn.ReLU())
            index, channels = index + 2, width
        net.add_module(f"slice{number}", part)
    return net


class _Linear(nn.Module):
    """Weighs squared feature differences: dropout (for training LPIPS itself) and a 1×1 convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Dropout(), nn.Conv2d(channels, 1, 1, bias=False))

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)


class LPIPS(nn.Module):
    """Pictures a, b [N, 3, H, W] in [-1, 1], sides of at least 16, to distances [N, 1, 1, 1]. Frozen, evaluation."""

    def __init__(self) -> None:
        super().__init__()
        self.scaling_layer = _Scaling()
        self.net = _slices()
        for number, widths in enumerate(SLICES):
            self.add_module(f"lin{number}", _Linear(widths[-1]))
        self.eval().requires_grad_(False)

    def layers(self, a: Tensor, b: Tensor) -> list[Tensor]:
        """The five terms of the sum, each [N, 1, 1, 1]."""
        a, b = self.scaling_layer(a), self.scaling_layer(b)
        terms = []
        for number in range(len(SLICES)):
            part = getattr(self.net, f"slice{number + 1}")
            a, b = part(a), part(b)
            difference = (_unit_length(a) - _unit_length(b)).square()
            terms.append(getattr(self, f"lin{number}")(difference).mean(dim=(2, 3), keepdim=True))
        return terms

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return torch.stack(self.layers(a, b)).sum(dim=0)

    def train(self, mode: bool = True) -> LPIPS:
        """Always in evaluation: it judges, it does not learn."""
        return super().train(False)


def _unit_length(features: Tensor) -> Tensor:
    return features / (features.square().sum(dim=1, keepdim=True).sqrt() + LENGTH_GUARD)
