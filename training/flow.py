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
from .progress import Progress
from .text_encoder import TextEncoder, TextEncoderConfig, Tokenizer


@dataclass(frozen=True)
class FlowConfig:
    """Everything that decides the result; the defaults made the shipped files."""

    network: STDiT3Config = STDiT3Config(
        version="1.3", depth=3, hidden_size=120, num_heads=5, in_channels=16, caption_channels=64,
        kernel_size=RELEASED_KERNEL_SIZE, use_spatial_rope=True,
    )  # fmt: skip
    text: TextEncoderConfig = TextEncoderConfig()
    batches: BatchConfig = field(default_factory=BatchConfig)
    steps: int = 1600
    rate: float = 2e-3
    final_rate: float = 1e-4
    warm_up: int = 60
    average: float = 0.99
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
    """Upstream's start: Xavier for linear layers, small embedders, silent cross attention and last layer."""
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


def train(config: FlowConfig, folder: Path, tokenizer: Tokenizer) -> Pair:
    """Run or resume to the end; returns the averaged networks."""
    progress = Progress(folder)
    code = LatentCode(new_autoencoder(AutoencoderConfig()).encoder)
    pair = Pair(config)
    average = MovingAverage(pair, config.average)
    trained = [weight for weight in pair.parameters() if weight.requires_grad]
    optimiser = torch.optim.Adam(trained, betas=(0.9, 0.98), fused=True)
    done = 0
    if (state := progress.load()) is not None:
        pair.load_state_dict(state["model"])
        average.load_state_dict(state["average"])
        optimiser.load_state_dict(state["optimiser"])
        done = state["step"]

    def save() -> None:
        progress.save(
            {
                "step": done,
                "model": pair.state_dict(),
                "average": average.state_dict(),
                "optimiser": optimiser.state_dict(),
            }
        )

    while done < config.steps:
        torch.manual_seed(config.seed * 1_000_003 + done)
        batch = batch_of(config.batches, code, config.network.version, config.seed, done)
        loss = loss_of(pair, tokenizer, batch)
        for group in optimiser.param_groups:
            group["lr"] = rate_at(config, done)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        norm = nn.utils.clip_grad_norm_(trained, config.gradient_limit)
        optimiser.step()
        average.update(pair)
        kind = "given loss" if batch.given else "image loss" if batch.bucket.frames == 1 else "loss"
        progress.write(done, **{kind: loss.item(), "gradient": norm.item()})
        done += 1
        if progress.due():
            save()
    save()
    return average.applied_to(pair)


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
