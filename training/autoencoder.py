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

import numpy as np
import torch
from torch import Tensor, nn

from ..opensora_models.frames import FRAMES_PER_LATENT
from ..opensora_models.vae.causal import CausalConfig, CausalDecoder, CausalEncoder
from ..opensora_models.vae.distribution import LOG_VARIANCE_LIMITS
from .average import MovingAverage
from .patch_analysis import start_from_patches
from .pictures import contact_sheet
from .progress import Progress
from .rendering import render, render_frames
from .scenes import SceneConfig, draw_scene

# The decoder's residual branches start small, so that it starts close to a chain of its resampling convolutions; the
# biases of that chain start large, so that group norms keep the size of the signal instead of dividing it away.
START_BRANCH_SCALE = 0.1
START_BIAS = 0.5
CLIP_FRAMES = 17
ANALYSED_CLIPS = 128


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


@dataclass(frozen=True)
class AutoencoderConfig:
    """Everything that decides the result; the defaults made the shipped file."""

    network: CausalConfig = CausalConfig(width=16, multipliers=(1, 1, 2, 4), blocks=1, groups=4)
    stages: tuple[Stage, ...] = (
        Stage(steps=1500, batch=8, frames=5, size=32, rate=2e-3, final_rate=5e-4, decoder_only=True),
        Stage(steps=800, batch=1, frames=17, size=64, rate=6e-4, final_rate=3e-5, decoder_only=True),
    )
    scenes: SceneConfig = field(default_factory=lambda: SceneConfig(pattern_share=0.15, camera_share=0.05))
    picture_size: int = 64
    kl_weight: float = 1e-3
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
    scenes = [draw_scene(rng, CLIP_FRAMES, 1.0, config.scenes) for _ in range(ANALYSED_CLIPS)]
    clips = render(scenes, CLIP_FRAMES, config.picture_size, config.picture_size)
    start_from_patches(model.encoder, clips[:, :, ::FRAMES_PER_LATENT].transpose(1, 2).flatten(0, 1))
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


def loss_of(model: TinyAutoencoder, video: Tensor, stage: Stage, kl_weight: float) -> tuple[Tensor, dict[str, float]]:
    """L1 per pixel plus weighted KL (reduced as in v1.3: sums per frame and per clip), and numbers for the log."""
    with torch.set_grad_enabled(not stage.decoder_only):
        mean, log_variance = model.moments(video)
        latents = mean + torch.exp(0.5 * log_variance) * torch.randn_like(mean)
    error = model.decoder(latents) - video
    reconstruction = error.abs().mean()
    kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / video.shape[0]
    elements = video[0, :, 0].numel()
    loss = reconstruction if stage.decoder_only else reconstruction + kl_weight * kl / elements
    squared = error.detach().square().mean().item()
    numbers = {
        "l1": reconstruction.item(),
        "psnr": 10 * math.log10(4 / max(squared, 1e-12)),
        "kl": kl.item() / mean[0].numel(),
        "latent std": mean.detach().std().item(),
    }
    return loss, numbers


def train(config: AutoencoderConfig, folder: Path, last_step: int | None = None) -> tuple[TinyAutoencoder, int]:
    """Run or resume; returns the averaged model and the number of steps done."""
    progress = Progress(folder)
    model = new_autoencoder(config)
    average = MovingAverage(model, config.average)
    optimiser = torch.optim.Adam(model.parameters(), betas=(0.9, 0.98), fused=True)
    done = 0
    if (state := progress.load()) is not None:
        model.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["step"]
    for step, stage, inner in stage_steps(config):
        if step < done or (last_step is not None and step >= last_step):
            continue
        torch.manual_seed(config.seed * 1_000_003 + step)
        video = batch_of(config, stage, step)
        loss, numbers = loss_of(model, video, stage, config.kl_weight)
        for group in optimiser.param_groups:
            group["lr"] = rate_at(stage, inner, config.warm_up)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        limit = nn.utils.clip_grad_norm_(model.parameters(), config.gradient_limit)
        optimiser.step()
        average.update(model)
        progress.write(step, **numbers, gradient=limit.item())
        done = step + 1
        if progress.due():
            _save(progress, model, average, optimiser, done, video)
    _save(progress, model, average, optimiser, done, batch_of(config, config.stages[-1], done))
    return average.applied_to(new_autoencoder(config)), done


def _save(
    progress: Progress, model: TinyAutoencoder, average: MovingAverage, optimiser: torch.optim.Optimizer, done: int,
    video: Tensor,
) -> None:  # fmt: skip
    state = {
        "step": done,
        "model": model.state_dict(),
        "average": average.state_dict(),
        "optimiser": optimiser.state_dict(),
    }
    progress.save(state)
    with torch.no_grad():
        again = model.decoder(model.moments(video)[0])
    rows = [clip for pair in zip(video[:6], again[:6], strict=True) for clip in pair]
    contact_sheet(rows, every=max(1, video.shape[2] // 8), scale=2).save(progress.folder / "reconstruction.png")


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m training autoencoder", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the run; an interrupted run there is continued")
    parser.add_argument("--until", type=int, default=None, help="stop after this many steps")
    options = parser.parse_args(arguments)
    train(AutoencoderConfig(), options.folder, options.until)
