"""What a prompt lost on its way to the encoder, in sentences for the person who wrote it.

The cleaning is the original's and stays as it is; it was made for English captions from the web. So whatever words it
takes are named, with what to do about them.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from urllib.parse import unquote_plus

from ..messages.quoting import shortened
from .markup import unescape
from .repair import repair_text
from .segments import SETTINGS, PromptPart, is_segmented, split_prompt

EAST_ASIAN = "\u1100-\u11ff\u2e80-\u2fdf\u3041-\u9fff\ua960-\ua97f\uac00-\ud7ff\uf900-\ufaff\U00020000-\U0003ffff"
"""Chinese characters, kana and hangul, written without spaces between words: each counts as one."""

SHOWN_PIECES = 5
SHOWN_OF_A_PIECE = 40

_WORD = re.compile(f"[{EAST_ASIAN}]|(?:(?![{EAST_ASIAN}])[^\\W_])+")
_FOREIGN = re.compile(f"[{EAST_ASIAN}]")
_SIGNS_BEFORE = re.compile(r"[@#</!&\-]*\Z")
_SIGNS_BEHIND = re.compile(r"[/>\-]*")
_WEIGHT = re.compile(r"""\([^()]*[^\W\d_]["'’”]?:(?:[+-]?\d+|\s*[+-]?\d*\.\d+)\s*\)""")
"""As other models' prompts weigh a word: ``(cat:1.3)``. Not a time or a verse, whose colon stands behind a digit."""
_EMBEDDING = re.compile(r"\bembedding:[^\s,()]+")
_SETTINGS = re.compile(rf'\{{\s*"(?:{"|".join(SETTINGS)})"')

NO_TEXT = "there is no text; the model gets no words"
IN_ENGLISH = "; the model reads English: translate, or use Open-Sora Prompt Request and core's Generate Text"
IN_OTHER_WORDS = ", as from the captions the model learned from; say it in other words if the picture needs it"


def lost_pieces(written: str, cleaned: str) -> list[str]:
    """The words of ``written`` that ``cleaned`` does not have, neighbours together, in order and as written.

    A word that lost a part counts whole. Case, accents written in two ways, spaces and punctuation are no loss.
    """
    written = repair_text(unescape(unescape(unquote_plus(written)))).replace("\\n", " ")
    left = Counter(_words(cleaned))
    pieces: list[tuple[int, int]] = []
    together = False
    for word in _WORD.finditer(written):
        kept = _take(left, _words(word[0]))
        if not kept:
            begin = pieces.pop()[0] if together else word.start()
            pieces.append((begin, word.end()))
        together = not kept
    return [_with_signs(written, *piece) for piece in pieces]


def losses(written: str, read: str, clean: bool) -> list[str]:
    """What to tell of a prompt: that it is empty, has settings for words, or which words the cleaning took.

    ``read`` is what the encoder gets; ``clean`` says whether the text was cleaned for it.
    """
    if not written.strip():
        return [NO_TEXT]
    told = []
    if _SETTINGS.search(written):
        told.append(
            "the settings in braces are read as words; Open-Sora Prompt Builder or Open-Sora Prompt Segments, put "
            "before this node, takes them off"
        )
    told += literal(written)
    pieces = lost_pieces(written, read) if clean else []
    foreign = any(_FOREIGN.search(piece) for piece in pieces)
    if not _WORD.search(read):
        advice = IN_ENGLISH if foreign else "; write words that describe the picture"
        told.append(f"no words are left of “{shortened(written)}”{advice}")
    elif pieces:
        told.append(f"cleaning took away or cut {_listed(pieces)}{IN_ENGLISH if foreign else IN_OTHER_WORDS}")
    return told


def literal(written: str) -> list[str]:
    """What to tell of signs that other models' prompts know and Open-Sora reads as words."""
    weights, embeddings = ([found[0] for found in sign.finditer(written)] for sign in (_WEIGHT, _EMBEDDING))
    told = []
    if weights:
        told.append(f"Open-Sora knows no weights, so {_listed(weights)} is read as it is written; take the number away")
    if embeddings:
        told.append(f"Open-Sora knows no embeddings, so {_listed(embeddings)} is read as it is written")
    return told


def titled(sentence: str, prompt: str, part: PromptPart, name: str = "prompt") -> str:
    """A sentence on one part of a prompt with the part's name before it."""
    of = f" of segment {part.first_segment}" if is_segmented(prompt) else ""
    return f"The {name}{of}: {sentence}."


def missing_parts(prompt: str) -> list[str]:
    """What to tell of a prompt that gets more words: which parts have none of their own."""
    empty = (part for part in split_prompt(prompt) if not part.text.strip())
    return [titled(f"{NO_TEXT} but those added here", prompt, part) for part in empty]


def unknown_message(words: Sequence[str]) -> str:
    """What to tell of words with letters outside the encoder's vocabulary; nothing where there are none."""
    return f"the text encoder does not know letters of {_listed(words)}{IN_ENGLISH}" if words else ""


def _listed(pieces: Sequence[str]) -> str:
    shown = ", ".join(f"“{shortened(piece, SHOWN_OF_A_PIECE)}”" for piece in pieces[:SHOWN_PIECES])
    more = len(pieces) - SHOWN_PIECES
    return f"{shown} and {more} more" if more > 0 else shown


def _words(text: str) -> Iterator[str]:
    return (found[0] for found in _WORD.finditer(text.lower()))


def _take(left: Counter[str], words: Iterator[str]) -> bool:
    """Count words off what is left; False if one of them is not there."""
    found = True
    for word in words:
        if left[word]:
            left[word] -= 1
        else:
            found = False
    return found


def _with_signs(text: str, begin: int, end: int) -> str:
    """A piece with the brackets, slashes and signs that belong to it."""
    before = _SIGNS_BEFORE.search(text, max(0, begin - 8), begin)
    behind = _SIGNS_BEHIND.match(text, end, end + 8)
    return text[before.start() if before else begin : behind.end() if behind else end]
