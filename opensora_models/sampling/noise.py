"""Where the noise of a step comes from: drawn from the seed, or injected to repeat a recorded run."""

from __future__ import annotations

import zlib
from typing import Protocol

import torch
from torch import Tensor


class NoiseSource(Protocol):
    """Noise used after the start of a run."""

    def joining(self, step: int, sigma: float) -> Tensor:
        """Noise ``[B, C, T, h, w]`` for frames that start to be remade in this step."""

    def renoising(self, step: int, sigma: float) -> Tensor:
        """Noise ``[B, C, T, h, w]`` for given frames that are noised anew in every step."""


class SeededNoise:
    """The noise of an ordinary run.

    A joining frame takes its own part of the initial noise: until it joins the network has only seen it clean, so
    that part is still unused, and core's euler moves such a frame in exactly the same way. Re-noising needs new draws
    each step; they come from a CPU generator that depends on the seed, the noise level and the sample's own initial
    noise. So a sample's result depends neither on its neighbours in the batch nor on the step a run resumed at.
    """

    def __init__(self, seed: int, initial: Tensor) -> None:
        self._seed = seed
        self._initial = initial
        self._has_initial = bool(initial.any())

    def joining(self, step: int, sigma: float) -> Tensor:
        """See :class:`NoiseSource`. A run that starts without noise of its own (a second stage) draws some."""
        return self._initial if self._has_initial else self.renoising(step, sigma)

    def renoising(self, step: int, sigma: float) -> Tensor:
        """See :class:`NoiseSource`."""
        draws = [self._draw(sample, index, sigma) for index, sample in enumerate(self._initial)]
        return torch.stack(draws).to(self._initial)

    def _draw(self, sample: Tensor, index: int, sigma: float) -> Tensor:
        own = sample.flatten()[:256].float().cpu().numpy().tobytes() if self._has_initial else str(index).encode()
        key = zlib.crc32(f"{self._seed} {sigma:.6f}".encode(), zlib.crc32(own))
        generator = torch.Generator().manual_seed(key ^ (self._seed & 0xFFFFFFFF) << 32)
        return torch.randn(sample.shape, generator=generator)


class RecordedNoise:
    """Injected noise ``[steps, B, C, T, h, w]``, one entry per step."""

    def __init__(self, noise: Tensor) -> None:
        self._noise = noise

    def joining(self, step: int, sigma: float) -> Tensor:
        """See :class:`NoiseSource`."""
        return self._noise[step]

    def renoising(self, step: int, sigma: float) -> Tensor:
        """See :class:`NoiseSource`."""
        return self._noise[step]
