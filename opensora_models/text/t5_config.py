"""The numbers of a T5 encoder, read off the shapes of its weights, and what makes one fit Open-Sora."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from ..checkpoint.counting import count_blocks
from ..messages.quoting import LONGEST_FILE_NAME, quoted
from .tokens import VOCABULARY

Shape = tuple[int, ...]

EMBEDDING = "shared.weight"
TIED_EMBEDDING = "encoder.embed_tokens.weight"
"""The same matrix under its second name; files hold one or both."""

BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
GATED = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
FINAL_NORM = "encoder.final_layer_norm.weight"

BUCKETS = 32
"""Distances a T5 v1.1 tells apart; ComfyUI builds every T5 with this number."""

KNOWN_FILES = "t5xxl_fp16.safetensors, t5xxl_fp8_e4m3fn_scaled.safetensors or the shards of t5-v1_1-xxl"
"""What people have on disk for Flux, SD3 or PixArt and can use here."""

EXPECTED = f"the encoder of T5 v1.1 XXL, for example {KNOWN_FILES}"


@dataclass(frozen=True)
class T5Config:
    """Sizes under the names ComfyUI's T5 takes them."""

    d_model: int
    d_ff: int
    d_kv: int
    num_heads: int
    num_layers: int
    vocab_size: int

    def as_options(self) -> dict[str, int]:
        """As a dictionary for ComfyUI's ``t5xxl_model_config``."""
        return asdict(self)


def encoder_name(name: str) -> str | None:
    """The name of a weight in the encoder; None for the decoder's and everything else a full T5 file holds."""
    if name == TIED_EMBEDDING:
        return EMBEDDING
    return name if name == EMBEDDING or name.startswith("encoder.") or name == "scaled_fp8" else None


def t5_config(shapes: Mapping[str, Shape], file: str) -> T5Config:
    """Config of the encoder with these weight shapes. Packed 8- and 4-bit weights are fine: only rows are counted.

    Raises ValueError naming ``file`` where it is another kind of T5 or lacks weights.
    """
    name = quoted(file, LONGEST_FILE_NAME)
    if not any(GATED in key for key in shapes):
        raise ValueError(f"{name} is an older T5 without gated layers; expected {EXPECTED}.")
    embedding = EMBEDDING if EMBEDDING in shapes else TIED_EMBEDDING
    missing = [key for key in (embedding, BIAS, QUERY, GATED, FINAL_NORM) if key not in shapes]
    if missing:
        lacking = EMBEDDING if missing[0] == embedding else missing[0]
        raise ValueError(f"{name} lacks '{lacking}'; it is incomplete, download it again.")
    for key, dimensions in ((embedding, 2), (BIAS, 2), (QUERY, 2), (GATED, 2), (FINAL_NORM, 1)):
        if len(shapes[key]) != dimensions or 0 in shapes[key]:
            raise ValueError(
                f"{name} has the tensor '{key}' of shape {list(shapes[key])}; expected {dimensions} sizes, at least 1."
            )
    words, width = shapes[embedding]
    if words < VOCABULARY:
        raise ValueError(
            f"{name} is a T5 with {words} words where Open-Sora's tokenizer has {VOCABULARY}; expected {EXPECTED}."
        )
    (buckets, heads), inner = shapes[BIAS], shapes[QUERY][0]
    if buckets != BUCKETS or inner % heads:
        raise ValueError(
            f"{name} has {buckets} distances and {heads} heads over {inner} values; a T5 v1.1 has {BUCKETS} distances "
            "and heads of one width."
        )
    layers = count_blocks(shapes, "encoder.block.")
    return T5Config(width, shapes[GATED][0], inner // heads, heads, layers, words)


def encoder_shapes(config: T5Config) -> dict[str, Shape]:
    """Names and shapes of the weights every encoder of this config must have, its embedding aside."""
    width, inner = config.d_model, config.d_kv * config.num_heads
    shapes: dict[str, Shape] = {BIAS: (BUCKETS, config.num_heads), FINAL_NORM: (width,)}
    for layer in range(config.num_layers):
        block = f"encoder.block.{layer}.layer"
        shapes |= {f"{block}.0.SelfAttention.{part}.weight": (inner, width) for part in "qkv"}
        shapes[f"{block}.0.SelfAttention.o.weight"] = (width, inner)
        shapes |= {f"{block}.1.DenseReluDense.{part}.weight": (config.d_ff, width) for part in ("wi_0", "wi_1")}
        shapes[f"{block}.1.DenseReluDense.wo.weight"] = (width, config.d_ff)
        shapes |= {f"{block}.{number}.layer_norm.weight": (width,) for number in (0, 1)}
    return shapes


def encoder_weights(config: T5Config) -> Iterable[str]:
    """The names every encoder of this config must have, its embedding aside."""
    return encoder_shapes(config)
