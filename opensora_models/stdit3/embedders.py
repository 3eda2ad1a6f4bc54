"""From latents, time, frame rate and text states to vectors of the hidden size."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer.positions import sinusoid
from .config import STDiT3Config

SINUSOID_WIDTH = 256
"""Width of the sinusoid of a timestep or frame rate (DiT)."""


class PatchEmbedder(nn.Module):
    """One strided 3-D convolution over patches of 1×2×2 latents."""

    def __init__(self, config: STDiT3Config, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        self.patch = config.patch_size
        self.proj = operations.Conv3d(
            config.in_channels, config.hidden_size, self.patch, stride=self.patch, dtype=dtype, device=device
        )

    def forward(self, x: Tensor) -> Tensor:
        """[B, I, T, Hx, Wx] -> [B, T, S, C]; zeros are added below and to the right of a ragged edge."""
        bottom, right = -x.shape[-2] % self.patch[1], -x.shape[-1] % self.patch[2]
        if bottom or right:
            x = F.pad(x, (0, right, 0, bottom))
        return self.proj(x).flatten(3).permute(0, 2, 3, 1)


class ScalarEmbedder(nn.Module):
    """Sinusoid and a two-layer MLP, for a timestep or a frame rate."""

    def __init__(self, config: STDiT3Config, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        width, place = config.hidden_size, {"dtype": dtype, "device": device}
        self.mlp = nn.Sequential(
            operations.Linear(SINUSOID_WIDTH, width, **place), nn.SiLU(), operations.Linear(width, width, **place)
        )

    def forward(self, values: Tensor, dtype: torch.dtype) -> Tensor:
        """[B] -> [B, C] in ``dtype``; the sinusoid itself is computed in float32."""
        return self.mlp(sinusoid(values, SINUSOID_WIDTH).to(dtype))


class CaptionProjection(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, config: STDiT3Config, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        place = {"dtype": dtype, "device": device}
        self.fc1 = operations.Linear(config.caption_channels, config.hidden_size, **place)
        self.fc2 = operations.Linear(config.hidden_size, config.hidden_size, **place)

    def forward(self, text: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(text), approximate="tanh"))


class CaptionEmbedder(nn.Module):
    """Projects text states; ``y_embedding`` [L, caption channels] is the learned null text, an input like any other."""

    def __init__(self, config: STDiT3Config, operations: Any, dtype: Any, device: Any) -> None:
        super().__init__()
        null = torch.empty(config.model_max_length, config.caption_channels, dtype=dtype, device=device)
        self.register_buffer("y_embedding", null)
        self.y_proj = CaptionProjection(config, operations, dtype, device)

    y_embedding: Tensor

    def forward(self, text: Tensor) -> Tensor:
        """[..., caption channels] -> [..., C]."""
        return self.y_proj(text)
