"""Trains the tiny v1.3 autoencoder: ``python -m training autoencoder OUT``.

The encoder starts as a principal component analysis of picture patches (:mod:`.patch_analysis`), whose latents fit
Open-Sora's normalisation constants from the first step. In stages marked ``decoder_only`` it stays so: only the decoder
learns, and a diffusion model can be trained on the latents at the same time. Small crops of few frames come first
because they are cheap, whole clips last.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ..opensora_models.frames import FRAMES_PER_LATENT
from ..opensora_models.vae.causal import CausalConfig, CausalDecoder, CausalEncoder
from ..opensora_models.vae.distribution import LOG_VARIANCE_LIMITS
from ..opensora_models.vae.statistics import V13_MEAN, V13_STD
from .average import MovingAverage
from .critic import Critic, CriticConfig, load_lpips
from .latents import LatentCode
from .lpips import LPIPS
from .patch_analysis import LOG_VARIANCE, start_from_patches
from .pictures import contact_sheet
from .progress import Progress
from .rendering import render, render_frames
from .scenes import SceneConfig, draw_scene

# The decoder's residual branches start small, so that it starts close to a chain of its resampling convolutions; the
# biases of that chain start large, so that group norms keep the size of the signal instead of dividing it away.
START_BRANCH_SCALE = 0.3
START_BIAS = 0.5
CLIP_FRAMES = 17


@dataclass(frozen=True)
class Stage:
    """``steps`` updates on ``batch`` crops of ``size`` pixels and ``frames`` frames; the rate falls as a cosine."""

    steps: int
    batch: int
    frames: int
    size: int
    rate: float
    final_rate: float
    decoder_only: bool = False
    adversarial: bool = False


@dataclass(frozen=True)
class AutoencoderConfig:
    """Everything that decides the result; the defaults made the shipped file."""

    network: CausalConfig = CausalConfig(width=16, multipliers=(1, 1, 2, 4), blocks=1, groups=4)
    stages: tuple[Stage, ...] = (
        Stage(steps=1500, batch=8, frames=5, size=32, rate=2e-3, final_rate=5e-4, decoder_only=True),
        Stage(steps=800, batch=1, frames=17, size=64, rate=6e-4, final_rate=3e-5, decoder_only=True),
    )
    scenes: SceneConfig = field(default_factory=lambda: SceneConfig(pattern_share=0.1, camera_share=0.05))
    picture_size: int = 64
    analysed_clips: int = 128
    kl_weight: float = 1e-3
    perceptual_weight: float = 0.1
    critic: CriticConfig = CriticConfig()
    gradient_limit: float = 1.0
    average: float = 0.99
    warm_up: int = 30
    seed: int = 13


class TinyAutoencoder(nn.Module):
    """Encoder and decoder under the key names of the released v1.3 file."""

    def __init__(self, config: CausalConfig) -> None:
        super().__init__()
        self.encoder = CausalEncoder(config, nn)
        self.decoder = CausalDecoder(config, nn)

    def moments(self, video: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log variance [B, C, l, h, w] of pixels [B, 3, T, H, W]."""
        mean, log_variance = self.encoder(video).chunk(2, dim=1)
        return mean, log_variance.clamp(*LOG_VARIANCE_LIMITS)


def new_autoencoder(config: AutoencoderConfig) -> TinyAutoencoder:
    """A seeded network, started as described by the constants of this module."""
    torch.manual_seed(config.seed)
    model = TinyAutoencoder(config.network)
    rng = np.random.default_rng(config.seed)
    scenes = [draw_scene(rng, CLIP_FRAMES, 1.0, config.scenes) for _ in range(config.analysed_clips)]
    clips = render(scenes, CLIP_FRAMES, config.picture_size, config.picture_size)
    pictures = clips[:, :, ::FRAMES_PER_LATENT].transpose(1, 2).flatten(0, 1)
    start_from_patches(model.encoder, pictures, V13_MEAN, V13_STD)
    with torch.no_grad():
        for name, weight in model.decoder.named_parameters():
            if name.endswith(("conv2.conv.weight", "proj_out.conv.weight")):
                weight.mul_(START_BRANCH_SCALE)
            elif name.endswith(("conv_in.conv.bias", "upsample.conv.bias")):
                weight.normal_(0.0, START_BIAS)
    return model


def batch_of(config: AutoencoderConfig, stage: Stage, step: int) -> Tensor:
    """The crops of one step, [B, 3, T, H, W]; the same for the same step."""
    rng = np.random.default_rng([config.seed, step])
    side = config.picture_size
    scenes = [draw_scene(rng, CLIP_FRAMES, 1.0, config.scenes) for _ in range(stage.batch)]
    starts = (CLIP_FRAMES - stage.frames) // FRAMES_PER_LATENT + 1
    first = FRAMES_PER_LATENT * int(rng.integers(0, starts))
    video = render_frames(scenes, range(first, first + stage.frames), side, side)
    crops = []
    for scene, clip in zip(scenes, video, strict=True):
        # A crop around a point of the shape's outline, which is where there is something to learn.
        turn = rng.uniform(0.0, 2 * math.pi)
        edge = (scene.y + scene.radius * math.sin(turn), scene.x + scene.radius * math.cos(turn))
        top, left = (int(np.clip(place * side - stage.size / 2, 0, side - stage.size)) for place in edge)
        crops.append(clip[..., top : top + stage.size, left : left + stage.size])
    return torch.stack(crops)


def rate_at(stage: Stage, step: int, warm_up: int) -> float:
    """Learning rate of step ``step`` of a stage: a short rise, then a cosine from rate to final_rate."""
    fall = 0.5 * (1 + math.cos(math.pi * step / stage.steps))
    return min(1.0, (step + 1) / warm_up) * (stage.final_rate + (stage.rate - stage.final_rate) * fall)


def stage_steps(config: AutoencoderConfig) -> Iterator[tuple[int, Stage, int]]:
    """(step of the run, stage, step of the stage) in order."""
    step = 0
    for stage in config.stages:
        for inner in range(stage.steps):
            yield step, stage, inner
            step += 1


class Run:
    """One training run below a folder: its networks, where it stands, and what looks at reconstructions."""

    def __init__(self, config: AutoencoderConfig, folder: Path, lpips: LPIPS | None = None) -> None:
        self.config, self.lpips = config, lpips
        self.progress = Progress(folder)
        self.model = new_autoencoder(config)
        self.average = MovingAverage(self.model, config.average)
        self.optimiser = torch.optim.Adam(self.model.parameters(), betas=(0.9, 0.98), fused=True)
        self.critic = Critic(config.critic) if any(stage.adversarial for stage in config.stages) else None
        self.code: LatentCode | None = None
        self.done = 0
        if (state := self.progress.load()) is not None:
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.done = state["step"]

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "average": self.average, "optimiser": self.optimiser}
        if self.critic is not None:
            parts |= {"critic": self.critic, "critic's optimiser": self.critic.optimiser}
        return parts

    def update(self, stage: Stage, inner: int) -> None:
        """One step: the autoencoder, then, in an adversarial stage, the discriminator on the same clips."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.done)
        video = batch_of(self.config, stage, self.done)
        loss, again, numbers = self.loss(video, stage)
        for group in self.optimiser.param_groups:
            group["lr"] = rate_at(stage, inner, self.config.warm_up)
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_limit)
        self.optimiser.step()
        self.average.update(self.model)
        if stage.adversarial and self.critic is not None:
            numbers["discriminator"] = self.critic.learn(video, again, self.done)
        self.progress.write(self.done, **numbers, gradient=norm.item())
        self.done += 1
        if self.progress.due():
            self.save(video)

    def loss(self, video: Tensor, stage: Stage) -> tuple[Tensor, Tensor, dict[str, float]]:
        """(loss, reconstruction, numbers for the log): L1 per pixel, weighted KL (summed per clip as in v1.3, divided
        by the elements of a frame), and the judges' terms."""
        mean, log_variance = self._moments(video, stage)
        again = self.model.decoder(mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean))
        loss = (again - video).abs().mean()
        squared = (again - video).detach().square().mean().item()
        numbers = {"l1": loss.item(), "psnr": 10 * math.log10(4 / max(squared, 1e-12))}
        if self.lpips is not None:
            frames, made = (clip.transpose(1, 2).flatten(0, 1) for clip in (video, again))
            loss = loss + self.config.perceptual_weight * self.lpips(frames, made).mean()
        if stage.adversarial and self.critic is not None:
            loss = loss + self.critic.reward(again, loss, self.model.decoder.conv_out.weight, self.done)
        if not stage.decoder_only:
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / video.shape[0]
            loss = loss + self.config.kl_weight * kl / video[0, :, 0].numel()
            numbers["kl"] = kl.item() / mean[0].numel()
        return loss, again, numbers

    def _moments(self, video: Tensor, stage: Stage) -> tuple[Tensor, Tensor]:
        """Mean and log variance; a frozen encoder is replaced by the code it is, measured once."""
        if not stage.decoder_only:
            self.code = None
            return self.model.moments(video)
        if self.code is None:
            self.code = LatentCode(self.model.encoder)
            self.code.check(self.model.encoder, video)
        mean = self.code.latents(video)
        return mean, torch.full_like(mean, LOG_VARIANCE)

    def save(self, video: Tensor) -> None:
        """Write a checkpoint, the curves and a sheet of ``video`` beside its reconstruction."""
        self.progress.save({"step": self.done} | {name: part.state_dict() for name, part in self._parts().items()})
        with torch.no_grad():
            again = self.model.decoder(self.model.moments(video)[0])
        rows = [clip for pair in zip(video[:6], again[:6], strict=True) for clip in pair]
        sheet = contact_sheet(rows, every=max(1, video.shape[2] // 8), scale=2)
        sheet.save(self.progress.folder / "reconstruction.png")


def train(
    config: AutoencoderConfig, folder: Path, last_step: int | None = None, lpips: LPIPS | None = None
) -> tuple[TinyAutoencoder, int]:
    """Run or resume; returns the averaged model and the number of steps done."""
    run = Run(config, folder, lpips)
    for step, stage, inner in stage_steps(config):
        if step >= run.done and (last_step is None or step < last_step):
            run.update(stage, inner)
    run.save(batch_of(config, config.stages[-1], run.done))
    return run.average.applied_to(new_autoencoder(config)), run.done


def averaged_autoencoder(config: AutoencoderConfig, folder: Path) -> TinyAutoencoder:
    """The averaged network of a run's last checkpoint."""
    state = Progress(folder).read()
    model = TinyAutoencoder(config.network)
    average = MovingAverage(model, config.average)
    average.load_state_dict(state["average"])
    return average.applied_to(model).eval()


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m training autoencoder", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the run; an interrupted run there is continued")
    parser.add_argument("--until", type=int, default=None, help="stop after this many steps")
    parser.add_argument("--lpips", type=Path, help="LPIPS weights (safetensors) for a perceptual term; none: without")
    options = parser.parse_args(arguments)
    train(AutoencoderConfig(), options.folder, options.until, options.lpips and load_lpips(options.lpips))
