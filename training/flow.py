"""Trains the tiny diffusion model and its text encoder together: ``python -m training flow OUT …``.

Rectified flow (arXiv 2209.03003): x_t = (1 - τ)·x₀ + τ·ε, the network predicts x₀ - ε. Text is dropped for some rows
(they see the fixed null text), given frames are told in some steps, and some rows of those get empty frames instead,
which is what guidance on text and on images needs.
"""

from __future__ import annotations

import argparse
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..opensora_models.sampling.schedule import TRAIN_TIMESTEPS
from ..opensora_models.stdit3.conditions import GivenFrames
from ..opensora_models.stdit3.config import RELEASED_KERNEL_SIZE, STDiT3Config
from ..opensora_models.stdit3.network import STDiT3
from .autoencoder import AutoencoderConfig, new_autoencoder
from .average import MovingAverage
from .flow_batches import TEXT_LENGTH, Batch, BatchConfig, batch_of
from .latents import LatentCode
from .muon import Muon
from .progress import Progress
from .text_encoder import TextEncoder, TextEncoderConfig, Tokenizer

# Upstream's gates start near 0, which is safe for 28 pairs of blocks; three pairs learn faster with open ones.
START_GATE = 0.5
GATE_ROWS = (2, 5)  # of a block's modulation table: after self attention, after the MLP


@dataclass(frozen=True)
class FlowConfig:
    """Everything that decides the result; the defaults made the shipped files."""

    network: STDiT3Config = STDiT3Config(
        version="1.3", depth=3, hidden_size=120, num_heads=5, in_channels=16, caption_channels=64,
        kernel_size=RELEASED_KERNEL_SIZE, use_spatial_rope=True,
    )  # fmt: skip
    text: TextEncoderConfig = TextEncoderConfig()
    batches: BatchConfig = field(default_factory=BatchConfig)
    steps: int = 4000
    rate: float = 2e-3
    final_rate: float = 1e-4
    warm_up: int = 60
    muon_rate: float = 0.03  # of the blocks' matrices, which Muon trains; Adam trains the rest
    average: float = 0.995
    gradient_limit: float = 1.0
    seed: int = 13


class Pair(nn.Module):
    """The two networks that are trained together, and the mask that padded captions need."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        self.text_mask: Tensor | None = None
        self.network = STDiT3(config.network, attention=self._attention)
        self.text_encoder = TextEncoder(config.text)
        initialise(self.network)

    def _attention(self, q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, **_: Any) -> Tensor:
        """Attention over [N, heads, L, d]; calls on captions leave padded tokens out."""
        keep = self.text_mask if k.shape[2] == TEXT_LENGTH else mask
        return F.scaled_dot_product_attention(q, k, v, attn_mask=keep).transpose(1, 2).flatten(2)

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
        out = self.network(
            x, times, states, fps=batch.fps, height=batch.bucket.height, width=batch.bucket.width, given=given,
            frame_mask=frame_mask,
        )  # fmt: skip
        return out[:, : x.shape[1]]


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


def loss_of(pair: Pair, tokenizer: Tokenizer, batch: Batch) -> Tensor:
    """Mean squared error of the velocity; clean frames of a frame mask do not count."""
    ids, kept = tokenizer.padded(batch.captions, TEXT_LENGTH)
    states = pair.states(ids, kept, batch.has_text)
    noise = torch.randn_like(batch.latents)
    level = (batch.times / TRAIN_TIMESTEPS)[:, None, None, None, None]
    x = (1 - level) * batch.latents + level * noise
    if batch.frame_mask is not None:
        x = torch.where(batch.frame_mask[:, None, :, None, None], x, batch.latents)
    got = pair.velocity(x, batch.times, states, kept, batch, given_frames(pair, batch), batch.frame_mask)
    error = (got - (batch.latents - noise)).square()
    if batch.frame_mask is None:
        return error.mean()
    return error.mean(dim=(1, 3, 4))[batch.frame_mask].mean()


def rate_at(config: FlowConfig, step: int) -> float:
    """A short rise, then a cosine from rate to final_rate."""
    fall = 0.5 * (1 + math.cos(math.pi * min(1.0, step / config.steps)))
    return min(1.0, (step + 1) / config.warm_up) * (config.final_rate + (config.rate - config.final_rate) * fall)


class Run:
    """One training run below a folder: the networks, their optimisers and where it stands."""

    def __init__(self, config: FlowConfig, folder: Path, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.progress = Progress(folder)
        self.code = LatentCode(new_autoencoder(AutoencoderConfig()).encoder)
        self.pair = Pair(config)
        self.average = MovingAverage(self.pair, config.average)
        self.trained = [weight for weight in self.pair.parameters() if weight.requires_grad]
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
        torch.manual_seed(config.seed * 1_000_003 + self.done)
        batch = batch_of(config.batches, self.code, config.network.version, config.seed, self.done)
        loss = loss_of(self.pair, self.tokenizer, batch)
        rate = rate_at(config, self.done)
        for group in self.adam.param_groups:
            group["lr"] = rate
        self.adam.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(self.trained, config.gradient_limit)
        self.muon.step(config.muon_rate * rate / config.rate)
        self.adam.step()
        self.average.update(self.pair)
        kind = "given loss" if batch.given else "image loss" if batch.bucket.frames == 1 else "loss"
        self.progress.write(self.done, **{kind: loss.item(), "gradient": norm.item()})
        self.done += 1
        if self.progress.due():
            self.save()

    def save(self) -> None:
        """Write a checkpoint and the curves."""
        self.progress.save({"step": self.done} | {name: part.state_dict() for name, part in self._parts().items()})


def train(config: FlowConfig, folder: Path, tokenizer: Tokenizer) -> Pair:
    """Run or resume to the end; returns the averaged networks."""
    run = Run(config, folder, tokenizer)
    while run.done < config.steps:
        run.update()
    run.save()
    return run.average.applied_to(run.pair)


def averaged(config: FlowConfig, folder: Path) -> Pair:
    """The averaged networks of a run's last checkpoint."""
    state = Progress(folder).read()
    pair = Pair(config)
    pair.load_state_dict(state["model"])
    average = MovingAverage(pair, config.average)
    average.load_state_dict(state["average"])
    return average.applied_to(pair).eval()


def main(arguments: list[str]) -> None:
    """Command line of this module."""
    parser = argparse.ArgumentParser(prog="python -m training flow", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="folder of the run; an interrupted run there is continued")
    parser.add_argument("--tokenizer", type=Path, required=True, help="ComfyUI's comfy/text_encoders/t5_tokenizer")
    parser.add_argument("--steps", type=int, default=FlowConfig.steps)
    options = parser.parse_args(arguments)
    train(replace(FlowConfig(), steps=options.steps), options.folder, Tokenizer(options.tokenizer))
