"""The diffusion model and its text encoder as one module, in the form that training calls them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..opensora_models.releases.groups import Version
from ..opensora_models.stdit3.conditions import GivenFrames
from ..opensora_models.stdit3.network import STACK_HOOK, STDiT3
from .flow_batches import LEAST_TEXT_LENGTH, TEXT_LENGTH, UNTOLD, Batch, Bucket
from .flow_recipes import FlowConfig
from .matrix_type import fast_matrices
from .rms_norm import RMSNorm
from .scenes import SHAPES
from .text_encoder import TextEncoder, Tokenizer

# Upstream's gates start near 0, which is safe for 28 pairs of blocks; three pairs learn faster with open ones.
START_GATE = 0.5
GATE_ROWS = (2, 5)  # of a block's modulation table: after self attention, after the MLP
MOST_LATENT_FRAMES: dict[Version, int] = {"1.3": 10, "1.2": 15}  # that the clock tells apart
TEXT_MASK = "opensora_training_text_mask"
OPERATIONS = SimpleNamespace(
    Linear=nn.Linear, Embedding=nn.Embedding, Conv3d=nn.Conv3d, LayerNorm=nn.LayerNorm, RMSNorm=RMSNorm
)


class Pair(nn.Module):
    """The two networks that are trained together, and what reads clock and shape off their tokens. Calls leave nothing
    behind: threads may share one."""

    def __init__(self, config: FlowConfig) -> None:
        super().__init__()
        torch.manual_seed(config.seed)
        self.network = STDiT3(config.network, operations=OPERATIONS, attention=float_attention)
        self.text_encoder = TextEncoder(config.text)
        initialise(self.network)
        self.clock = nn.Linear(config.network.hidden_size, MOST_LATENT_FRAMES[config.network.version])
        self.shape_reader = nn.Linear(config.network.hidden_size, len(SHAPES))

    def states(self, ids: Tensor, kept: Tensor, has_text: Tensor) -> Tensor:
        """Text states [B, L, C]; rows without text get the null text."""
        null = self.network.y_embedder.y_embedding[: ids.shape[1]]
        return torch.where(has_text[:, None, None], self.text_encoder(ids, kept), null)

    def conditions(self, tokenizer: Tokenizer, batch: Batch) -> dict[str, Any]:
        """What :meth:`velocity_and_tokens` is told of a batch beside noise and time."""
        ids, kept = padded(tokenizer, batch.captions)
        states = self.states(ids, kept, batch.has_text)
        return {"states": states, "kept": kept, "given": self._given_frames(batch, ids.shape[1])}

    def _given_frames(self, batch: Batch, text_length: int) -> GivenFrames | None:
        """Given frames; dropped rows keep the mask and lose the latents, as in guidance."""
        if not batch.given:
            return None
        mask = torch.zeros_like(batch.latents)
        mask[:, :, list(batch.given)] = 1.0
        latents = batch.latents * mask * batch.given_kept[:, None, None, None, None]
        null = self.network.y_embedder.y_embedding[:text_length].expand(len(latents), -1, -1)
        return GivenFrames(latents, mask, batch.given, null)

    def velocity(
        self, x: Tensor, times: Tensor, states: Tensor, kept: Tensor, bucket: Bucket, given: GivenFrames | None = None,
        frame_mask: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """The network's velocity [B, C, T, h, w] for padded captions."""
        return self.velocity_and_tokens(x, times, states, kept, bucket, given, frame_mask)[0]

    def velocity_and_tokens(
        self, x: Tensor, times: Tensor, states: Tensor, kept: Tensor, bucket: Bucket, given: GivenFrames | None = None,
        frame_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        """The velocity, and the tokens [B, T, S, C] after the last block, from which the clock is read."""
        last: list[Tensor] = []

        def noting(tokens: Tensor, modulation: Tensor, run: Any) -> Tensor:
            last.append(run(tokens))
            return last[0]

        options = {TEXT_MASK: kept[:, None, None, :], STACK_HOOK: noting}
        with fast_matrices(self.training):
            out = self.network(
                x, times, states, fps=bucket.fps, height=bucket.height, width=bucket.width, given=given,
                frame_mask=frame_mask, transformer_options=options,
            )  # fmt: skip
        return out[:, : x.shape[1]].float(), last[0].unflatten(1, (x.shape[2], -1)).float()

    def clock_losses(self, tokens: Tensor) -> Tensor:
        """[B]: how badly tokens [B, T, S, C] tell the number of their latent frame."""
        batch, frames, positions, width = tokens.shape
        told = self.clock(F.layer_norm(tokens, (width,))).flatten(0, 2)
        wanted = torch.arange(frames)[None, :, None].expand(batch, -1, positions).flatten()
        return F.cross_entropy(told, wanted, reduction="none").view(batch, -1).mean(1)

    def shape_losses(self, tokens: Tensor, shapes: Tensor, untold: Tensor) -> Tensor:
        """[B]: how badly the mean token of each frame in ``untold`` [B, T], of tokens [B, T, S, C], tells ``shapes``
        [B]; 0 for rows of which nothing does."""
        answers = self.shape_reader(F.layer_norm(tokens, tokens.shape[-1:]).mean(2))
        wanted = shapes[:, None].expand(answers.shape[:2])
        wrong = F.cross_entropy(answers.transpose(1, 2), wanted, ignore_index=UNTOLD, reduction="none") * untold
        return wrong.sum(1) / untold.sum(1).clamp(min=1)


def padded(tokenizer: Tokenizer, captions: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids of captions [B, L] and which of them are real, with no more padding than attention needs to know them."""
    longest = max(len(tokenizer.ids(caption)) for caption in captions) | 1
    return tokenizer.padded(captions, min(max(longest, LEAST_TEXT_LENGTH), TEXT_LENGTH))


def float_attention(
    q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Any = None, *, transformer_options: Mapping[str, Any], **_: Any
) -> Tensor:
    """Attention over [N, heads, L, d]; calls on captions leave padded tokens out."""
    kept = transformer_options.get(TEXT_MASK)
    keep = kept if kept is not None and k.shape[2] == kept.shape[-1] else mask
    with torch.autocast("cpu", enabled=False):  # its backward pass is many times slower in bfloat16
        out = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), attn_mask=keep)
    return out.transpose(1, 2).flatten(2)


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
