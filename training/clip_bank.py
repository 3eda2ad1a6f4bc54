"""Many coded clips for the same words, so that a training target can be the mean of all that a noisy clip may become.

Where a clip is nearly pure noise, one random clip of the same words is a poor target: most of what it shows is chance.
The mean over many, each weighted by how well the noisy clip fits it, is the same target without the chance (Stable
Target Field, arXiv 2302.00670). Words and motion, which are decided there, are learned several times faster.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from .latents import LatentCode
from .scenes import BACKGROUNDS, COLOURS, MOTIONS, SHAPES, SceneConfig, place_scene

Words = tuple[str, str, str, str]
"""Colour, shape, motion, background."""
_NUMBERS = (tuple(COLOURS), SHAPES, MOTIONS, tuple(BACKGROUNDS))


class ClipBank:
    """``size`` latents for any words, drawn when first asked for and kept."""

    def __init__(self, code: LatentCode, scenes: SceneConfig, size: int = 64) -> None:
        if scenes.pattern_share or scenes.camera_share:
            raise ValueError("Clips of a bank differ in nothing that a caption may name: no patterns, no cameras.")
        self.code, self.scenes, self.size = code, scenes, size
        self._kept: dict[tuple[Words, int, int, int], Tensor] = {}
        self._at_rest: ClipBank | None = None

    def at_rest(self) -> ClipBank:
        """The same clips, except that nothing turns."""
        if self._at_rest is None:
            self._at_rest = ClipBank(self.code, replace(self.scenes, turn=(0.0, 0.0)), self.size)
        return self._at_rest

    def __call__(self, words: Words, frames: int, height: int, width: int) -> Tensor:
        """Normalised latents bfloat16 [size, C, l, h, w]; always the same for the same arguments."""
        key = (words, frames, height, width)
        if key not in self._kept:
            numbers = [names.index(word) for names, word in zip(_NUMBERS, words, strict=True)]
            rng = np.random.default_rng([*numbers, frames, height, width])
            *moving, background = words
            scenes = [
                replace(
                    place_scene(rng, *moving, frames=frames, aspect=width / height, config=self.scenes),
                    background=background,
                )
                for _ in range(self.size)
            ]  # fmt: skip
            self._kept[key] = self.code.clips(scenes, frames, height, width).bfloat16()
        return self._kept[key]


def expected(x: Tensor, level: Tensor, clips: Tensor) -> Tensor:
    """What ``x`` = (1 - level)·clip + level·noise most likely shows: the mean of ``clips`` given ``x``.

    x [B, C, l, h, w]; level [B] in 0…1; clips [B, K, C, l, h, w], each as likely as the others before x is seen.
    """
    rows = clips.flatten(2)
    kept = (1 - level)[:, None]
    lengths = torch.linalg.vector_norm(rows, dim=2)
    fit = kept * torch.einsum("bd,bkd->bk", x.flatten(1), rows) - 0.5 * (kept * lengths).square()
    weights = (fit / level[:, None].square().clamp(min=1e-8)).softmax(1)
    return torch.einsum("bk,bkd->bd", weights, rows).view(x.shape)
