"""Padding of Open-Sora 2.0's texts: every token counts, padding too, so all texts have one length.

T5 sees exactly 512 ids and no mask; all its states go into the network. CLIP-L sees 77 ids and gives its state at the
first end token. Source: upstream ``opensora/models/text/conditioner.py`` of release 2.0.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .tokens import PAD_TOKEN, limit_tokens

T5_LENGTH = 512
CLIP_LENGTH = 77
CLIP_END = 49407
"""CLIP's end token, which is also what the original pads with."""

ENCODED_FOR = "opensora_text"
"""Key of a conditioning entry that was encoded by these rules: the release."""

Pair = tuple[Any, ...]


def padded(pairs: Sequence[Pair], length: int = T5_LENGTH, pad: int = PAD_TOKEN) -> tuple[list[Pair], list[Pair]]:
    """Exactly ``length`` tokens, and the ones that were cut off.

    Tokens are ComfyUI's tuples ``(id, weight, …)``. Over-long text keeps its first tokens and its end token.
    """
    kept, cut = limit_tokens(pairs, length)
    filler = (pad, 1.0, *(kept[-1][2:] if kept else ()))
    return [*kept, *[filler] * (length - len(kept))], cut


def aligned_length(text_tokens: int, visual_tokens: int, multiple: int) -> int:
    """Text tokens once the sequence of text and picture fills whole multiples (training on several devices)."""
    return text_tokens + -(text_tokens + visual_tokens) % max(1, multiple)
