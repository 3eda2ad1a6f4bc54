"""What one training step of the diffusion model sees: clean latents, words, and which frames are told beforehand."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..opensora_models.releases.groups import GROUP_FRAMES, GROUP_LATENTS, GROUP_STEP, Version
from ..opensora_models.releases.release import Release
from ..opensora_models.sampling.schedule import IMAGE_FPS, TRAIN_TIMESTEPS, shift_time
from .captions import caption, with_suffixes
from .clip_bank import ClipBank
from .scenes import BACKGROUNDS, MOTIONS, SHAPES, Scene, SceneConfig, draw_scene, draw_words, is_trained

VIDEO_FPS = 24.0
LEAST_LEVEL = 1e-3
UNTOLD = -100  # no shape: cross entropy leaves it out
GIVEN_LENGTHS = (5, 9)  # latent frames of the clips that 2.0 most often goes on from: 17 and 33 frames
USUAL_SHARE = 0.6
GOING_ON = 0.3  # of the draws of told frames, those that are such clips
JOINED = 0.75  # of the clips whose frames are decided, those between two pictures; the others go on
# Odd on purpose: no sequence of latent tokens has an odd length from here on, so a masked attention call is told by
# its keys.
LEAST_TEXT_LENGTH, TEXT_LENGTH = 17, 33


@dataclass(frozen=True)
class Bucket:
    """Clips of one size, ``batch`` at a time, in ``share`` of the steps; some sizes have a bank of clips."""

    frames: int
    height: int
    width: int
    batch: int
    share: float
    banked: bool = False

    @property
    def fps(self) -> float:
        return IMAGE_FPS if self.frames == 1 else VIDEO_FPS


def buckets(version: Version, pictures: float = 0.2, long: tuple[float, float] | None = None) -> tuple[Bucket, ...]:
    """The sizes and lengths trained on.

    ``pictures`` is the share of single pictures, five times cheaper than clips to learn colours and shapes from;
    ``long`` are those of clips of two and three groups of the autoencoder. Three are for 1.2, whose masks fill what is
    between two clips.
    """
    step = GROUP_STEP[version]
    long = long or {"1.3": (0.04, 0.0), "1.2": (0.08, 0.05)}[version]
    return (
        Bucket(1, 64, 64, batch=80, share=pictures, banked=True),
        Bucket(GROUP_FRAMES, 64, 64, batch=20, share=0.96 - pictures - sum(long), banked=True),
        Bucket(GROUP_FRAMES + step, 64, 64, batch=10, share=long[0]),
        Bucket(GROUP_FRAMES + 2 * step, 64, 64, batch=7, share=long[1]),
        Bucket(GROUP_FRAMES, 48, 80, batch=20, share=0.02),
        Bucket(GROUP_FRAMES, 80, 48, batch=20, share=0.02),
    )


def causal_buckets(pictures: float = 0.2, long: tuple[float, float] = (0.04, 0.02)) -> tuple[Bucket, ...]:
    """:func:`buckets` for 2.0, whose clips have any 4·n + 1 frames: ``long`` are the shares of those of 9 and of 13
    latent frames. The latter can go on from 33 given frames."""
    return (
        Bucket(1, 64, 64, batch=80, share=pictures, banked=True),
        Bucket(17, 64, 64, batch=20, share=0.96 - pictures - sum(long), banked=True),
        Bucket(33, 64, 64, batch=10, share=long[0]),
        Bucket(49, 64, 64, batch=7, share=long[1]),
        Bucket(17, 48, 80, batch=20, share=0.02),
        Bucket(17, 80, 48, batch=20, share=0.02),
    )


# Text to video shows ways that begin near the middle, where a bank of 64 clips says nearly all. Given frames may show
# anything anywhere.
FROM_MIDDLE = SceneConfig(pattern_share=0.0, camera_share=0.0, spread=0.3, from_middle=True)
EVERYWHERE = SceneConfig(pattern_share=0.12, camera_share=0.06, spread=0.6)
# A square that turns by more than 45 degrees in a clip looks the same again before its end; and the larger a shape is,
# the more of it moves when it turns.
_turning = partial(replace, turn=(2.5, 3.5), turning_radius=(0.26, 0.32))
FROM_MIDDLE_TURNING, EVERYWHERE_TURNING = _turning(FROM_MIDDLE), _turning(EVERYWHERE)
# A way of 34 frames fills the picture, so that it begins at its edge; people join pictures of any places.
HALTING = replace(EVERYWHERE_TURNING, spread=1.0, halting_share=0.7)


@dataclass(frozen=True)
class BatchConfig:
    """How steps are mixed. Shares are of the video steps; the rest is plain text to video."""

    buckets: tuple[Bucket, ...] = field(default_factory=lambda: buckets("1.3"))
    given_share: float = 0.2
    frame_mask_share: float = 0.08
    masks_like_given: float = 0.0  # of the masked rows, those whose clean frames are chosen as given frames are
    decided_share: float = 0.0  # of the steps on long clips, those whose clean frames leave nothing to words
    fresh_share: float = 0.1  # of the steps that could take clips from the bank, those that draw any scene instead
    text_dropout: float = 0.12
    given_dropout: float = 0.12
    transformed_share: float = 0.3  # of the noise levels drawn from the sampler's own shifted times
    noisy_shift: float = 3.0  # shifts the other levels towards noise, where words and places are decided
    backgrounds: tuple[str, ...] = tuple(BACKGROUNDS)  # what clips of the bank are drawn from
    motions: tuple[str, ...] = MOTIONS  # likewise; one that is named several times is drawn more often
    scenes: SceneConfig = EVERYWHERE
    bank_scenes: SceneConfig = FROM_MIDDLE
    rivals: bool = False  # whether clips of the bank come with those of the words they are most easily taken for
    rest: bool = False  # whether the rival of what turns is itself at rest, in place of a still shape of another size
    given_rivals: bool = False  # whether clips of which frames are given come with themselves standing still as a rival
    masked_rivals: bool = False  # likewise for clips of which a frame mask leaves frames clean
    even_rivals: bool = False  # whether the latter also come with themselves in even steps of time as a rival
    # Of the rows that are told given frames, those whose words name another colour and shape: the frames are right.
    misnamed_share: float = 0.0
    named_rivals: bool = False  # whether these rows come with themselves in the shape that their words name as a rival
    other_rivals: bool = False  # whether half of these rows do so in any other shape, and all others of their batches
    # Of the clips of more than a group whose ends are told to 2.0, those that are told a clip at the head or the tail.
    going_on_share: float = GOING_ON
    recognised: bool = False  # whether clips are asked which shape they are told, by frames or by words


@dataclass(frozen=True)
class Batch:
    """One step. ``given`` names latent frames told to every row, ``given_kept`` [B] the rows that really get them;
    ``frame_mask`` [B, T] is False where a frame stays clean and does not count. ``bank`` [B, K, C, l, h, w] holds, for
    every row, the clips that are as likely as its own for the same words; None: only its own. ``rivals``
    [B, R, K, C, l, h, w] are clips of words that differ in the shape or the motion alone, or clips at rest. ``shapes``
    [B] are numbers of ``SHAPES`` in the clips, ``UNTOLD`` for rows that neither frames nor words tell. Where clean
    frames have ``decided`` what is between them, rows come in twos, with words and without."""

    bucket: Bucket
    latents: Tensor
    noise: Tensor
    captions: list[str]
    has_text: Tensor
    times: Tensor
    given: tuple[int, ...]
    given_kept: Tensor
    frame_mask: Tensor | None
    bank: Tensor | None = None
    rivals: Tensor | None = None
    shapes: Tensor | None = None
    decided: bool = False

    @property
    def counted(self) -> int:
        """Latent frames whose velocity counts, over all rows."""
        return self.latents.shape[0] * self.latents.shape[2] if self.frame_mask is None else int(self.frame_mask.sum())

    def parts(self, most: int) -> list[Batch]:
        """The rows in up to ``most`` parts of nearly the same number; twos stay together."""
        together = 2 if self.decided else 1
        count = len(self.latents) // together
        edges = [count * number // most * together for number in range(most + 1)]
        return [self._each(lambda rows, edge=edge: rows[slice(*edge)]) for edge in pairwise(edges) if edge[0] < edge[1]]

    def in_twos(self) -> Batch:
        """Every row twice, with words and without."""
        twice = self._each(lambda rows: rows.repeat_interleave(2, 0) if isinstance(rows, Tensor) else [
            row for row in rows for _ in range(2)
        ])  # fmt: skip
        return replace(twice, has_text=torch.arange(len(twice.captions)) % 2 == 0, decided=True)

    @property
    def untold(self) -> Tensor:
        """[B, T] bool: the latent frames that are neither given nor clean."""
        if self.frame_mask is not None:
            return self.frame_mask
        mask = torch.ones(len(self.latents), self.latents.shape[2], dtype=torch.bool)
        mask[:, list(self.given)] = False
        return mask

    def _each(self, change: Callable[[Any], Any]) -> Batch:
        return replace(self, **{
            part.name: change(value)
            for part in fields(self) if isinstance(value := getattr(self, part.name), (Tensor, list))
        })  # fmt: skip


def batch_of(config: BatchConfig, bank: ClipBank, seed: int, step: int) -> Batch:
    """The batch of one step; the same for the same seed and step."""
    release = bank.code.release
    rng = np.random.default_rng([seed, step])
    shares = np.array([bucket.share for bucket in config.buckets])
    bucket = config.buckets[rng.choice(len(shares), p=shares / shares.sum())]
    count = release.latents.lengths.counting.latents(bucket.frames)
    given: tuple[int, ...] = ()
    frame_mask = None
    decided = count > GROUP_LATENTS and config.decided_share > 0 and rng.random() < config.decided_share
    if decided:
        bucket = replace(bucket, batch=bucket.batch // 2)
        frame_mask = draw_decided_mask(rng, bucket.batch, count)
    elif count > 1 and release.given.kind == "input" and rng.random() < config.given_share:
        given = _told(rng, config, release, count)
    elif count > 1 and rng.random() < config.frame_mask_share:
        frame_mask = draw_frame_mask(rng, bucket.batch, count, config.masks_like_given)
    plain = not given and frame_mask is None
    clips = rivals = None
    if plain and bucket.banked and rng.random() >= config.fresh_share:
        scenes, latents, clips = _from_bank(rng, bank, bucket, config)
        rivals = _rivals(rng, bank, bucket, scenes, config.rest) if config.rivals else None
    else:
        aspect = bucket.width / bucket.height
        scenes = [draw_scene(rng, bucket.frames, aspect, config.scenes) for _ in range(bucket.batch)]
        latents = bank.code.clips(scenes, bucket.frames, bucket.height, bucket.width)
        if (given and config.given_rivals) or (frame_mask is not None and config.masked_rivals):
            rivals = _unmoved(bank, bucket, scenes, latents, frame_mask, config.even_rivals)
    batch = Batch(
        bucket=bucket,
        latents=latents,
        noise=torch.randn(latents.shape, generator=torch.Generator().manual_seed(seed * 1_000_003 + step)),
        captions=[_words(scene, rng, release) for scene in scenes],
        has_text=torch.from_numpy(rng.random(bucket.batch) >= config.text_dropout),
        times=_times(rng, config, bucket, release),
        given=given,
        given_kept=torch.from_numpy(rng.random(bucket.batch) >= config.given_dropout),
        frame_mask=frame_mask,
        bank=clips,
        rivals=rivals,
    )
    if config.recognised:
        batch = _asked_for_shapes(batch, scenes)
    if given and config.misnamed_share:
        batch = _with_wrong_words(rng, batch, bank, scenes, config)
    return batch.in_twos() if decided else batch


def _asked_for_shapes(batch: Batch, scenes: list[Scene]) -> Batch:
    told = batch.has_text.clone()
    if batch.given:
        told |= batch.given_kept
    elif batch.frame_mask is not None:
        told |= ~batch.frame_mask.all(1)
    shapes = torch.tensor([SHAPES.index(scene.shape) for scene in scenes])
    return replace(batch, shapes=torch.where(told, shapes, UNTOLD))


def _unmoved(
    bank: ClipBank, bucket: Bucket, scenes: list[Scene], latents: Tensor, frame_mask: Tensor | None, even: bool
) -> Tensor:
    """Rivals [B, R, 1, C, l, h, w] of clips that are told frames or keep some clean: themselves standing still, and the
    latter also in even steps of time if ``even``."""
    still = [replace(scene, motion="still") for scene in scenes]
    others = [bank.code.clips(still, bucket.frames, bucket.height, bucket.width)]
    if frame_mask is not None and even:
        others.append(bank.code.evenly(scenes, bucket.frames, bucket.height, bucket.width))
    if frame_mask is not None:  # no rival differs in what is clean
        others = [torch.where(frame_mask[:, None, :, None, None], other, latents) for other in others]
    return torch.stack(others, dim=1)[:, :, None]


def _with_wrong_words(
    rng: np.random.Generator, batch: Batch, bank: ClipBank, scenes: list[Scene], config: BatchConfig
) -> Batch:
    """Some rows named as ``misnamed_share`` says, and what that names as a rival of theirs if there are to be any."""
    captions, shapes = _misnamed(rng, batch, scenes, config.misnamed_share, bank.code.release)
    batch = replace(batch, captions=captions)
    if not config.named_rivals:
        return batch
    if config.other_rivals:
        shapes = [_rival_shape(rng, scene, named) for scene, named in zip(scenes, shapes, strict=True)]
    named = [replace(scene, shape=shape) for scene, shape in zip(scenes, shapes, strict=True)]
    other = bank.code.clips(named, batch.bucket.frames, batch.bucket.height, batch.bucket.width)
    told = list(batch.given)
    other[:, :, told] = batch.latents[:, :, told]
    others = [other[:, None, None]] if batch.rivals is None else [batch.rivals, other[:, None, None]]
    return replace(batch, rivals=torch.cat(others, dim=1))


def _rival_shape(rng: np.random.Generator, scene: Scene, named: str) -> str:
    """``named`` half of the time if it is another than the scene's own, else any other; its own instead of one that
    would be a combination kept out of training."""
    shape = named if named != scene.shape and rng.random() < 0.5 else _another_shape(rng, scene)
    return shape if is_trained(scene.colour, shape, scene.motion) else scene.shape


def _misnamed(
    rng: np.random.Generator, batch: Batch, scenes: list[Scene], share: float, release: Release
) -> tuple[list[str], list[str]]:
    """The captions, ``share`` of those whose frames are told with another colour and shape, never those kept out, and
    the shapes they name."""
    found, shapes = [], []
    for scene, words, told in zip(scenes, batch.captions, batch.given_kept.tolist(), strict=True):
        if told and rng.random() < share:
            while True:
                colour, shape, motion = draw_words(rng, (scene.motion,))
                if colour != scene.colour and shape != scene.shape:
                    break
            scene = replace(scene, colour=colour, shape=shape, motion=motion)
            words = _words(scene, rng, release)
        found.append(words)
        shapes.append(scene.shape)
    return found, shapes


def _words(scene: Scene, rng: np.random.Generator, release: Release) -> str:
    if not release.text.suffixes:
        return caption(scene, rng)
    return with_suffixes(caption(scene, rng, scores=False), scene.motion, rng, release)


def _from_bank(
    rng: np.random.Generator, bank: ClipBank, bucket: Bucket, config: BatchConfig
) -> tuple[list[Scene], Tensor, Tensor]:
    """Words of as many scenes as the bucket takes, a clip of each, and all clips of the bank that fit the words."""
    scenes = [Scene(*draw_words(rng, config.motions), str(rng.choice(config.backgrounds))) for _ in range(bucket.batch)]
    clips = torch.stack([_clips(bank, bucket, row) for row in scenes])
    own = torch.from_numpy(rng.integers(bank.size, size=bucket.batch))
    return scenes, clips[torch.arange(bucket.batch), own], clips


def _clips(bank: ClipBank, bucket: Bucket, row: Scene) -> Tensor:
    words = (row.colour, row.shape, row.motion, row.background)
    return bank(words, bucket.frames, bucket.height, bucket.width).float()


def _rivals(rng: np.random.Generator, bank: ClipBank, bucket: Bucket, scenes: list[Scene], rest: bool) -> Tensor:
    """Clips [B, R, K, C, l, h, w] of the bank for another shape and, if they move, for another motion.

    Never a combination kept out of training: its place is taken by the row itself, from which nothing sets it apart.
    """
    rows = []
    for scene in scenes:
        others = [_clips_or_own(bank, bucket, replace(scene, shape=_another_shape(rng, scene)), scene)]
        if bucket.frames > 1 and rest and scene.motion == "rotate":
            others.append(_clips(bank.at_rest(), bucket, scene))
        elif bucket.frames > 1:
            others.append(_clips_or_own(bank, bucket, replace(scene, motion=_rival_motion(scene)), scene))
        rows.append(torch.stack(others))
    return torch.stack(rows)


def _another_shape(rng: np.random.Generator, scene: Scene) -> str:
    return str(rng.choice([shape for shape in SHAPES if shape != scene.shape]))


def _clips_or_own(bank: ClipBank, bucket: Bucket, other: Scene, own: Scene) -> Tensor:
    return _clips(bank, bucket, other if is_trained(other.colour, other.shape, other.motion) else own)


def _rival_motion(scene: Scene) -> str:
    """What a clip shows whose motion was not learned, and for standing still what resembles it most."""
    if scene.motion != "still":
        return "still"
    return "grow" if scene.shape == "circle" else "rotate"


def _told(rng: np.random.Generator, config: BatchConfig, release: Release, count: int) -> tuple[int, ...]:
    if release.given.anywhere:
        return draw_given(rng, count, count - 1)
    return draw_ends(rng, count, config.going_on_share if count > GROUP_LATENTS else GOING_ON)


def draw_given(rng: np.random.Generator, count: int, last: int) -> tuple[int, ...]:
    """Latent frames told to the model: the first, that and ``last``, ``last``, a run at one end or at both, or any."""
    kind = rng.choice(6, p=(0.4, 0.2, 0.05, 0.15, 0.05, 0.15))
    if kind == 0:
        return (0,)
    if kind == 1:
        return (0, last)
    if kind == 2:
        return (last,)
    if kind == 3:
        return tuple(range(int(rng.integers(2, max(3, count // 2 + 1)))))
    if kind == 4:
        length = int(rng.integers(1, count // 3 + 1))
        return (*range(length), *range(count - length, count))
    marks = rng.random(count) < 0.4
    return tuple(int(index) for index in np.flatnonzero(marks)) or (0,)


def draw_ends(rng: np.random.Generator, count: int, going_on: float = GOING_ON) -> tuple[int, ...]:
    """Latent frames told to 2.0: the first, the last, both (its loop), or in ``going_on`` of all draws a clip at the
    head or at the tail."""
    last = count - 1
    pictures, clips = np.array((4, 1, 2)) / 7 * (1 - going_on), np.array((2, 1)) / 3 * going_on
    kind = rng.choice(5, p=(*pictures, *clips))
    if kind < 3 or count < 3:
        return ((0,), (last,), (0, last))[min(kind, 2)]
    usual = [length for length in GIVEN_LENGTHS if length < count]
    length = int(rng.choice(usual)) if usual and rng.random() < USUAL_SHARE else int(rng.integers(2, count))
    return tuple(range(length)) if kind == 3 else tuple(range(count - length, count))


def draw_frame_mask(rng: np.random.Generator, rows: int, count: int, like_given: float) -> Tensor:
    """[rows, count] bool, False where a frame stays clean: any frames, or for some rows those of ``draw_given``."""
    mask = torch.from_numpy(rng.random((rows, count)) < rng.uniform(0.3, 0.9))
    for row in range(rows):
        if like_given and rng.random() < like_given:
            mask[row] = True
            mask[row, list(draw_given(rng, count, _last_group(count)))] = False
    return mask


def draw_decided_mask(rng: np.random.Generator, rows: int, count: int) -> Tensor:
    """[rows, count] bool, False where a frame stays clean: the first and the one that opens the last group, or all
    before the last group."""
    mask = torch.ones(rows, count, dtype=torch.bool)
    last = _last_group(count)
    for row in mask:
        row[[0, last] if rng.random() < JOINED else list(range(last))] = False
    return mask


def _last_group(count: int) -> int:
    # A picture at the end of a clip of 1.2 opens the last group: its decoder knows frames by their place there.
    return (count - 1) // GROUP_LATENTS * GROUP_LATENTS


def _times(rng: np.random.Generator, config: BatchConfig, bucket: Bucket, release: Release) -> Tensor:
    """Noise levels 0…1000 [B]. Few of the sampler's shifted times lie where words decide, so others are mixed in;
    antithetic draws spread each batch over the whole range."""
    uniform = torch.from_numpy((rng.permutation(bucket.batch) + rng.random(bucket.batch)) / bucket.batch).float()
    transformed = torch.from_numpy(rng.random(bucket.batch) < config.transformed_share)
    shift = release.times.shift(bucket.frames, bucket.height, bucket.width)
    noisy = shift_time(uniform, config.noisy_shift)
    return torch.where(transformed, shift_time(uniform, shift), noisy).clamp(min=LEAST_LEVEL) * TRAIN_TIMESTEPS
