"""Trains the tiny diffusion model and its text encoder together: ``python -m training flow OUT … [--release 1.2]``.

Rectified flow (arXiv 2209.03003): x_t = (1 - τ)·x₀ + τ·ε, the network predicts x₀ - ε. Text is dropped for some rows
(they see the fixed null text), given frames are told in some steps, and some rows of those get empty frames instead,
which is what guidance on text and on images needs. The model of 1.2 goes on from that of 1.3: whatever has the same
name and shape in both starts where 1.3 was when it knew the words, and the text encoder stays, so that one serves both.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..opensora_models.frames import VERSIONS, Version
from ..opensora_models.sampling.schedule import TRAIN_TIMESTEPS
from ..opensora_models.stdit3.conditions import GivenFrames
from ..opensora_models.stdit3.network import STDiT3
from .autoencoder import RECIPES as AUTOENCODERS
from .autoencoder import new_autoencoder
from .average import MovingAverage
from .clip_bank import ClipBank, expected
from .flow_batches import TEXT_LENGTH, Batch, batch_of
from .flow_recipes import RECIPES, FlowConfig, Phase
from .latents import LatentCode
from .muon import Muon
from .progress import Progress
from .text_encoder import TextEncoder, Tokenizer

# Upstream's gates start near 0, which is safe for 28 pairs of blocks; three pairs learn faster with open ones.
START_GATE = 0.5
GATE_ROWS = (2, 5)  # of a block's modulation table: after self attention, after the MLP
MOST_LATENT_FRAMES: dict[Version, int] = {"1.3": 10, "1.2": 15}  # that the clock tells apart
LEAST_APART = 0.5  # squared distance of two clips, of latents whose deviation is about 1


Before = Callable[[int], "Pair"]
"""The averaged networks of another run after one of its phases."""


class Pair(nn.Module):
    """The two networks that are trained together, and the mask that padded captions need."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        self.text_mask: Tensor | None = None
        self.network = STDiT3(config.network, attention=self._attention)
        self.text_encoder = TextEncoder(config.text)
        initialise(self.network)
        self.clock = nn.Linear(config.network.hidden_size, MOST_LATENT_FRAMES[config.network.version])
        self._tokens: Tensor | None = None
        self.network.temporal_blocks[-1].register_forward_hook(self._remember)

    def _remember(self, block: nn.Module, inputs: Any, tokens: Tensor) -> None:
        self._tokens = tokens.float() if self.training else None

    def clock_loss(self) -> Tensor:
        """How well the last tokens [B, T, S, C] of the network tell the number of their latent frame."""
        if self._tokens is None:
            raise ValueError("The clock is read after a step of training, not before.")
        batch, frames, positions, width = self._tokens.shape
        told = self.clock(F.layer_norm(self._tokens, (width,))).flatten(0, 2)
        wanted = torch.arange(frames)[None, :, None].expand(batch, -1, positions).flatten()
        return F.cross_entropy(told, wanted)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **_: Any) -> Tensor:
        """Attention over [N, heads, L, d]; calls on captions leave padded tokens out."""
        keep = self.text_mask if k.shape[2] == TEXT_LENGTH else mask
        with torch.autocast("cpu", enabled=False):  # its backward pass is many times slower in bfloat16
            out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=keep)
        return out.transpose(1, 2).flatten(2)

    def states(self, ids: Tensor, kept: Tensor, has_text: Tensor) -> Tensor:
        """Text states [B, TEXT_LENGTH, C]; rows without text get the null text."""
        null = self.network.y_embedder.y_embedding[:TEXT_LENGTH]
        return torch.where(has_text[:, None, None], self.text_encoder(ids, kept), null)

    def velocity(
        self, x: Tensor, times: Tensor, states: Tensor, kept: Tensor, batch: Batch, given: GivenFrames | None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The network's velocity for padded captions."""
        self.text_mask = kept[:, None, None, :]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.training):
            out = self.network(
                x, times, states, fps=batch.fps, height=batch.bucket.height, width=batch.bucket.width, given=given,
                frame_mask=frame_mask,
            )  # fmt: skip
        return out[:, : x.shape[1]].float()


def initialise(network: STDiT3) -> None:
    """Upstream's start, gates excepted: Xavier for linear layers, small embedders, silent cross attention and last
    layer."""
    config = network.config
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            nn.init.normal_(module.weight, 0.0, config.hidden_size**-0.5)
        elif isinstance(module, nn.Conv3d):
            nn.init.xavier_uniform_(module.weight.view(module.weight.shape[0], -1))
            nn.init.zeros_(module.bias)
    for embedder in (network.t_embedder, network.fps_embedder):
        for index in (0, 2):
            nn.init.normal_(embedder.mlp[index].weight, std=0.02)
    nn.init.normal_(network.t_block[1].weight, std=0.02)
    if config.takes_given_frames:  # silent at first, as upstream adds them to a model that exists
        for embedder in (network.x_embedder_cond, network.x_embedder_cond_mask):
            nn.init.zeros_(embedder.proj.weight)
    for block in network.blocks():
        nn.init.zeros_(block.cross_attn.proj.weight)
        with torch.no_grad():
            block.scale_shift_table.weight[list(GATE_ROWS)] += START_GATE
    nn.init.zeros_(network.final_layer.linear.weight)
    # The null text is never trained: N(0, 1)/sqrt(width), as upstream.
    nn.init.normal_(network.y_embedder.y_embedding, 0.0, config.caption_channels**-0.5)


def given_frames(pair: Pair, batch: Batch) -> GivenFrames | None:
    """What the network is told about given frames; dropped rows keep the mask and lose the latents, as in guidance."""
    if not batch.given:
        return None
    mask = torch.zeros_like(batch.latents)
    mask[:, :, list(batch.given)] = 1.0
    latents = batch.latents * mask * batch.given_kept[:, None, None, None, None]
    null = pair.network.y_embedder.y_embedding[:TEXT_LENGTH].expand(len(latents), -1, -1)
    return GivenFrames(latents, mask, batch.given, null)


def losses_of(pair: Pair, tokenizer: Tokenizer, batch: Batch) -> tuple[Tensor, Tensor | None]:
    """Mean squared error of the velocity, where clean frames of a frame mask do not count, and how much of what rivals
    show the guess shows."""
    ids, kept = tokenizer.padded(batch.captions, TEXT_LENGTH)
    states = pair.states(ids, kept, batch.has_text)
    noise = torch.randn_like(batch.latents)
    level = (batch.times / TRAIN_TIMESTEPS)[:, None, None, None, None]
    x = (1 - level) * batch.latents + level * noise
    if batch.frame_mask is not None:
        x = torch.where(batch.frame_mask[:, None, :, None, None], x, batch.latents)
    got = pair.velocity(x, batch.times, states, kept, batch, given_frames(pair, batch), batch.frame_mask)
    # x0 - noise is (x0 - x) / level; a bank gives the mean of all x0 that x may become.
    bank = batch.latents[:, None] if batch.bank is None else batch.bank
    error = got - (expected(x, level.flatten(), bank) - x) / level
    taken = None if batch.rivals is None else mistaken(error * level, x, level.flatten(), bank, batch.rivals)
    if batch.frame_mask is None:
        return error.square().mean(), taken
    return error.square().mean(dim=(1, 3, 4))[batch.frame_mask].mean(), taken


def mistaken(error: Tensor, x: Tensor, level: Tensor, bank: Tensor, rivals: Tensor) -> Tensor:
    """Mean squared share of what sets rivals apart that ``error``, of the clean clip, shows: 0 where ``x`` is read as
    its own words say, 1 where it is read as the rival's. Differences that hardly are any count little."""
    right = expected(x, level, bank)
    apart = torch.stack([expected(x, level, rivals[:, number]) - right for number in range(rivals.shape[1])]).flatten(2)
    shown = (error.flatten(1) * apart).sum(2) / apart.square().sum(2).clamp(min=LEAST_APART)
    return shown.square().mean()


def rate_at(config: FlowConfig, phase: Phase, step: int) -> float:
    """Learning rate at a step of a phase: a short rise, then a cosine from rate to final_rate."""
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / phase.steps)))
    highest = config.rate * phase.rate_share
    return min(1.0, (step + 1) / config.warm_up) * (config.final_rate + (highest - config.final_rate) * fall)


class Run:
    """One training run below a folder: the networks, their optimisers and where it stands."""

    def __init__(
        self, config: FlowConfig, folder: Path, tokenizer: Tokenizer, before: Before | None = None
    ) -> None:  # fmt: skip
        self.config, self.tokenizer, self.before = config, tokenizer, before
        self.progress = Progress(folder)
        code = LatentCode(new_autoencoder(AUTOENCODERS[config.network.version]))
        self.bank = ClipBank(code, config.phases[0].batches.bank_scenes, config.bank)
        self.pair = Pair(config)
        self.average = MovingAverage(self.pair, config.average)
        self.trained = [weight for weight in self.pair.parameters() if weight.requires_grad]  # phases freeze some
        self.adam = torch.optim.Adam(self.trained, betas=(0.9, 0.98), fused=True)
        self.muon = Muon(
            (name, weight) for name, weight in self.pair.network.named_parameters()
            if "_blocks." in name and weight.ndim == 2 and "scale_shift_table" not in name
        )  # fmt: skip
        self.done = 0
        if (state := self.progress.load()) is not None:
            for name, part in self._parts().items():
                if name in state:
                    part.load_state_dict(state[name])
            self.done = state["step"]

    def _parts(self) -> dict[str, Any]:
        return {"model": self.pair, "average": self.average, "optimiser": self.adam, "muon": self.muon}

    def update(self) -> None:
        """One step."""
        config = self.config
        number, step = config.phase_at(self.done)
        phase = config.phases[number]
        if step == 0:
            self._begin(phase, number)
        if self.bank.scenes != phase.batches.bank_scenes:
            self.bank = ClipBank(self.bank.code, phase.batches.bank_scenes, config.bank)
        self.pair.text_encoder.requires_grad_(phase.trains_text)
        torch.manual_seed(config.seed * 1_000_003 + self.done)
        batch = batch_of(phase.batches, self.bank, config.seed, self.done)
        loss, numbers = self._loss(batch)
        rate = rate_at(config, phase, step)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, config.gradient_limit)
        self.muon.step(config.muon_rate * rate / config.rate)
        self.adam.step()
        self.average.update(self.pair)
        self.progress.write(self.done, **numbers, gradient=norm.item())
        self.done += 1
        if step + 1 == phase.steps:
            self.progress.keep(f"phase-{number + 1}", self._state())
        if self.progress.due():
            self.save()

    def _begin(self, phase: Phase, number: int) -> None:
        if number > 0:
            self.average.applied_to(self.pair)
            self.average.forget()
        if phase.before is not None and self.before is not None:
            earlier = self.before(phase.before)
            if number == 0:
                take_over(self.pair, earlier)
            else:
                take_over(self.pair.text_encoder, earlier.text_encoder)

    def _loss(self, batch: Batch) -> tuple[Tensor, dict[str, float]]:
        """The loss of one step and its parts for the log."""
        loss, taken = losses_of(self.pair, self.tokenizer, batch)
        kind = "given loss" if batch.given else "image loss" if batch.bucket.frames == 1 else "loss"
        numbers = {kind: loss.item()}
        if taken is not None:
            numbers["mistaken"] = taken.item()
            loss = loss + self.config.mistaken * taken
        if batch.bucket.frames > 1:
            clock = self.pair.clock_loss()
            numbers["clock"] = clock.item()
            loss = loss + self.config.clock * clock
        return loss, numbers

    def save(self) -> None:
        """Write a checkpoint and the curves."""
        self.progress.save(self._state())

    def _state(self) -> dict[str, Any]:
        return {"step": self.done} | {name: part.state_dict() for name, part in self._parts().items()}


def take_over(mine: nn.Module, theirs: nn.Module) -> None:
    """Copy from ``theirs`` every weight that has the same name and shape in ``mine``."""
    shapes = {name: value.shape for name, value in mine.state_dict().items()}
    mine.load_state_dict(
        {name: value for name, value in theirs.state_dict().items() if shapes.get(name) == value.shape}, strict=False
    )


def train(config: FlowConfig, folder: Path, tokenizer: Tokenizer, before: Before | None = None) -> Pair:
    """Run or resume to the end; returns the averaged networks."""
    run = Run(config, folder, tokenizer, before)
    while run.done < config.steps:
        run.update()
    run.save()
    return averaged(config, folder)


def averaged(config: FlowConfig, folder: Path, phase: int | None = None) -> Pair:
    """The averaged networks of a run's last checkpoint, or of the end of one of its phases (counted from 1)."""
    progress = Progress(folder)
    state = progress.read() if phase is None else progress.kept(f"phase-{phase}")
    pair = Pair(config)
    pair.load_state_dict(state["model"])
    average = MovingAverage(pair, config.average)
    average.load_state_dict(state["average"])
    average.applied_to(pair)
    if state["step"] == config.steps and (stays := config.phases[-1].stays):
        older = averaged(config, folder, len(config.phases) - 1).state_dict()
        pair.load_state_dict({name: value.lerp(older[name], stays) for name, value in pair.state_dict().items()})
    return pair.eval()


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m training flow", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the run; an interrupted run there is continued")
    parser.add_argument("--tokenizer", type=Path, required=True, help="ComfyUI's comfy/text_encoders/t5_tokenizer")
    parser.add_argument("--release", choices=VERSIONS, default="1.3", help="which Open-Sora")
    parser.add_argument("--before", type=Path, help="run of 1.3, at least as far as the one of 1.2 goes on from it")
    options = parser.parse_args(arguments)
    if (options.release == "1.2") != (options.before is not None):
        parser.error("--before belongs to --release 1.2, which cannot do without it")
    before = None if options.before is None else partial(averaged, RECIPES["1.3"], options.before)
    train(RECIPES[options.release], options.folder, Tokenizer(options.tokenizer), before)
