"""Token rules of the text encoder: 300 tokens at most, an end token always, no padding.

Tokens are ComfyUI's pairs ``(id, weight)``. The network reads only the tokens before the padding, and in T5 a token's
value does not depend on padding (measured: 3e-6 in float32), so padding is left away altogether.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..messages.quoting import shortened

MAX_TOKENS = 300
"""Tokens of one prompt in 1.2 and 1.3, the end token included (``model_max_length`` of the original)."""

PAD_TOKEN = 0
UNKNOWN_TOKEN = 2
VOCABULARY = 32100
"""Ids the tokenizer of T5 v1.1 can give; the embedding of the released files has 32128 rows."""

SHOWN_CHARACTERS = 160
"""Characters shown of what was cut off."""

Pair = tuple[Any, ...]


def without_padding(pairs: Sequence[Pair]) -> list[Pair]:
    """The tokens without the padding behind the end token."""
    end = len(pairs)
    while end and is_id(pairs[end - 1][0], PAD_TOKEN):
        end -= 1
    return list(pairs[:end])


def limit_tokens(pairs: Sequence[Pair], limit: int = MAX_TOKENS) -> tuple[list[Pair], list[Pair]]:
    """The tokens the network gets and the ones that are cut off, both without padding.

    Over-long text keeps its first ``limit - 1`` tokens and the end token.
    """
    pairs = without_padding(pairs)
    if len(pairs) <= limit:
        return pairs, []
    return [*pairs[: limit - 1], pairs[-1]], pairs[limit - 1 : -1]


def is_id(token: Any, wanted: int) -> bool:
    """Whether a token is this id; ComfyUI's tokens may also be embedding vectors."""
    return isinstance(token, int) and token == wanted


def cut_message(words: str, cut: int, limit: int = MAX_TOKENS) -> str:
    """What people read when a prompt is too long; ``words`` are the ones the model does not see."""
    shown = shortened(words, SHOWN_CHARACTERS)
    return f"the text is {cut} tokens longer than the {limit} the model reads; not seen: “{shown}”"
