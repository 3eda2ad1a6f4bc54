"""Integrates the rectified flow, with frames that are kept, edited from a noise level on, or noised anew.

``x = sigma * noise + (1 - sigma) * clean``; the model returns the clean latents it expects. One step moves ``x`` on
the straight line through that expectation, which is the original's ``z + v * dt``. Source: upstream
``opensora/schedulers/rf/__init__.py`` (``sample``) of releases 1.2 and 1.3.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from .masks import FREE, active_frames
from .noise import NoiseSource

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""``(x [B, C, T, h, w], sigma [B]) -> denoised [B, C, T, h, w]``."""


@dataclass(frozen=True)
class FrameMask:
    """Which parts of the latents may change, and what the others are.

    ``ratios`` are edit ratios broadcastable to ``latent`` (``[B, 1, T, 1, 1]`` for whole frames); ``latent``
    ``[B, C, T, h, w]`` holds the references in the model's own scale, anything where the ratio is 1.
    """

    ratios: Tensor
    latent: Tensor


@dataclass(frozen=True)
class GivenFrames:
    """Frames the network is told about beside ``x`` (release 1.3): ``latent`` ``[B, C, T, h, w]`` and their numbers."""

    latent: Tensor
    frames: tuple[int, ...]


@dataclass(frozen=True)
class Step:
    """One finished step: number, noise level, latents shown to the model, its answer, latents afterwards."""

    index: int
    sigma: Tensor
    x: Tensor
    denoised: Tensor
    after: Tensor
    active: Tensor | None


def rectified_flow(
    denoise: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    *,
    noise: NoiseSource,
    mask: FrameMask | None = None,
    renoise: GivenFrames | None = None,
) -> Iterator[Step]:
    """Walk from ``sigmas[0]`` to ``sigmas[-1]``, one model call per step.

    Args:
        denoise: the guided model.
        x: latents ``[B, C, T, h, w]`` at noise level ``sigmas[0]``, float32.
        sigmas: falling noise levels ``[N + 1]``.
        noise: used where frames join or are noised anew.
        mask: kept and edited frames. A frame with ratio r stays clean while ``sigma > r``; in the step it joins it is
            set to ``(1 - sigma) * clean + sigma * noise``. Kept frames come out bit for bit as they went in.
        renoise: given frames that are replaced by ``(1 - sigma) * clean + sigma * noise`` before every model call
            (upstream ``use_sdedit``).
    """
    joined = None
    if mask is not None:
        joined = _active_at_start(mask, sigmas[0])
        x = torch.where(joined, x, mask.latent)
    for index in range(len(sigmas) - 1):
        sigma, following = sigmas[index], sigmas[index + 1]
        active = None
        if mask is not None and joined is not None:
            active = active_frames(mask.ratios, sigma)
            joins = active & ~joined
            if bool(joins.any()):
                x = torch.where(joins, noised(x, noise.joining(index, float(sigma)), sigma), x)
            joined = active | joined
        if renoise is not None:
            x = _renoised(x, renoise, noise.renoising(index, float(sigma)), sigma)
        denoised = denoise(x, sigma * x.new_ones(x.shape[0]))
        after = denoised + (x - denoised) * (following / sigma)
        if active is not None:
            after = torch.where(active, after, x)
        yield Step(index, sigma, x, denoised, after, active)
        x = after


def noised(clean: Tensor, noise: Tensor, sigma: Tensor | float) -> Tensor:
    """``clean`` brought to noise level ``sigma``."""
    return (1.0 - sigma) * clean + sigma * noise


def _active_at_start(mask: FrameMask, sigma: Tensor) -> Tensor:
    """Frames whose ``x`` already carries the noise of the first level: free ones, and those past their ratio."""
    return (mask.ratios >= FREE) | active_frames(mask.ratios, sigma)


def _renoised(x: Tensor, given: GivenFrames, noise: Tensor, sigma: Tensor) -> Tensor:
    replaced = x.clone()
    frames = list(given.frames)
    replaced[:, :, frames] = noised(given.latent[:, :, frames], noise[:, :, frames], sigma).to(x)
    return replaced
