"""The released clips that GPUs are measured with: networks of random weights, inputs, operations, and what to reach."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))  # the folder of the benchmarks stays
from support.pack import load_pack

load_pack()
from opensora.opensora_models.mmdit.config import RELEASED as MMDIT  # noqa: E402
from opensora.opensora_models.mmdit.network import MMDiT  # noqa: E402
from opensora.opensora_models.mmdit.tokens import reference_features  # noqa: E402
from opensora.opensora_models.releases.known import RELEASES  # noqa: E402
from opensora.opensora_models.stdit3.config import XL_V12, XL_V13  # noqa: E402
from opensora.opensora_models.stdit3.network import STDiT3  # noqa: E402

ACHIEVABLE = 790e12
"""bfloat16 operations per second an H100 SXM or H200 reaches in large matrix products."""
SMALL_STDIT3 = {"hidden_size": 96, "depth": 2, "num_heads": 2, "caption_channels": 64}
SMALL_MMDIT = {
    **{"hidden_size": 96, "num_heads": 2, "depth": 1, "depth_single_blocks": 1, "axes_dim": (8, 20, 20)},
    **{"context_in_dim": 64, "vec_in_dim": 32},
}
CONFIGS: dict[str, Any] = {"1.2": XL_V12, "1.3": XL_V13, "2.0": MMDIT}


@dataclass(frozen=True)
class Clip:
    """A released clip. ``target``: seconds of its sampling to be reached on an H100 or H200, if there are any."""

    name: str
    release: str
    latents: tuple[int, int, int]
    rows: int
    """Rows of a released run that count."""
    steps: int
    target: float | None = None
    small: bool = False

    @property
    def config(self) -> Any:
        """The network's numbers."""
        config = CONFIGS[self.release]
        if not self.small:
            return config
        return replace(config, **(SMALL_MMDIT if config is MMDIT else SMALL_STDIT3))

    @property
    def text_tokens(self) -> int:
        """Tokens of a full prompt."""
        return 8 if self.small else RELEASES[self.release].text.limit

    @property
    def operations(self) -> float | None:
        """Operations of one row; None in a dry run, whose networks are none of the released ones."""
        if self.small:
            return None
        return RELEASES[self.release].operations(self.latents, RELEASES[self.release].text.limit)

    def shrunk(self) -> Clip:
        """The same for a dry run: narrow, short and small."""
        return replace(self, latents=(5, 4, 6), small=True)


CLIPS = {
    clip.name: clip
    for clip in (
        Clip("2.0 256px 129 frames", "2.0", (33, 24, 42), 80, 50, 30.0),
        Clip("1.3 720p 113 frames", "1.3", (35, 90, 160), 50, 30, 65.0),
        Clip("1.2 720p 51 frames", "1.2", (15, 90, 160), 60, 30, 30.0),
        Clip("1.2 480p 51 frames", "1.2", (15, 60, 106), 60, 30, 12.0),
        Clip("2.0 768px 129 frames", "2.0", (33, 72, 128), 80, 50, 850.0),
    )
}


class Networks:
    """Networks by release, made when they are first asked for; one at a time where the card is small."""

    def __init__(self, device: torch.device, dtype: torch.dtype, keep: bool) -> None:
        self.device, self.dtype, self.keep = device, dtype, keep
        self._made: dict[Any, nn.Module] = {}

    def of(self, clip: Clip, **options: Any) -> nn.Module:
        """The network of a clip, with seeded random weights."""
        key = (clip.release, clip.small)
        if key not in self._made:
            if not self.keep:
                self._made.clear()
            torch.manual_seed(0)
            kind = MMDiT if clip.config.__class__.__name__ == "MMDiTConfig" else STDiT3
            network = kind(clip.config, dtype=self.dtype, device=self.device).eval().requires_grad_(False)
            for name, value in network.state_dict().items():
                if name != "rope.freqs":
                    spread = 0.1 if value.ndim < 2 else value[0].numel() ** -0.5
                    value.normal_(float("_norm" in name and kind is MMDiT), spread)
            self._made[key] = network
        return self._made[key]

    def clear(self) -> None:
        """Give the memory back."""
        self._made.clear()


def bytes_of(network: nn.Module) -> int:
    """Bytes of its weights."""
    return sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())


def call_of(
    clip: Clip, network: nn.Module, rows: int, device: torch.device, dtype: torch.dtype
) -> Callable[..., Tensor]:
    """One call of the network on seeded inputs of ``rows`` rows; keywords go to the network as well."""
    generator = torch.Generator().manual_seed(1)
    config, tokens = clip.config, clip.text_tokens

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(device, dtype)

    if isinstance(network, MMDiT):
        x = random(rows, config.channels, *clip.latents)
        given = torch.zeros(rows, clip.latents[0], device=device)
        inputs: dict[str, Any] = {
            "x": x,
            "time": torch.full((rows,), 0.6, device=device),
            "text": random(rows, tokens, config.context_in_dim),
            "pooled": random(rows, config.vec_in_dim),
            "reference": reference_features(torch.zeros_like(x), given),
        }
    else:
        inputs = {
            "x": random(rows, config.in_channels, *clip.latents),
            "timestep": torch.full((rows,), 600.0, device=device),
            "text": [random(tokens, config.caption_channels) for _ in range(rows)],
            "fps": torch.full((rows,), 24.0, device=device),
            "height": clip.latents[1] * 8,
            "width": clip.latents[2] * 8,
        }
    return lambda run=network, **more: run(**inputs, **more)
