"""What one training step of the diffusion model sees: clean latents, words, and which frames are told beforehand."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from ..opensora_models.frames import GROUP_FRAMES, GROUP_STEP, Version
from ..opensora_models.sampling.schedule import IMAGE_FPS, TRAIN_TIMESTEPS, shift_for, shift_time
from .captions import caption
from .latents import LatentCode
from .scenes import SceneConfig, draw_scene

VIDEO_FPS = 24.0
# Odd on purpose: no sequence of latent tokens has this length, so a masked attention call is told by its keys.
TEXT_LENGTH = 33


@dataclass(frozen=True)
class Bucket:
    """Clips of one size, ``batch`` at a time; the shares of all steps before and after ``BatchConfig.early_steps``."""

    frames: int
    height: int
    width: int
    batch: int
    early_share: float
    share: float


def buckets(version: Version) -> tuple[Bucket, ...]:
    """The sizes and lengths trained on; the long clips are two groups of the release's autoencoder.

    Colours and shapes are learned from single pictures, five times cheaper than clips, before motion is.
    """
    two_groups = GROUP_FRAMES + GROUP_STEP[version]
    return (
        Bucket(1, 64, 64, batch=80, early_share=0.55, share=0.25),
        Bucket(GROUP_FRAMES, 64, 64, batch=20, early_share=0.45, share=0.67),
        Bucket(two_groups, 64, 64, batch=10, early_share=0.0, share=0.04),
        Bucket(GROUP_FRAMES, 48, 80, batch=20, early_share=0.0, share=0.02),
        Bucket(GROUP_FRAMES, 80, 48, batch=20, early_share=0.0, share=0.02),
    )


@dataclass(frozen=True)
class BatchConfig:
    """How steps are mixed. Shares are of the video steps; the rest is plain text to video."""

    buckets: tuple[Bucket, ...] = field(default_factory=lambda: buckets("1.3"))
    early_steps: int = 450
    given_share: float = 0.2
    frame_mask_share: float = 0.08
    masks_like_given: float = 0.0  # of the masked rows, those whose clean frames are chosen as given frames are
    text_dropout: float = 0.12
    given_dropout: float = 0.12
    transformed_share: float = 0.3  # of the noise levels drawn from the sampler's own shifted times
    early_transformed_share: float = 0.5
    noisy_shift: float = 3.0  # shifts the other levels towards noise, where words and places are decided; early: 1
    scenes: SceneConfig = field(default_factory=lambda: SceneConfig(pattern_share=0.06, camera_share=0.03))


@dataclass(frozen=True)
class Batch:
    """One step. ``given`` names latent frames told to every row, ``given_kept`` [B] the rows that really get them;
    ``frame_mask`` [B, T] is False where a frame stays clean and does not count."""

    bucket: Bucket
    latents: Tensor
    captions: list[str]
    has_text: Tensor
    times: Tensor
    given: tuple[int, ...]
    given_kept: Tensor
    frame_mask: Tensor | None

    @property
    def fps(self) -> float:
        return IMAGE_FPS if self.bucket.frames == 1 else VIDEO_FPS


def batch_of(config: BatchConfig, code: LatentCode, version: Version, seed: int, step: int) -> Batch:
    """The batch of one step; the same for the same seed and step."""
    rng = np.random.default_rng([seed, step])
    early = step < config.early_steps
    shares = np.array([bucket.early_share if early else bucket.share for bucket in config.buckets])
    bucket = config.buckets[rng.choice(len(shares), p=shares / shares.sum())]
    aspect = bucket.width / bucket.height
    scenes = [draw_scene(rng, bucket.frames, aspect, config.scenes) for _ in range(bucket.batch)]
    latents = code.clips(scenes, bucket.frames, bucket.height, bucket.width)
    count = latents.shape[2]
    given: tuple[int, ...] = ()
    frame_mask = None
    if not early and count > 1 and version == "1.3" and rng.random() < config.given_share:
        given = draw_given(rng, count)
    elif not early and count > 1 and rng.random() < config.frame_mask_share:
        frame_mask = draw_frame_mask(rng, bucket.batch, count, config.masks_like_given)
    return Batch(
        bucket=bucket,
        latents=latents,
        captions=[caption(scene, rng) for scene in scenes],
        has_text=torch.from_numpy(rng.random(bucket.batch) >= config.text_dropout),
        times=_times(rng, config, bucket, version, early),
        given=given,
        given_kept=torch.from_numpy(rng.random(bucket.batch) >= config.given_dropout),
        frame_mask=frame_mask,
    )


def draw_given(rng: np.random.Generator, count: int) -> tuple[int, ...]:
    """Latent frames told to the model: the first, both ends, the last, a run at the start, or any."""
    kind = rng.choice(5, p=(0.45, 0.2, 0.05, 0.15, 0.15))
    if kind == 0:
        return (0,)
    if kind == 1:
        return (0, count - 1)
    if kind == 2:
        return (count - 1,)
    if kind == 3:
        return tuple(range(int(rng.integers(2, max(3, count // 2 + 1)))))
    marks = rng.random(count) < 0.4
    return tuple(int(index) for index in np.flatnonzero(marks)) or (0,)


def draw_frame_mask(rng: np.random.Generator, rows: int, count: int, like_given: float) -> Tensor:
    """[rows, count] bool, False where a frame stays clean: any frames, or for some rows those of ``draw_given``."""
    mask = torch.from_numpy(rng.random((rows, count)) < rng.uniform(0.3, 0.9))
    for row in range(rows):
        if like_given and rng.random() < like_given:
            mask[row] = True
            mask[row, list(draw_given(rng, count))] = False
    return mask


def _times(rng: np.random.Generator, config: BatchConfig, bucket: Bucket, version: Version, early: bool) -> Tensor:
    """Noise levels 0…1000 [B]. Few of the sampler's shifted times lie where words decide, so others are mixed in;
    antithetic draws spread each batch over the whole range."""
    uniform = torch.from_numpy((rng.permutation(bucket.batch) + rng.random(bucket.batch)) / bucket.batch).float()
    share = config.early_transformed_share if early else config.transformed_share
    transformed = torch.from_numpy(rng.random(bucket.batch) < share)
    shift = shift_for(version, bucket.height, bucket.width, bucket.frames)
    others = uniform if early else shift_time(uniform, config.noisy_shift)
    return torch.where(transformed, shift_time(uniform, shift), others) * TRAIN_TIMESTEPS
