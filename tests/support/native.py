"""Loads tiny models into the ComfyUI of this process and samples with them, for tests of the native MODEL."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

CHANNELS = {"1.2": 4, "1.3": 16, "2.0": 16, "2.0 high compression": 128}
FILES = {"2.0 high compression": "random-v2.0-hc"}
CAPTION_CHANNELS = 64
POOLED = 16


def model_file(models: Path, version: str) -> Path:
    """The tiny diffusion model of a release."""
    name = FILES.get(version, f"random-v{version}")
    return models / "diffusion_models" / f"{name}.safetensors"


def load(models: Path, version: str = "1.2", **options: Any) -> Any:
    """A fresh MODEL of the tiny file."""
    from opensora.opensora_models.native.model.loading import load_model

    with torch.inference_mode():
        return load_model(model_file(models, version), **options)


def randn(*shape: int, seed: int = 0) -> Tensor:
    """Seeded normal numbers."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def conditioning(tokens: int = 7, seed: int = 1, rows: int = 1, **extra: Any) -> list[list[Any]]:
    """CONDITIONING of random text states [rows, tokens, 64], with the pooled state that 2.0 reads."""
    pooled = randn(rows, POOLED, seed=seed + 1000)
    return [[randn(rows, tokens, CAPTION_CHANNELS, seed=seed), {"pooled_output": pooled, **extra}]]


def empty(version: str = "1.2", frames: int = 5, height: int = 8, width: int = 10, batch: int = 1) -> Tensor:
    """An empty latent [B, C, T, h, w]."""
    return torch.zeros(batch, CHANNELS[version], frames, height, width)


def sample(
    model: Any,
    latent: Tensor,
    positive: list | None = None,
    negative: list | None = None,
    *,
    noise: Tensor | None = None,
    steps: int = 3,
    cfg: float = 4.0,
    sampler: str = "euler",
    mask: Tensor | None = None,
    sigmas: Tensor | None = None,
    callback: Callable[..., Any] | None = None,
    seed: int = 5,
) -> Tensor:
    """What KSampler does with these inputs; ``sigmas`` replaces the schedule."""
    import comfy.sample
    import comfy.samplers

    positive = conditioning() if positive is None else positive
    negative = conditioning(5, seed=2) if negative is None else negative
    noise = randn(*latent.shape, seed=seed) if noise is None else noise
    with torch.inference_mode():
        if sigmas is not None:
            return comfy.sample.sample_custom(
                model, noise, cfg, comfy.samplers.sampler_object(sampler), sigmas, positive, negative, latent,
                noise_mask=mask, callback=callback, disable_pbar=True, seed=seed,
            )  # fmt: skip
        return comfy.sample.sample(
            model, noise, steps, cfg, sampler, "simple", positive, negative, latent,
            noise_mask=mask, callback=callback, disable_pbar=True, seed=seed,
        )  # fmt: skip


@contextmanager
def spy() -> Iterator[list[dict[str, Any]]]:
    """Collects the arguments of every call of the network proper, of either kind, under their names."""
    from opensora.opensora_models.mmdit.network import MMDiT
    from opensora.opensora_models.stdit3.network import STDiT3

    calls: list[dict[str, Any]] = []
    originals = {STDiT3: STDiT3.forward, MMDiT: MMDiT.forward}

    def watch(network: type, original: Callable[..., Tensor]) -> None:
        def watched(self: Any, x: Tensor, timestep: Tensor, text: Any, *more: Any, **kwargs: Any) -> Tensor:
            calls.append({"x": x, "timestep": timestep, "text": text, "pooled": more[0] if more else None, **kwargs})
            return original(self, x, timestep, text, *more, **kwargs)

        network.forward = watched  # type: ignore[attr-defined]

    for network, original in originals.items():
        watch(network, original)
    try:
        yield calls
    finally:
        for network, original in originals.items():
            network.forward = original  # type: ignore[method-assign]


def relative(got: Tensor, want: Tensor) -> float:
    """Largest difference in units of the largest wanted value."""
    return float((got - want).abs().max() / want.abs().max())
