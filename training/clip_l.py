"""The small CLIP-L of the tiny 2.0: random and frozen, in ComfyUI's own class of it (transformers), one head.

Open-Sora 2.0 adds one number per channel of the whole prompt to its time; a random encoder gives every prompt one of
its own, and the diffusion model learns to read it. Its words stay what chance made them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..opensora_models.mmdit.config import MMDiTConfig
from ..opensora_models.text.clip_config import WORDS
from ..opensora_models.text.padding import CLIP_END, CLIP_LENGTH
from .flow_recipes import FlowConfig
from .refused import Refused
from .text_encoder import Tokenizer


@dataclass(frozen=True)
class ClipLConfig:
    """Sizes of the encoder, and the seed of its weights; ``width`` is the pooled width of the diffusion model."""

    width: int = 16
    inner: int = 32
    layers: int = 2
    seed: int = 20


class ClipL(nn.Module):
    """Token ids to pooled states; keys below ``encoder`` are those of ``clip_l.safetensors``."""

    def __init__(self, config: ClipLConfig) -> None:
        super().__init__()
        from transformers import CLIPTextConfig, CLIPTextModel  # comes with ComfyUI; slow to import

        self.encoder = CLIPTextModel(CLIPTextConfig(
            vocab_size=WORDS, hidden_size=config.width, intermediate_size=config.inner, num_attention_heads=1,
            num_hidden_layers=config.layers, max_position_embeddings=CLIP_LENGTH, hidden_act="quick_gelu",
            bos_token_id=CLIP_END - 1, eos_token_id=CLIP_END, pad_token_id=CLIP_END,
        ))  # fmt: skip
        generator = torch.Generator().manual_seed(config.seed)
        for name, weight in sorted(self.encoder.named_parameters()):
            scale = 1.0 if "token_embedding" in name else 0.3 if "position_embedding" in name else config.width**-0.5
            if weight.ndim > 1:
                # Exported in half precision: what is trained with is what will be loaded.
                values = torch.randn(weight.shape, generator=generator).mul_(scale).half()
                weight.data.copy_(values)
            else:
                nn.init.constant_(weight, float(name.endswith("weight")))
        self.requires_grad_(False)

    @torch.no_grad()
    def forward(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Pooled states [B, width] float32 of ids, each row with CLIP's start and end token."""
        rows = [[*row[: CLIP_LENGTH - 1], CLIP_END] if len(row) > CLIP_LENGTH else row for row in rows]
        longest = max(map(len, rows))
        ids = torch.tensor([[*row, *[CLIP_END] * (longest - len(row))] for row in rows])
        with torch.autocast("cpu", enabled=False):
            return self.encoder(input_ids=ids).pooler_output.float()

    def exported(self) -> dict[str, Tensor]:
        """Weights under the released names, whichever the installed transformers uses."""
        weights = self.encoder.state_dict().items()
        return {
            name if name.startswith("text_model.") else f"text_model.{name}": value
            for name, value in weights if not name.endswith("position_ids")
        }  # fmt: skip


def tokenizer_of(config: FlowConfig, t5: Path, clip: Path | None = None) -> Tokenizer:
    """What a recipe's words are cut with. ``clip``: CLIP's folder, if it is not where ComfyUI has it beside T5's."""
    if not isinstance(config.network, MMDiTConfig):
        return Tokenizer(t5)
    return PairTokenizer(t5, clip or t5.parent.parent / "sd1_tokenizer")


class PairTokenizer(Tokenizer):
    """T5's and CLIP-L's tokenizers from ComfyUI's folders."""

    def __init__(self, t5: Path, clip: Path) -> None:
        super().__init__(t5)
        if not (clip / "vocab.json").is_file():
            raise Refused(f"There is no vocab.json in '{clip}'; give ComfyUI's sd1_tokenizer folder.")
        self._clip_folder = clip

    @cached_property
    def _clip(self) -> Any:
        from transformers import CLIPTokenizer

        try:
            return CLIPTokenizer.from_pretrained(str(self._clip_folder))
        except Exception as error:  # transformers raises no narrower one
            folder = self._clip_folder
            raise Refused(f"'{folder}' holds no tokenizer ({error}); give ComfyUI's sd1_tokenizer folder.") from None

    def clip_ids(self, text: str) -> list[int]:
        """Ids of ``text`` with CLIP's start and end token."""
        return self._clip(text)["input_ids"]
