"""From words to CONDITIONING with any CLIP that holds T5 v1.1, and CLIP-L for 2.0: ours, core's, or another pack's."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import comfy.model_management

from ...releases.known import RELEASES
from ...releases.release import Release, TextRules
from ...text.cleaning import clean_prompt, plain_prompt
from ...text.clip_config import KNOWN_FILE
from ...text.losses import losses, titled, unknown_message
from ...text.padding import CLIP_END, CLIP_LENGTH, ENCODED_FOR, padded
from ...text.segments import SEGMENT_KEY, PromptPart, is_segmented, split_prompt
from ...text.suffixes import ends_as_trained
from ...text.t5_config import KNOWN_FILES
from ...text.tokens import cut_message, limit_tokens
from ..messages import tell
from ..model.base_model import opensora_config, release_of
from ..model.stdit3_model import null_text
from .clip_l import CLIP_KEY, T5_KEY
from .reader import pooled_width, state_width, token_limit
from .t5_tokenizer import clip_ids, token_ids, unknown_words, words_of

Conditioning = list[list[Any]]

ENCODER_TITLES = {
    "l": "CLIP-L",
    "g": "CLIP-G",
    "t5xxl": "T5 XXL",
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


OF_T5_ALONE, OF_T5_AND_CLIP = RELEASES["1.2"], RELEASES["2.0"]
"""The releases whose text rules hold where no MODEL tells, by what the CLIP holds."""


def check_prompts(prompt: str, negative_prompt: str, model: Any | None) -> None:
    """Refuse, before a text encoder is loaded, prompts that cannot be read and an empty negative nobody explains."""
    for text in (prompt, negative_prompt):
        split_prompt(text)
    if not negative_prompt.strip():
        _expect_meaning_of_empty(model, release_of(model))


def _expect_meaning_of_empty(model: Any | None, release: Release | None) -> None:
    """Refuse an empty negative where no MODEL says what it is, or one that is not Open-Sora's."""
    if model is None:
        raise ValueError(
            "The negative prompt is empty, which means the learned text inside the diffusion model, or in Open-Sora "
            "2.0 the encoded empty text: connect MODEL, or write a negative prompt."
        )
    if release is None or release.text.learned_negative:
        null_text(model)  # refuses a model that has none


def encode_both(clip: Any, prompt: str, negative_prompt: str, model: Any | None, clean: bool = True) -> EncodedPair:
    """Encode a prompt and its negative by the rules of the ``model``'s release, without one by the CLIP.

    An empty negative is the encoded "" or, in releases that learned one, the text inside the ``model``. Raises
    ValueError for a CLIP that does not fit and for an empty negative that nothing is known of.
    """
    for text in (prompt, negative_prompt):
        split_prompt(text)
    release = check_clip(clip, model)
    learned = release.text.learned_negative and not negative_prompt.strip()
    if learned:
        _expect_meaning_of_empty(model, release)
    limit = token_limit(model, release)
    positive = encode_prompt(clip, prompt, clean, limit, release=release)
    report = f"prompt: {positive.report}"
    if hint := _missing_suffixes(prompt, release):
        report += f"\n{hint}"
        tell(hint, level=logging.INFO)
    if learned:
        negative = null_conditioning(model, positive.conditioning)
        return EncodedPair(positive.conditioning, negative, report, positive.warnings)
    other = encode_prompt(clip, negative_prompt, clean, limit, "negative prompt", release)
    report += f"\nnegative prompt: {other.report}"
    return EncodedPair(positive.conditioning, other.conditioning, report, positive.warnings + other.warnings)


def _missing_suffixes(prompt: str, release: Release) -> str:
    """What to tell of a prompt that lacks the words every training text of its release ends in, or ends in those of
    another; "" where all is well."""
    texts = [part.text for part in split_prompt(prompt) if part.text.strip()]
    if not release.text.suffixes and any(map(ends_as_trained, texts)):
        other = next(each.title for each in RELEASES.values() if each.text.suffixes)
        return (
            f"The prompt ends in frame rate or motion score as texts of {other} do, which {release.title} was not "
            "trained with; connect the MODEL to Open-Sora Prompt Builder, which then adds what fits."
        )
    if not release.text.suffixes or all(map(ends_as_trained, texts)):
        return ""
    return (
        f"The prompt does not end in frame rate and motion score, as all texts {release.title} was trained with; "
        "Open-Sora Prompt Builder adds both."
    )


def encode_prompt(
    clip: Any,
    prompt: str,
    clean: bool = True,
    limit: int = OF_T5_ALONE.text.limit,
    name: str = "prompt",
    release: Release = OF_T5_ALONE,
) -> EncodedPrompt:
    """Encode a prompt, each part of a segmented one for itself; text is literal, parentheses weigh nothing.

    The conditioning holds [1, L, C] float32 per part: L tokens, the end token included, or exactly ``limit`` in
    releases that pad, with CLIP-L's state beside them. What is lost on the way is told under ``name``.
    """
    rules = release.text
    clean = clean and rules.cleaned
    entries: Conditioning = []
    lines, warnings = [], []
    for part in split_prompt(prompt):
        comfy.model_management.throw_exception_if_processing_interrupted()
        text = _text_read(part, rules, clean)
        ids = token_ids(text)
        encoded, count, lost = _encode_text(clip, text, ids, limit, rules)
        seen = f", {_read_by_clip(len(clip_ids(text)))} by CLIP-L" if rules.pooled else ""
        marks: dict[str, Any] = {SEGMENT_KEY: part.first_segment} if is_segmented(prompt) else {}
        where = f"segment {part.first_segment}: " if marks else ""
        marks |= {ENCODED_FOR: release.id} if rules.padded else {}
        entries += [[tensor, {**extra, **marks}] for tensor, extra in encoded]
        lines.append(f"{where}{count} of {limit} tokens{seen}: “{text}”")
        # What is not written is no loss where "" is an ordinary text to stay away from.
        expected_empty = name != "prompt" and not rules.learned_negative and not prompt.strip()
        found = () if expected_empty else losses(part.text, text, clean)
        warnings += [titled(told, prompt, part, name) for told in (*found, *lost)]
    tell(*warnings)
    return EncodedPrompt(entries, "\n".join([*lines, *warnings]), tuple(warnings))


def null_conditioning(model: Any, positive: Conditioning) -> Conditioning:
    """The model's learned text for "no prompt", cut to the tokens of each positive entry, as the original does.

    Raises ValueError for a MODEL that has none.
    """
    release = release_of(model)
    if release is not None and not release.text.learned_negative:
        raise ValueError(
            f"{release.title} has no learned text for no prompt: its negative is the encoded empty text; connect the "
            "output negative of Open-Sora Text Encode."
        )
    null = null_text(model)
    entries = []
    for tensor, extra in positive:
        marks = {key: extra[key] for key in (SEGMENT_KEY,) if key in extra}
        entries.append([null[: tensor.shape[1]].unsqueeze(0), {"pooled_output": None, **marks}])
    return entries


def check_clip(clip: Any, model: Any | None = None) -> Release:
    """The release whose text rules hold: the MODEL's, without one what the encoders in the CLIP are made for.

    Refuses, before anything is encoded, a CLIP without the encoders of the release, and widths the MODEL does not read.
    """
    tokens = clip.tokenize("") if clip is not None else None  # a checkpoint without text encoder gives None
    names = list(tokens) if isinstance(tokens, dict) else []
    release = release_of(model)
    if release is None:
        release = OF_T5_AND_CLIP if {*names} == {T5_KEY, CLIP_KEY} else OF_T5_ALONE
        if release is OF_T5_AND_CLIP:
            tell(
                f"The text is encoded for {release.title}, since the CLIP holds CLIP-L and no MODEL says otherwise; "
                "connect MODEL for another release.",
                level=logging.INFO,
            )
    elif CLIP_KEY in names and not release.text.pooled:
        tell(f"{release.title} reads T5 alone; CLIP-L in the CLIP is not used.", level=logging.INFO)
    _expect_encoders(names, release.text, release.title if model is not None or release.text.pooled else "Open-Sora")
    config = opensora_config(model)
    for part, wanted, what, file in (
        (T5_KEY, state_width(config), "numbers per token", KNOWN_FILES),
        ("clip_l", pooled_width(config), "numbers for the whole prompt", KNOWN_FILE),
    ):
        width = _width(clip, part)
        if wanted and width and width != wanted:
            raise ValueError(
                f"The text encoder gives {width} {what}, but the MODEL reads {wanted}; load the encoder made for it, "
                f"for the released models {file}."
            )
    return release


def _expect_encoders(names: list[str], rules: TextRules, title: str) -> None:
    """Refuse encoders (ComfyUI's names of the tokens) that are not those of the rules, with the loaders that are."""
    if rules.pooled and names == [T5_KEY]:
        raise ValueError(
            f"{title} reads CLIP-L beside T5, but the CLIP holds T5 alone; choose {KNOWN_FILE} as clip_l_name in "
            "Open-Sora Load Text Encoder."
        )
    unfit = {*names} != {T5_KEY, CLIP_KEY} if rules.pooled else any(part in names for part in OTHER_PARTS)
    if T5_KEY in names and not unfit:
        return
    found = " and ".join(ENCODER_TITLES.get(name, name) for name in names) or "of an unknown kind"
    both = f"T5 v1.1 XXL and CLIP-L; load {KNOWN_FILES}, and {KNOWN_FILE}, with Open-Sora Load Text Encoder, or with "
    alone = f"the text of T5 v1.1 XXL alone; load {KNOWN_FILES} with Open-Sora Load Text Encoder, or with "
    reads = f"{both}DualCLIPLoader and type flux" if rules.pooled else f"{alone}Load CLIP and type pixart"
    raise ValueError(f"The CLIP is {found}, but {title} reads {reads}.")


def _width(clip: Any, part: str) -> int | None:
    """Numbers per token of a part of a CLIP; None where it cannot be seen."""
    encoder = getattr(getattr(clip, "cond_stage_model", None), part, None)
    find = getattr(getattr(encoder, "transformer", None), "get_input_embeddings", None)
    weight = getattr(find(), "weight", None) if callable(find) else None
    return weight.shape[-1] if weight is not None else None


def _text_read(part: PromptPart, rules: TextRules, clean: bool) -> str:
    """What the encoders get of a part: as written in releases trained without cleaning."""
    if not rules.cleaned:
        return part.text.strip()
    return clean_prompt(part.text) if clean else plain_prompt(part.text)


def _encode_text(
    clip: Any, text: str, ids: list[int], limit: int, rules: TextRules
) -> tuple[Conditioning, int, list[str]]:
    """The entries of one text, its number of tokens, and sentences for words that are unknown or cut."""
    pairs = [(token, 1.0) for token in ids]
    kept, cut = limit_tokens(pairs, limit)
    # Where the release has no use for other encoders of the CLIP, they get no words.
    tokens = {**clip.tokenize(""), T5_KEY: [padded(pairs, limit)[0] if rules.padded else kept]}
    lost = [unknown_message(unknown_words(text, ids))]
    if rules.pooled:
        read, _ = padded([(token, 1.0) for token in clip_ids(text)], CLIP_LENGTH, CLIP_END)
        tokens[CLIP_KEY] = [read]
    encoded = clip.encode_from_tokens_scheduled(tokens)
    entries = [[tensor, {k: v for k, v in extra.items() if k != "attention_mask"}] for tensor, extra in encoded]
    for (tensor, extra), (_, given) in zip(entries, encoded, strict=True):
        _expect_states(tensor, extra, len(tokens[T5_KEY][0]), rules, masked="attention_mask" in given)
    if cut:
        lost.append(cut_message(words_of([token for token, _ in cut]), len(cut), limit))
    return entries, len(kept), [sentence for sentence in lost if sentence]


def _read_by_clip(count: int) -> str:
    """How many of a text's tokens CLIP-L reads; it gives one state for all of them, and the original cuts silently."""
    return f"{count} of {CLIP_LENGTH}" if count <= CLIP_LENGTH else f"the first {CLIP_LENGTH} of {count}"


def _expect_states(tensor: Any, extra: dict[str, Any], count: int, rules: TextRules, *, masked: bool) -> None:
    """Refuse states that are not one for every token, and those of encoders that hid padding or pooled nothing."""
    loader = "DualCLIPLoader as type flux" if rules.pooled else "Load CLIP as type pixart"
    if tensor.shape[1] != count:
        alone = "" if rules.pooled else " T5 alone, with"
        raise ValueError(f"The CLIP gave {tensor.shape[1]} tokens for {count}; load{alone or ' it with'} {loader}.")
    if rules.padded and masked:
        raise ValueError(f"The CLIP hides padding from T5, which Open-Sora 2.0 does not; load it with {loader}.")
    if rules.pooled and extra.get("pooled_output") is None:
        raise ValueError(f"The CLIP gave no state of CLIP-L; load it with Open-Sora Load Text Encoder or {loader}.")
