"""Text path: caption cleaning, token ids, and the T5 encoder in ComfyUI's own classes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from golden.runner import Case, Row, runs_cases, runs_table, weights_by_rule
from opensora.opensora_models.text import cleaning
from opensora.opensora_models.text.t5_config import BIAS, EMBEDDING, FINAL_NORM, T5Config, encoder_weights
from opensora.opensora_models.text.tokens import limit_tokens
from support.comfyui import comfyui_root, use_comfyui

CLEANINGS = {
    "output": cleaning.clean_prompt,
    "clean_once": cleaning.clean_once,
    "no_cleaning": cleaning.plain_prompt,
}
"""What a column of the table of captions holds."""


@runs_table("clean_caption", "cases")
def _clean_caption(table: Any) -> Iterator[Row]:
    for entry in table:
        text = entry["input"]
        for column, compute in CLEANINGS.items():
            if column in entry:
                yield Row(f"{column} {text!r}", compute(text), entry[column])


def _ids(text: str, limit: int | None = None) -> list[int]:
    """Ids as Text Encode takes them, whatever signs of ComfyUI the text holds."""
    use_comfyui()
    from opensora.opensora_models.native.text.t5_tokenizer import token_ids

    ids = token_ids(text)
    kept, _ = limit_tokens([(token, 1.0) for token in ids], limit or len(ids))
    return [pair[0] for pair in kept]


if comfyui_root() is not None:

    @runs_table("tokenize", "cases")
    def _tokenize(table: Any) -> Iterator[Row]:
        for entry in table:
            yield Row(repr(entry["text"]), _ids(entry["text"]), entry["ids"])

    @runs_table("tokenize", "raw")
    def _tokenize_raw(table: Any) -> Iterator[Row]:
        yield from _tokenize(table)

    @runs_table("tokenize", "truncation")
    def _truncation(table: Any) -> Iterator[Row]:
        for entry in table:
            yield Row("length", len(_ids(entry["text"])), entry["full_length"])
            yield Row("cut", _ids(entry["text"], entry["max_length"]), entry["ids_truncated"])


def t5_config_of(case: Case) -> T5Config:
    """The sizes of the case's encoder."""
    names = ("d_model", "d_ff", "d_kv", "num_heads", "num_layers", "vocab_size")
    return T5Config(**{name: case.config[name] for name in names})


def shapes_of(config: T5Config) -> dict[str, tuple[int, ...]]:
    """Names and shapes of all weights of an encoder."""
    inner = config.num_heads * config.d_kv
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (config.vocab_size, config.d_model)}
    for name in encoder_weights(config):
        if name == BIAS:
            shapes[name] = (32, config.num_heads)
        elif name == FINAL_NORM or "layer_norm" in name:
            shapes[name] = (config.d_model,)
        elif "SelfAttention.o" in name:
            shapes[name] = (config.d_model, inner)
        elif "SelfAttention" in name:
            shapes[name] = (inner, config.d_model)
        else:
            shapes[name] = (config.d_model, config.d_ff) if ".wo." in name else (config.d_ff, config.d_model)
    return shapes


def build(case: Case, dtype: torch.dtype) -> Any:
    """The case's encoder as our CLIP, weights kept in ``dtype``."""
    use_comfyui()
    from opensora.opensora_models.native.text.clip import build_clip

    config = t5_config_of(case)
    entries = {name: torch.empty(shape) for name, shape in shapes_of(config).items()}
    weights = weights_by_rule(entries, case)
    return build_clip({name: weight.to(dtype) for name, weight in weights.items()}, config)


def encode_ids(clip: Any, ids: list[int]) -> Tensor:
    """[1, L, C] of token ids, through the CLIP as the nodes use it."""
    return clip.encode_from_tokens({"t5xxl": [[(token, 1.0) for token in ids]]})


@runs_cases(lambda case: case.kind == "t5_encoder" and comfyui_root() is not None)
def _t5_encoder(case: Case) -> dict[str, Tensor]:
    dtype = getattr(torch, case.info["dtype"])
    clip = build(case, dtype)
    ids, mask = case.tensors["in.input_ids"], case.tensors["in.attention_mask"]
    transformer = clip.cond_stage_model.t5xxl.transformer
    got = {
        "y": transformer(ids, mask, dtype=torch.float32)[0].unsqueeze(1),
        "no_mask": transformer(ids, None, dtype=torch.float32)[0],
    }
    for row in range(len(ids)):
        got[f"unpadded_{row}"] = encode_ids(clip, ids[row, : int(mask[row].sum())].tolist())
    null = case.input("y_embedding")
    if null is not None:
        got["null"] = null[None, None].expand(len(ids), -1, -1, -1)
    return got


@runs_cases(lambda case: case.kind == "t5_relative_buckets" and comfyui_root() is not None)
def _t5_relative_buckets(case: Case) -> dict[str, Tensor]:
    use_comfyui()
    from comfy.text_encoders.t5 import T5Attention

    settings = {name: case.config[name] for name in ("bidirectional", "num_buckets", "max_distance")}
    return {"bucket": T5Attention._relative_position_bucket(case.tensors["in.relative_position"], **settings)}
