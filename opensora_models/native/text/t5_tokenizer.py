"""T5's tokenizer as the original has it: the rules of the file that lies in ComfyUI, read as they stand.

Newer versions of ``transformers`` build T5's tokenizer of rules of their own, which put a space behind special tokens
and take a few control characters for spaces. The file is the one the recorded token ids come from.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import comfy.sd1_clip
import comfy.text_encoders.pixart_t5
from transformers import PreTrainedTokenizerFast

from ...text.tokens import UNKNOWN_TOKEN

MEANINGFUL = ("Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Nl", "No", "So")
"""Kinds of characters that say something by themselves: letters, numbers, pictures."""

LOOKED_AT = 200
"""Words of a prompt that are tried one by one for letters the vocabulary lacks."""


@cache
def t5_tokenizer() -> Any:
    """The tokenizer, loaded once."""
    file = Path(comfy.text_encoders.pixart_t5.__file__).with_name("t5_tokenizer") / "tokenizer.json"
    return PreTrainedTokenizerFast(tokenizer_file=str(file))


def token_ids(text: str) -> list[int]:
    """Ids of a text, the end token included; names of special tokens in it become those tokens, as in the original.

    Half characters, which no tokenizer can read, become the sign for an unreadable one.
    """
    return t5_tokenizer()(_whole(text))["input_ids"]


@cache
def clip_tokenizer() -> Any:
    """CLIP-L's tokenizer as ComfyUI has it, loaded once."""
    return comfy.sd1_clip.SDTokenizer().tokenizer


def clip_ids(text: str) -> list[int]:
    """Ids of a text for CLIP-L, start and end token included, neither cut nor padded."""
    return clip_tokenizer()(_whole(text), verbose=False)["input_ids"]


def words_of(ids: Sequence[int]) -> str:
    """The text of tokens."""
    return t5_tokenizer().decode(list(ids))


def unknown_words(text: str, ids: Sequence[int]) -> list[str]:
    """The words of ``text``, whose tokens are ``ids``, with letters or pictures the vocabulary does not have.

    Punctuation and the signs of ASCII it lacks (``< \\ ^ ` { } ~``) are not words.
    """
    if UNKNOWN_TOKEN not in ids:
        return []
    foreign = dict.fromkeys(word for word in text.split() if _means_something(word))
    return [word for word in list(foreign)[:LOOKED_AT] if UNKNOWN_TOKEN in token_ids(word)]


def _whole(text: str) -> str:
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _means_something(word: str) -> bool:
    return not word.isascii() and any(unicodedata.category(char) in MEANINGFUL for char in word if char > "\x7f")
