"""The tiny 2.0 in the form that training calls it: MMDiT, the T5 of the other two models and a frozen CLIP-L."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..opensora_models.mmdit.blocks import DoubleBlock, SingleBlock
from ..opensora_models.mmdit.config import MMDiTConfig
from ..opensora_models.mmdit.modulation import Modulation
from ..opensora_models.mmdit.network import MMDiT
from ..opensora_models.mmdit.tokens import reference_features
from ..opensora_models.sampling.schedule import TRAIN_TIMESTEPS
from .clip_l import ClipL, ClipLConfig, PairTokenizer
from .flow_batches import Batch, Bucket
from .flow_recipes import FlowConfig
from .matrix_type import fast_matrices
from .pair import OPERATIONS, START_GATE, Pair, float_attention
from .scenes import SHAPES
from .text_encoder import TextEncoder

MOST_LATENT_FRAMES = 13  # that the clock tells apart
GATE = 2  # of every three vectors: shift, scale, gate


class MMDiTPair(nn.Module):
    """The same face as :class:`.pair.Pair`. Only the network and what reads clock and shape off it learn."""

    clock_losses = Pair.clock_losses
    shape_losses = Pair.shape_losses

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        if not isinstance(config.network, MMDiTConfig):
            raise TypeError(f"MMDiTPair needs an MMDiTConfig, not {type(config.network).__name__}")
        torch.manual_seed(config.seed)
        self.network = MMDiT(config.network, operations=OPERATIONS, attention=float_attention)
        self.text_encoder = TextEncoder(config.text).requires_grad_(False)
        initialise(self.network)
        self.clock = nn.Linear(config.network.hidden_size, MOST_LATENT_FRAMES)
        self.clip_l = ClipL(ClipLConfig(width=config.network.vec_in_dim))
        self.shape_reader = nn.Linear(config.network.hidden_size, len(SHAPES))
        self._pooled: dict[str, Tensor] = {}

    def read(self, tokenizer: PairTokenizer, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """T5's states [B, text_tokens, C] of all tokens, padding seen like words, and CLIP-L's [B, width]."""
        ids, _ = tokenizer.padded(captions, self.network.config.text_tokens)
        with torch.no_grad():
            states = self.text_encoder(ids)
        new = [caption for caption in dict.fromkeys(captions) if caption not in self._pooled]
        if new:
            pooled = self.clip_l([tokenizer.clip_ids(caption) for caption in new])
            self._pooled.update(zip(new, pooled, strict=True))
        return states, torch.stack([self._pooled[caption] for caption in captions])

    def conditions(self, tokenizer: PairTokenizer, batch: Batch) -> dict[str, Any]:
        """What the network is told beside the noise; rows without text get the encoded ""."""
        worded = [caption if has else "" for caption, has in zip(batch.captions, batch.has_text.tolist(), strict=True)]
        states, pooled = self.read(tokenizer, worded)
        reference = None
        if batch.given:
            mask = torch.zeros(batch.latents.shape[2])
            mask[list(batch.given)] = 1.0
            # A row without reference is not told the mask either.
            kept = batch.given_kept[:, None, None, None, None]
            reference = reference_features(batch.latents, mask) * kept
        return {"states": states, "pooled": pooled, "reference": reference}

    def velocity_and_tokens(
        self, x: Tensor, times: Tensor, states: Tensor, pooled: Tensor, bucket: Bucket,
        reference: Tensor | None = None, frame_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """Clean minus noise [B, C, T, h, w], and the tokens [B, T, S, C] after the last block.

        ``times`` [B] are 0 … 1000; the network rounds them as 2.0's does. ``bucket`` says nothing that it reads.
        """
        if frame_mask is not None:
            raise ValueError("Open-Sora 2.0 has one time per clip; leave frame masks away.")
        last: list[Tensor] = []

        def noting(args: dict[str, Any]) -> dict[str, Any]:
            last[:] = [args["img"]]
            return args

        options = {"patches": {"single_block": [noting]}}
        with fast_matrices(self.training):
            out = self.network(
                x, times / TRAIN_TIMESTEPS, states, pooled, reference=reference, transformer_options=options
            )
        tokens = last[0][:, states.shape[1] :].unflatten(1, (x.shape[2], -1))
        return -out.float(), tokens.float()


def pair_of(config: FlowConfig) -> Pair | MMDiTPair:
    """The networks of a recipe."""
    return MMDiTPair(config) if isinstance(config.network, MMDiTConfig) else Pair(config)


def initialise(network: MMDiT) -> None:
    """Xavier for linear layers, small embedders and modulations, gates half open, silent reference and last layer."""
    for module in network.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    for embedder in (network.time_in, network.vector_in):
        for layer in (embedder.in_layer, embedder.out_layer):
            nn.init.normal_(layer.weight, std=0.02)
    for block in network.modules():
        if isinstance(block, (DoubleBlock, SingleBlock)):
            for module in block.modules():
                if isinstance(module, Modulation):
                    nn.init.normal_(module.lin.weight, std=0.02)
                    with torch.no_grad():
                        module.lin.bias.unflatten(0, (module.count, -1))[GATE::3] = START_GATE
    nn.init.zeros_(network.cond_in.weight)
    for layer in (network.final_layer.linear, network.final_layer.adaLN_modulation[1]):
        nn.init.zeros_(layer.weight)
