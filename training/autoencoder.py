"""Trains a tiny autoencoder: ``python -m training autoencoder OUT [--release 1.2]``.

The encoder starts as a principal component analysis of picture patches (:mod:`.patch_analysis`), whose latents fit
Open-Sora's normalisation constants from the first step. While only decoders learn it stays so, and a diffusion model
can be trained on the latents at the same time. Small crops of few frames come first because they are cheap, whole
clips last.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from ..opensora_models.releases.groups import FRAMES_PER_LATENT, GROUP_FRAMES
from ..opensora_models.vae.autoencoder import OpenSora12, OpenSora13
from ..opensora_models.vae.causal import CausalConfig
from ..opensora_models.vae.distribution import Posterior
from ..opensora_models.vae.hunyuan import HunyuanConfig
from ..opensora_models.vae.image import ImageConfig
from ..opensora_models.vae.statistics import V12_SCALE
from ..opensora_models.vae.temporal import TemporalConfig
from ..opensora_models.vae.tiled import OpenSora20
from . import options as option
from .autoencoder_start import clips_to_analyse, start
from .average import MovingAverage
from .calibration import CALIBRATION, calibrate
from .critic import Critic, CriticConfig, load_lpips
from .equal_channels import equalise
from .latents import LatentCode
from .lpips import LPIPS
from .muon import Muon
from .patch_analysis import LOG_VARIANCE
from .pictures import contact_sheet
from .progress import Progress
from .refused import Refused
from .rendering import render_frames
from .scenes import SceneConfig, draw_scene
from .weights_files import weights_in

Autoencoder = OpenSora12 | OpenSora13 | OpenSora20
NETWORKS: dict[str, Callable[..., Autoencoder]] = {"1.2": OpenSora12, "1.3": OpenSora13, "2.0": OpenSora20}
Part = Literal["all", "decoder", "image decoder", "temporal decoder"]
DECODING = ("decoder.", "post_quant_conv.")  # in the names of what turns latents into pictures


@dataclass(frozen=True)
class Stage:
    """``steps`` updates on ``batch`` crops of ``size`` pixels and ``frames`` frames; the rate falls as a cosine.

    ``part`` is what learns: everything (1.3), the decoder (of 1.2: both its stages together) or one stage of 1.2's.
    The temporal decoder by itself is held against the latents of single frames, which needs no pixels.
    """

    steps: int
    batch: int
    frames: int
    size: int
    rate: float
    final_rate: float
    part: Part = "all"
    adversarial: bool = False


@dataclass(frozen=True)
class AutoencoderConfig:
    """Everything that decides the result; the defaults made the shipped file of 1.3, ``RECIPES`` the others."""

    version: str = "1.3"
    networks: tuple[Any, ...] = (CausalConfig(width=16, multipliers=(1, 1, 2, 4), blocks=1, groups=4),)
    stages: tuple[Stage, ...] = (
        Stage(steps=1500, batch=8, frames=5, size=32, rate=1e-3, final_rate=2e-4, part="decoder"),
        Stage(steps=2200, batch=1, frames=17, size=64, rate=3e-4, final_rate=1e-5, part="decoder"),
    )
    scenes: SceneConfig = field(default_factory=lambda: SceneConfig(pattern_share=0.1, camera_share=0.05))
    picture_size: int = 64
    analysed_clips: int = 128
    # How much stronger the latents of colour are than those of fine detail: 1 as in pixels, 0 alike.
    colour_weight: float = 0.5
    # Whether all channels get the same deviation when the decoders are done (1.2). What tells shapes apart is detail,
    # and a diffusion model learns the stronger channels first.
    equal_channels: bool = False
    kl_weight: float = 1e-3
    perceptual_weight: float = 0.1
    critic: CriticConfig = CriticConfig()
    gradient_limit: float = 1.0
    average: float = 0.99
    warm_up: int = 30
    seed: int = 13
    muon: float = 6.0  # rate of Muon, which then trains what convolutions and linear layers weigh, in Adam's rates
    # Deviation of noise on latents of unit size that decoders learn to draw through: of each clip another one, from the
    # posterior's up to this. 0: only the posterior's. What diffusion models make is never quite a code of a picture.
    noise: float = 0.1

    @property
    def groups(self) -> int:
        """Groups of the group norms, which cannot be seen from weights."""
        return int(self.networks[0].groups)


RECIPES: dict[str, AutoencoderConfig] = {
    "1.3": AutoencoderConfig(),
    "1.2": AutoencoderConfig(
        version="1.2",
        networks=(
            ImageConfig(widths=(16, 16, 32, 64), layers=1, groups=4),
            TemporalConfig(filters=16, blocks=1, groups=4),
        ),
        stages=(
            Stage(steps=2500, batch=16, frames=1, size=32, rate=1e-3, final_rate=2e-4, part="image decoder"),
            Stage(steps=2000, batch=16, frames=1, size=64, rate=5e-4, final_rate=3e-5, part="image decoder"),
            Stage(steps=1500, batch=8, frames=17, size=64, rate=1e-3, final_rate=5e-5, part="temporal decoder"),
            Stage(steps=3000, batch=1, frames=17, size=64, rate=3e-4, final_rate=1e-5, part="decoder"),
        ),
        noise=0.15,
        equal_channels=True,
    ),
    "2.0": AutoencoderConfig(
        version="2.0",
        networks=(HunyuanConfig(widths=(16, 16, 32, 64), layers=1, groups=4),),
        # At twice these rates the first hundred steps got it 2 dB less far. Adam alone got crops to 18.2 dB in its
        # fourth fifty steps, with Muon at 6 times its rate to 20.5 (20.0 at 10 times).
        stages=(
            Stage(steps=2000, batch=8, frames=5, size=32, rate=1e-3, final_rate=2e-4, part="decoder"),
            Stage(steps=1000, batch=1, frames=17, size=64, rate=3e-4, final_rate=1e-5, part="decoder"),
        ),
        noise=0.0,
    ),
}


def empty_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """The network under the key names of the released file; its random start is not seeded."""
    return NETWORKS[config.version](*config.networks)


def new_autoencoder(config: AutoencoderConfig) -> Autoencoder:
    """A seeded network with a working encoder."""
    torch.manual_seed(config.seed)
    model = empty_autoencoder(config)
    start(model, analysed(config), config.colour_weight)
    return model


def analysed(config: AutoencoderConfig) -> Tensor:
    """Drawn pictures [N, 3, H, W] whose statistics decide the code."""
    return clips_to_analyse(config.analysed_clips, config.picture_size, config.scenes, config.seed)


def code_of(config: AutoencoderConfig) -> LatentCode:
    """What a finished autoencoder of a recipe codes, known before its decoder is."""
    return LatentCode(finished(new_autoencoder(config), config))


def finished(model: Autoencoder, config: AutoencoderConfig) -> Autoencoder:
    """``model`` as it is exported when its decoders are done."""
    if config.equal_channels:
        equalise(model, analysed(config))
    return model


def batch_of(config: AutoencoderConfig, stage: Stage, step: int) -> Tensor:
    """The crops of one step, [B, 3, T, H, W]; the same for the same step."""
    rng = np.random.default_rng([config.seed, step])
    side = config.picture_size
    scenes = [draw_scene(rng, GROUP_FRAMES, 1.0, config.scenes) for _ in range(stage.batch)]
    starts = (GROUP_FRAMES - stage.frames) // FRAMES_PER_LATENT + 1
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

    def __init__(
        self, config: AutoencoderConfig, folder: Path, lpips: LPIPS | None = None,
        encoder: Mapping[str, Tensor] | None = None,
    ) -> None:  # fmt: skip
        self.config, self.lpips = config, lpips
        self.progress = Progress(folder)
        self.model = new_autoencoder(config)
        self.model.load_state_dict(encoder or {}, strict=False)
        self.average = MovingAverage(self.model, config.average)
        self.optimiser = torch.optim.Adam(self.model.parameters(), betas=(0.9, 0.98), fused=True)
        self.muon = Muon(matrices(self.model)) if config.muon else None
        self.critic = Critic(config.critic) if any(stage.adversarial for stage in config.stages) else None
        self.code: LatentCode | None = None
        self.done = 0
        if (state := self.progress.load()) is not None:
            self.progress.check(state["model"], self.model)
            for name, part in self._parts().items():
                part.load_state_dict(state[name])
            self.done = state["step"]

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.model, "average": self.average, "optimiser": self.optimiser}
        if self.critic is not None:
            parts |= {"critic": self.critic, "critic's optimiser": self.critic.optimiser}
        if self.muon is not None:
            parts["muon"] = self.muon
        return parts

    def update(self, stage: Stage, inner: int) -> None:
        """One step: the autoencoder, then, in an adversarial stage, the discriminator on the same clips."""
        torch.manual_seed(self.config.seed * 1_000_003 + self.done)
        video = batch_of(self.config, stage, self.done)
        loss, again, numbers = self.loss(video, stage)
        rate = rate_at(stage, inner, self.config.warm_up)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.config.gradient_limit)
        if self.muon is not None:
            self.muon.step(self.config.muon * rate)
        self.optimiser.step()
        self.average.update(self.model)
        if stage.adversarial and self.critic is not None:
            numbers["discriminator"] = self.critic.learn(video, again, self.done)
        self.progress.write(self.done, **numbers, gradient=norm.item())
        self.done += 1
        if self.progress.due():
            self.save(video)

    def loss(self, video: Tensor, stage: Stage) -> tuple[Tensor, Tensor, dict[str, float]]:
        """(loss, reconstruction, numbers for the log): L1 per value, weighted KL (summed per clip as in v1.3, divided
        by the elements of a frame), and the judges' terms."""
        again, target, posterior = self.reconstruction(video, stage)
        loss = (again - target).abs().mean()
        squared = (again - target).detach().square().mean().item()
        # Pixels span 2, so the peak is 2; for latents of unit size the same number is only a yardstick.
        numbers = {"l1": loss.item(), "psnr": 10 * math.log10(4 / max(squared, 1e-12))}
        if self.lpips is not None and target is video:
            frames, made = (clip.transpose(1, 2).flatten(0, 1) for clip in (video, again))
            loss = loss + self.config.perceptual_weight * self.lpips(frames, made).mean()
        if stage.adversarial and self.critic is not None:
            loss = loss + self.critic.reward(again, loss, last_layer(self.model), self.done)
        if posterior is not None:
            mean, log_variance = posterior.mean, posterior.log_variance
            kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).sum() / video.shape[0]
            loss = loss + self.config.kl_weight * kl / video[0, :, 0].numel()
            numbers["kl"] = kl.item() / mean[0].numel()
        return loss, again, numbers

    def reconstruction(self, video: Tensor, stage: Stage) -> tuple[Tensor, Tensor, Posterior | None]:
        """(what came back, what should have, the posterior where the encoder learns too)."""
        if stage.part == "all":
            if isinstance(self.model, OpenSora12):
                raise ValueError("The encoder of 1.2 stays a linear code; choose one of its decoders as the part.")
            self.code = None
            moments = (
                self.model.moments(video, None)
                if isinstance(self.model, OpenSora13)
                else self.model.encode_piece(video)
            )
            posterior = Posterior(moments)
            drawn = posterior.draw(torch.randn_like(posterior.mean))
            return self.model.decode_piece(drawn, frames=video.shape[2]), video, posterior
        code = self._code(video)
        if stage.part == "decoder":
            latents = self._noisy(code.of_frames(video[:, :, ::FRAMES_PER_LATENT]))
            return self.model.decode_piece(latents, frames=video.shape[2]), video, None
        if not isinstance(self.model, OpenSora12):
            raise ValueError(f"Open-Sora {self.config.version} has no {stage.part}.")
        pictures = code.of_frames(video)
        if stage.part == "image decoder":
            return self.model.spatial_vae.decode(pictures + self._noise_on(pictures), None), video, None
        latents = self._noisy(pictures[:, :, ::FRAMES_PER_LATENT])
        return self.model.temporal_vae.decode(latents, video.shape[2]), pictures, None

    def _code(self, video: Tensor) -> LatentCode:
        """What the frozen encoder computes, measured once."""
        if self.code is None:
            self.code = LatentCode(self.model)
            self.code.check(self.model, video)
        return self.code

    def _noisy(self, latents: Tensor) -> Tensor:
        """The autoencoder's own latents of normalised ones, with noise."""
        latents = self.model.denormalise(latents)
        noise = self._noise_on(latents)
        if self.config.version == "1.2":
            noise = noise * torch.tensor(V12_SCALE)[:, None, None, None]
        return latents + noise

    def _noise_on(self, latents: Tensor) -> Tensor:
        """Noise [B, C, T, h, w] as the posterior that the start gives has it, or up to ``config.noise`` instead."""
        deviation = math.exp(LOG_VARIANCE / 2) * torch.ones(len(latents), 1, 1, 1, 1)
        if self.config.noise:
            deviation += (self.config.noise - deviation) * torch.rand_like(deviation)
        return deviation * torch.randn_like(latents)

    def save(self, video: Tensor) -> None:
        """Write a checkpoint, the curves and a sheet of ``video`` beside its reconstruction."""
        self.progress.save({"step": self.done} | {name: part.state_dict() for name, part in self._parts().items()})
        with torch.no_grad():
            again = self.model.decode(self.model.encode(video), video.shape[2])
        rows = [clip for pair in zip(video[:6], again[:6], strict=True) for clip in pair]
        sheet = contact_sheet(rows, every=max(1, video.shape[2] // 8), scale=2)
        sheet.save(self.progress.folder / "reconstruction.png")


def matrices(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """What Muon trains: all that convolutions and linear layers weigh, except in the layer that makes pixels."""
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "decoder.conv_out" not in name:
            yield name, weight


def last_layer(model: Autoencoder) -> Tensor:
    """The weights that make pixels, at which an adversarial term is balanced."""
    decoder = model.spatial_vae.module.decoder if isinstance(model, OpenSora12) else model.decoder
    return getattr(decoder.conv_out, "conv", decoder.conv_out).weight


def train(
    config: AutoencoderConfig, folder: Path, last_step: int | None = None, lpips: LPIPS | None = None,
    encoder: Mapping[str, Tensor] | None = None,
) -> tuple[Autoencoder, int]:  # fmt: skip
    """Run or resume; returns the averaged model and the number of steps done. ``encoder``: :func:`encoder_of` one that
    diffusion models know already."""
    run = Run(config, folder, lpips, encoder)
    for step, stage, inner in stage_steps(config):
        if step >= run.done and (last_step is None or step < last_step):
            run.update(stage, inner)
    run.save(batch_of(config, config.stages[-1], run.done))
    return run.average.applied_to(run.model), run.done


def encoder_of(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those of an exported autoencoder that make latents."""
    return {name: value.float() for name, value in weights.items() if not any(part in name for part in DECODING)}


def check_encoder(encoder: Mapping[str, Tensor], config: AutoencoderConfig, file: Path) -> None:
    """Raises Refused unless all weights of ``encoder``, from ``file``, are of an autoencoder of ``config``."""
    shapes = {name: value.shape for name, value in empty_autoencoder(config).state_dict().items()}
    if not encoder or any(shapes.get(name) != value.shape for name, value in encoder.items()):
        raise Refused(f"'{file}' holds no encoder of {config.version}.")


def averaged_autoencoder(config: AutoencoderConfig, folder: Path) -> Autoencoder:
    """The averaged network of a run's last checkpoint."""
    progress, model = Progress(folder), empty_autoencoder(config)
    state = progress.read()
    progress.check(state["model"], model)
    average = MovingAverage(model, config.average)
    average.load_state_dict(state["average"])
    return finished(average.applied_to(model), config).eval()


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m training autoencoder", description=__doc__.splitlines()[0])
    parser.add_argument(
        "folder", type=option.new_folder, help="folder of the run; an interrupted run there is continued"
    )
    parser.add_argument("--release", choices=sorted(RECIPES), default="1.3", help="which Open-Sora")
    parser.add_argument(
        "--encoder",
        type=option.file,
        help="an exported autoencoder: its encoder stays and a decoder for it is trained anew",
    )
    parser.add_argument("--until", type=option.count, default=None, help="stop after this many steps")
    parser.add_argument(
        "--lpips", type=option.file, help="LPIPS weights (safetensors) for a perceptual term; none: without"
    )
    parser.add_argument(
        "--calibrate", action="store_true", help=f"do {CALIBRATION} steps apart and tell the whole time"
    )
    options = parser.parse_args(arguments)
    option.check_use(parser, options, "until", not options.calibrate, "--calibrate tells the time of all steps")
    config, lpips = RECIPES[options.release], options.lpips and load_lpips(options.lpips)
    encoder = None
    if options.encoder is not None:
        encoder = encoder_of(weights_in(options.encoder))
        check_encoder(encoder, config, options.encoder)
    if options.calibrate:
        calibrate(partial(calibration_run, config, lpips, encoder), [stage.steps for stage in config.stages])
    else:
        if encoder is not None:
            option.say_what_comes_late("--encoder", options.folder)
        train(config, options.folder, options.until, lpips, encoder)


def calibration_run(
    config: AutoencoderConfig, lpips: LPIPS | None, encoder: Mapping[str, Tensor] | None, steps: Sequence[int],
    folder: Path,
) -> Iterator[None]:  # fmt: skip
    """A run with so many steps in every stage; each step taken is one item."""
    stages = tuple(replace(stage, steps=count) for stage, count in zip(config.stages, steps, strict=True))
    run = Run(replace(config, stages=stages), folder, lpips, encoder)
    for _, stage, inner in stage_steps(run.config):
        run.update(stage, inner)
        yield
