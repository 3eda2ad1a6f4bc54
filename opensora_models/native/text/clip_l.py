"""The second text encoder of Open-Sora 2.0: CLIP-L beside T5, in the classes ComfyUI has for Flux."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.supported_models_base
import comfy.text_encoders.flux
import comfy.text_encoders.sd3_clip
import torch
from torch import Tensor

from ...checkpoint.kinds import CLIP
from ...checkpoint.opening import CLIP_PARTS, Checkpoint, expect_kind, expect_shapes, expect_weights, open_checkpoint
from ...checkpoint.reading import reading
from ...text.clip_config import EXPECTED, KNOWN_FILE, PROJECTION, TOKENS, ClipConfig, clip_config, encoder_name
from ...text.clip_config import encoder_shapes as clip_shapes
from ...text.padding import padded
from ...text.t5_config import T5Config
from ...text.tokens import cut_message
from ..messages import tell
from ..model.quantised import is_quantised
from .t5_tokenizer import t5_tokenizer, words_of

T5_KEY = "t5xxl"
"""ComfyUI's name of the T5 part of a CLIP and of its tokens."""
CLIP_KEY = "l"
"""ComfyUI's name of the tokens of CLIP-L; the part itself is ``clip_l``."""


@dataclass(frozen=True)
class ClipL:
    """A CLIP-L that has been read: its weights under the released names, and their sizes."""

    weights: Mapping[str, Tensor]
    config: ClipConfig

    def complete(self) -> dict[str, Tensor]:
        """The weights with a projection: Open-Sora takes the state before it, ComfyUI's class has one all the same."""
        return {**self.weights, PROJECTION: torch.eye(self.config.hidden_size).to(self.dtype)}

    @property
    def dtype(self) -> torch.dtype:
        """How its weights are kept."""
        return self.weights[TOKENS].dtype


def read_clip_l(path: str | Path, dtype: torch.dtype | None = None) -> ClipL:
    """The text half of a CLIP-L file, in the file's own precision or in ``dtype``.

    Raises ValueError for another kind of file, and an incomplete or damaged one.
    """
    checkpoint = open_checkpoint(path, CLIP_PARTS)
    expect_kind(checkpoint, (CLIP,), EXPECTED)
    with reading(checkpoint.name):
        return clip_l_of(checkpoint, dtype)


def clip_l_of(checkpoint: Checkpoint, dtype: torch.dtype | None = None) -> ClipL:
    """CLIP-L of an opened checkpoint. Errors as :func:`read_clip_l`."""
    config = clip_config(checkpoint.shapes, checkpoint.name)
    if is_quantised(checkpoint):
        raise ValueError(
            f"{checkpoint.quoted} is quantised, which ComfyUI reads for T5 only; use {KNOWN_FILE} (0.25 GB)."
        )
    wanted = clip_shapes(config)
    expect_shapes(checkpoint, wanted)
    expect_weights(checkpoint, list(wanted))
    # The picture half of a whole CLIP stays on disk.
    weights = checkpoint.only(lambda name: encoder_name(name) and name != PROJECTION).load()
    return ClipL({name: tensor.to(dtype or tensor.dtype) for name, tensor in weights.items()}, config)


class OpenSoraPairTokenizer(comfy.text_encoders.flux.FluxTokenizer):
    """Tokens of Open-Sora 2.0 for nodes that tokenize by themselves: T5's are cut at the limit and padded to it."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        super().__init__(embedding_directory=embedding_directory, tokenizer_data=tokenizer_data or {})
        self.t5xxl.tokenizer = t5_tokenizer()

    def tokenize_with_weights(self, text: str, return_word_ids: bool = False, **kwargs: Any) -> dict[str, list[Any]]:
        """Tokens of ``text`` for both encoders. Of CLIP-L's only the first 77 count, as ComfyUI's class has it."""
        tokens = super().tokenize_with_weights(text, return_word_ids, **kwargs)
        tokens[T5_KEY] = [self._limited(batch) for batch in tokens[T5_KEY]]
        return tokens

    def _limited(self, pairs: list[Any]) -> list[Any]:
        kept, cut = padded(pairs)
        if cut:
            words = words_of([pair[0] for pair in cut if isinstance(pair[0], int)])
            tell(f"The prompt: {cut_message(words, len(cut), len(kept))}.")
        return kept


def pair_target(t5: Mapping[str, Tensor], config: T5Config, clip_l: ClipL) -> comfy.supported_models_base.ClipTarget:
    """The classes ComfyUI makes a CLIP of T5 and CLIP-L of."""
    detected = comfy.text_encoders.sd3_clip.t5_xxl_detect(t5)
    base = comfy.text_encoders.flux.flux_clip(**detected)
    # ComfyUI keeps T5 in no wider type than this one, and neither file is to be rounded.
    widest = max(clip_l.dtype, detected.get("dtype_t5", clip_l.dtype), key=lambda dtype: dtype.itemsize)
    sizes = {f"{T5_KEY}_model_config": config.as_options(), "clip_l_model_config": clip_l.config.as_options()}

    class OpenSoraT5AndClipL(base):  # type: ignore[misc, valid-type]
        """ComfyUI's T5 and CLIP-L of these sizes."""

        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
            super().__init__(device=device, dtype=widest, model_options={**(model_options or {}), **sizes})

        def load_sd(self, sd: dict[str, Tensor]) -> Any:
            return (self.clip_l if TOKENS in sd else self.t5xxl).load_sd(sd)

    return comfy.supported_models_base.ClipTarget(OpenSoraPairTokenizer, OpenSoraT5AndClipL)
