"""From words to CONDITIONING with any CLIP that holds T5 v1.1: ours, core's, or another pack's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.model_management

from ...text.cleaning import clean_prompt, plain_prompt
from ...text.losses import losses, titled, unknown_message
from ...text.segments import SEGMENT_KEY, is_segmented, split_prompt
from ...text.t5_config import KNOWN_FILES
from ...text.tokens import MAX_TOKENS, cut_message, limit_tokens
from ..messages import tell
from ..model.stdit3_model import null_text, opensora_config
from .clip import T5_KEY
from .t5_tokenizer import token_ids, unknown_words, words_of

Conditioning = list[list[Any]]

ENCODER_TITLES = {
    "l": "CLIP-L",
    "g": "CLIP-G",
    "h": "CLIP-H",
    "umt5xxl": "umT5 XXL",
    "t5base": "T5 base",
    "pile_t5xl": "Pile T5 XL",
    "llama": "Llama",
}
"""ComfyUI's names of other encoders, for messages; the rest are told by their own name."""

OTHER_PARTS = ("g",)
"""Encoders whose output ComfyUI mixes into the tokens of T5 (Stable Diffusion 3)."""


@dataclass(frozen=True)
class EncodedPrompt:
    """The conditioning of a prompt, what became of its words, and a sentence for everything that was lost."""

    conditioning: Conditioning
    report: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class EncodedPair:
    """Positive and negative conditioning of one prompt, with what people should know about them."""

    positive: Conditioning
    negative: Conditioning
    report: str
    warnings: tuple[str, ...] = ()


def check_prompts(prompt: str, negative_prompt: str, model: Any | None) -> None:
    """Refuse, before a text encoder is loaded, prompts that cannot be read and an empty negative without a model."""
    for text in (prompt, negative_prompt):
        split_prompt(text)
    if not negative_prompt.strip():
        if model is None:
            raise ValueError(
                "The negative prompt is empty, which means the learned text inside the diffusion model: connect "
                "MODEL, or write a negative prompt."
            )
        null_text(model)  # refuses a model that has none


def encode_both(clip: Any, prompt: str, negative_prompt: str, model: Any | None, clean: bool = True) -> EncodedPair:
    """Encode a prompt and its negative; an empty negative is the ``model``'s learned text, as in the original.

    Raises ValueError for a CLIP that does not fit and for an empty negative without a model.
    """
    check_prompts(prompt, negative_prompt, model)
    check_clip(clip, model)
    written = bool(negative_prompt.strip())
    limit = token_limit(model)
    positive = encode_prompt(clip, prompt, clean, limit)
    report = f"prompt: {positive.report}"
    if not written:
        negative = null_conditioning(model, positive.conditioning)
        return EncodedPair(positive.conditioning, negative, report, positive.warnings)
    other = encode_prompt(clip, negative_prompt, clean, limit, "negative prompt")
    report += f"\nnegative prompt: {other.report}"
    return EncodedPair(positive.conditioning, other.conditioning, report, positive.warnings + other.warnings)


def encode_prompt(
    clip: Any, prompt: str, clean: bool = True, limit: int = MAX_TOKENS, name: str = "prompt"
) -> EncodedPrompt:
    """Encode a prompt, each part of a segmented one for itself; text is literal, parentheses weigh nothing.

    The conditioning holds [1, L, C] float32 per part, L tokens without padding, the end token included. What is lost
    on the way is told under ``name``.
    """
    entries: Conditioning = []
    lines, warnings = [], []
    for part in split_prompt(prompt):
        comfy.model_management.throw_exception_if_processing_interrupted()
        text = clean_prompt(part.text) if clean else plain_prompt(part.text)
        encoded, count, lost = _encode_text(clip, text, limit)
        marks = {SEGMENT_KEY: part.first_segment} if is_segmented(prompt) else {}
        entries += [[tensor, {**extra, **marks}] for tensor, extra in encoded]
        where = f"segment {part.first_segment}: " if marks else ""
        lines.append(f"{where}{count} of {limit} tokens: “{text}”")
        warnings += [titled(told, prompt, part, name) for told in (*losses(part.text, text, clean), *lost)]
    tell(*warnings)
    return EncodedPrompt(entries, "\n".join([*lines, *warnings]), tuple(warnings))


def null_conditioning(model: Any, positive: Conditioning) -> Conditioning:
    """The model's learned text for "no prompt", cut to the tokens of each positive entry, as the original does."""
    null = null_text(model)
    entries = []
    for tensor, extra in positive:
        marks = {key: extra[key] for key in (SEGMENT_KEY,) if key in extra}
        entries.append([null[: tensor.shape[1]].unsqueeze(0), {"pooled_output": None, **marks}])
    return entries


def token_limit(model: Any | None) -> int:
    """Tokens the model reads; 300 where no MODEL tells."""
    config = opensora_config(model) if model is not None else None
    return config.model_max_length if config else MAX_TOKENS


def check_clip(clip: Any, model: Any | None = None) -> None:
    """Refuse a CLIP without T5 v1.1 and one whose width the MODEL does not read, before anything is encoded."""
    tokens = clip.tokenize("") if clip is not None else None  # a checkpoint without text encoder gives None
    names = list(tokens) if isinstance(tokens, dict) else []
    if T5_KEY not in names or any(part in names for part in OTHER_PARTS):
        found = " and ".join(ENCODER_TITLES.get(name, name) for name in names) or "of an unknown kind"
        raise ValueError(
            f"The CLIP is {found}, but Open-Sora reads the text of T5 v1.1 XXL alone; load {KNOWN_FILES} with "
            "Open-Sora Load Text Encoder, or with Load CLIP and type pixart."
        )
    config, width = (opensora_config(model) if model is not None else None), _width(clip)
    if config and width and width != config.caption_channels:
        raise ValueError(
            f"The text encoder gives {width} numbers per token, but the MODEL reads {config.caption_channels}; "
            f"load the encoder made for it, for the released models {KNOWN_FILES}."
        )


def _width(clip: Any) -> int | None:
    encoder = getattr(getattr(clip, "cond_stage_model", None), T5_KEY, None)
    embedding = getattr(getattr(encoder, "transformer", None), "shared", None)
    weight = getattr(embedding, "weight", None)
    return weight.shape[-1] if weight is not None else None


def _encode_text(clip: Any, text: str, limit: int) -> tuple[Conditioning, int, list[str]]:
    """The entries of one text, its number of tokens, and sentences for words that are unknown or cut."""
    ids = token_ids(text)
    kept, cut = limit_tokens([(token, 1.0) for token in ids], limit)
    # Other encoders of the CLIP get no words: nothing of theirs reaches the model.
    encoded = clip.encode_from_tokens_scheduled({**clip.tokenize(""), T5_KEY: [kept]})
    entries = [[tensor, {k: v for k, v in extra.items() if k != "attention_mask"}] for tensor, extra in encoded]
    for tensor, _ in entries:
        if tensor.shape[1] != len(kept):
            raise ValueError(
                f"The CLIP gave {tensor.shape[1]} tokens for {len(kept)}; load T5 alone, with Load CLIP as type pixart."
            )
    lost = [unknown_message(unknown_words(text, ids))]
    if cut:
        lost.append(cut_message(words_of([token for token, _ in cut]), len(cut), limit))
    return entries, len(kept), [sentence for sentence in lost if sentence]
