"""From a T5 file, and a CLIP-L file for 2.0, to ComfyUI's CLIP, built of ComfyUI's own classes."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.model_patcher
import comfy.sd
import comfy.sd1_clip
import comfy.supported_models_base
import comfy.text_encoders.pixart_t5
import comfy.text_encoders.sd3_clip
import comfy.utils
import folder_paths
import torch
from torch import Tensor

from ...checkpoint.kinds import T5
from ...checkpoint.opening import (
    TEXT_PARTS,
    Checkpoint,
    checkpoint_of,
    expect_kind,
    expect_shapes,
    expect_weights,
    open_checkpoint,
)
from ...checkpoint.readers import LoadedTensors, SafetensorsFile
from ...checkpoint.reading import reading
from ...messages.printable import is_printable
from ...text.t5_config import EMBEDDING, EXPECTED, TIED_EMBEDDING, T5Config, encoder_name, encoder_shapes, t5_config
from ...text.tokens import MAX_TOKENS, cut_message, limit_tokens
from ..messages import tell
from ..model.quantised import expect_scales, is_quantised
from .clip_l import T5_KEY, ClipL, pair_target, read_clip_l
from .t5_tokenizer import t5_tokenizer

logger = logging.getLogger("opensora")

PRECISIONS: dict[str, torch.dtype | None] = {
    "default": None,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}
DEVICES = ("default", "cpu")

Weights = dict[str, Tensor]


class OpenSoraTokenizer(comfy.sd1_clip.SD1Tokenizer):
    """T5's tokenizer with the limit of Open-Sora: no padding, 300 tokens, and a warning that names the cut words."""

    def __init__(self, embedding_directory: Any = None, tokenizer_data: dict[str, Any] | None = None) -> None:
        super().__init__(
            embedding_directory=embedding_directory,
            tokenizer_data=tokenizer_data or {},
            clip_name=T5_KEY,
            tokenizer=comfy.text_encoders.pixart_t5.T5XXLTokenizer,
        )
        getattr(self, self.clip).tokenizer = t5_tokenizer()

    def tokenize_with_weights(
        self, text: str, return_word_ids: bool = False, whole_text: bool = False, **kwargs: Any
    ) -> dict[str, list[Any]]:
        """Tokens of ``text``; ``whole_text`` leaves the limit to the caller."""
        tokens = super().tokenize_with_weights(text, return_word_ids, **kwargs)
        if not whole_text:
            tokens[T5_KEY] = [self._limited(batch) for batch in tokens[T5_KEY]]
        return tokens

    def _limited(self, pairs: list[Any]) -> list[Any]:
        kept, cut = limit_tokens(pairs)
        if cut:
            words = self.decode([pair[0] for pair in cut if isinstance(pair[0], int)])
            tell(f"The prompt: {cut_message(words, len(cut), MAX_TOKENS)}.")
        return kept


def load_text_encoder(
    path: str | Path,
    precision: str = "default",
    device: str = "default",
    disable_dynamic: bool = False,
    clip_l: str | Path | None = None,
) -> comfy.sd.CLIP:
    """The CLIP of a T5 v1.1 encoder file, a folder of shards, or one shard of a set.

    Args:
        precision: how weights are kept, a key of ``PRECISIONS``; "default" keeps the file's own. Activations are
            float32 in every case.
        device: "default" lets ComfyUI decide, "cpu" keeps the encoder away from the graphics card.
        disable_dynamic: ComfyUI asks for this when it needs a CLIP without weight streaming.
        clip_l: the file of CLIP-L, which Open-Sora 2.0 needs beside T5.

    Raises:
        ValueError: another kind of file, an incomplete or damaged one, or a precision it cannot be turned into.
    """
    checkpoint = open_checkpoint(path, TEXT_PARTS)
    expect_kind(checkpoint, (T5,), EXPECTED)
    second = None if clip_l is None else read_clip_l(clip_l, PRECISIONS[precision])
    with reading(checkpoint.name):
        config = t5_config(checkpoint.shapes, checkpoint.name)
        _expect_complete(checkpoint, config)
        options: dict[str, Any] = {}
        if device == "cpu":
            options = {"load_device": torch.device("cpu"), "offload_device": torch.device("cpu")}
        weights = _in_precision(_read(checkpoint), precision, checkpoint.name)
        clip = build_clip(weights, config, options, disable_dynamic, second)
    # ComfyUI makes further copies (several GPUs, no streaming) by calling this again.
    clip.patcher.cached_patcher_init = (
        _load_patcher,
        (str(path), precision, device, None if clip_l is None else str(clip_l)),
    )
    logger.info("'%s': T5 encoder, %d layers, width %d.", checkpoint.name, config.num_layers, config.d_model)
    if second is not None:
        logger.info("'%s': %s.", Path(str(clip_l)).name, second.config)
    return clip


def build_clip(
    weights: Weights,
    config: T5Config,
    options: dict[str, Any] | None = None,
    disable_dynamic: bool = False,
    clip_l: ClipL | None = None,
) -> comfy.sd.CLIP:
    """A CLIP of these encoder weights (names as in the released files); ``options`` are ComfyUI's model options."""
    parts = [weights] if clip_l is None else [weights, clip_l.complete()]
    return comfy.sd.CLIP(
        clip_target(weights, config) if clip_l is None else pair_target(weights, config, clip_l),
        embedding_directory=folder_paths.get_folder_paths("embeddings"),
        parameters=sum(map(comfy.utils.calculate_parameters, parts)),
        state_dict=parts,
        model_options=options or {},
        disable_dynamic=disable_dynamic,
    )


def clip_target(weights: Weights, config: T5Config, prefix: str = "") -> comfy.supported_models_base.ClipTarget:
    """The classes ComfyUI makes a CLIP of; the names of ``weights`` begin with ``prefix``."""
    base = comfy.text_encoders.pixart_t5.pixart_te(**comfy.text_encoders.sd3_clip.t5_xxl_detect(weights, prefix))

    class OpenSoraT5(base):  # type: ignore[misc, valid-type]
        """ComfyUI's T5 of this size."""

        def __init__(self, device: Any = "cpu", dtype: Any = None, model_options: dict[str, Any] | None = None) -> None:
            sizes = {f"{T5_KEY}_model_config": config.as_options()}
            super().__init__(device=device, dtype=dtype, model_options={**(model_options or {}), **sizes})

    return comfy.supported_models_base.ClipTarget(OpenSoraTokenizer, OpenSoraT5)


def clip_of(
    state_dict: Mapping[str, Tensor],
    name: str,
    options: dict[str, Any],
    disable_dynamic: bool = False,
    clip_l: ClipL | None = None,
) -> comfy.sd.CLIP:
    """The CLIP of weights that ComfyUI has read; ``name`` stands for the file in the ValueError of a wrong one."""
    checkpoint = checkpoint_of(Path(name), (LoadedTensors(state_dict),), {}, ())
    with reading(name):
        config = t5_config(checkpoint.shapes, name)
        _expect_complete(checkpoint, config)
        weights = {own: state_dict[key] for key in sorted(state_dict) if (own := encoder_name(key))}
        return build_clip(weights, config, options, disable_dynamic, clip_l)


def _load_patcher(
    path: str, precision: str, device: str, clip_l: str | None, disable_dynamic: bool = False
) -> comfy.model_patcher.ModelPatcher:
    return load_text_encoder(path, precision, device, disable_dynamic, clip_l).patcher


def _expect_complete(checkpoint: Checkpoint, config: T5Config) -> None:
    wanted = encoder_shapes(config)
    missing = [name for name in wanted if name not in checkpoint.tensors]
    if missing:
        raise ValueError(
            f"{checkpoint.quoted} lacks {len(missing)} weights of a T5 encoder, for example '{missing[0]}'; "
            "it is incomplete, download it again."
        )
    if is_quantised(checkpoint):
        # Packed formats have shapes and types of their own; ComfyUI's layers look at those.
        expect_scales(checkpoint)
    else:
        expect_shapes(checkpoint, wanted)
        expect_weights(checkpoint, [*wanted, EMBEDDING, TIED_EMBEDDING])


def _read(checkpoint: Checkpoint) -> Weights:
    """The encoder's weights in ComfyUI's form; a single safetensors file stays on disk until it is needed."""
    metadata: Any = dict(checkpoint.metadata)
    source = checkpoint.sources[0]
    single = len(checkpoint.sources) == 1 and not checkpoint.prefix
    # ComfyUI's reader opens no file whose name is not UTF-8.
    if single and isinstance(source, SafetensorsFile) and is_printable(str(source.path)):
        raw, metadata = comfy.utils.load_torch_file(str(source.path), safe_load=True, return_metadata=True)
    else:
        raw = checkpoint.only(encoder_name).load()
    weights = {own: raw[name] for name in sorted(raw) if (own := encoder_name(name))}
    return comfy.utils.convert_old_quants(weights, model_prefix="", metadata=metadata)[0]


def _in_precision(weights: Weights, precision: str, file: str) -> Weights:
    dtype = PRECISIONS[precision]
    if dtype is None:
        return weights
    if any(name.endswith(".comfy_quant") for name in weights):
        raise ValueError(f"'{file}' is quantised and cannot be turned into {precision}; choose default.")
    return {name: weight.to(dtype) for name, weight in weights.items()}
