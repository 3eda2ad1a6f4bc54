"""The numbers of a T5 encoder, read off the shapes of its weights, and what makes one fit Open-Sora."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass

from .tokens import VOCABULARY

Shape = tuple[int, ...]

EMBEDDING = "shared.weight"
TIED_EMBEDDING = "encoder.embed_tokens.weight"
"""The same matrix under its second name; files hold one or both."""

BIAS = "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"
QUERY = "encoder.block.0.layer.0.SelfAttention.q.weight"
GATED = "encoder.block.0.layer.1.DenseReluDense.wi_0.weight"
FINAL_NORM = "encoder.final_layer_norm.weight"

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
    if not any(GATED in name for name in shapes):
        raise ValueError(f"'{file}' is an older T5 without gated layers; expected {EXPECTED}.")
    embedding = shapes.get(EMBEDDING) or shapes.get(TIED_EMBEDDING)
    missing = [name for name in (BIAS, QUERY, GATED, FINAL_NORM) if name not in shapes]
    if embedding is None or missing:
        raise ValueError(f"'{file}' lacks '{(missing or [EMBEDDING])[0]}'; it is incomplete, download it again.")
    if embedding[0] < VOCABULARY:
        raise ValueError(
            f"'{file}' is a T5 with {embedding[0]} words where Open-Sora's tokenizer has {VOCABULARY}; "
            f"expected {EXPECTED}."
        )
    heads = shapes[BIAS][1]
    layers = 1 + max(int(name.split(".")[2]) for name in shapes if name.startswith("encoder.block."))
    return T5Config(embedding[1], shapes[GATED][0], shapes[QUERY][0] // heads, heads, layers, embedding[0])


def encoder_weights(config: T5Config) -> Iterable[str]:
    """The names every encoder of this config must have, its embedding aside."""
    yield from (BIAS, FINAL_NORM)
    for layer in range(config.num_layers):
        block = f"encoder.block.{layer}.layer"
        yield from (f"{block}.0.SelfAttention.{part}.weight" for part in "qkvo")
        yield from (f"{block}.1.DenseReluDense.{part}.weight" for part in ("wi_0", "wi_1", "wo"))
        yield from (f"{block}.{number}.layer_norm.weight" for number in (0, 1))
