"""Links and file names as the original's cleaning finds them, in time proportional to the text.

The original's patterns try every place of a long word for every ending it might have. Both give the same result: which
ending counts depends on the word alone, not on the place where the reading began.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

_TOP_LEVEL = re.compile(r"\.(?:com|co|ru|net|org|edu|gov|it)")
_DOMAIN_CHARACTERS = re.compile(r"[a-zA-Z0-9.\-]+")
_DOMAIN_END = re.compile(rf"{_TOP_LEVEL.pattern}[\w/\-]*\b/?(?!@)")
_STARTS = tuple(re.compile(rf"\b{start}:(?:/{{1,3}}|[a-zA-Z0-9%])") for start in ("https?", "www"))
_WORD_EDGE = re.compile(r"\b")

_FILE_TYPE = re.compile(r"\.(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)")
_WORD = re.compile(r"\S+")


def without_links(text: str) -> str:
    """``text`` without the starts of web addresses (``https://``) and without domains and the paths behind them.

    The pattern, for "https?" and then for "www": at a word edge ``https?:(?:/{1,3}|[a-zA-Z0-9%])`` or
    ``[a-zA-Z0-9.\\-]+\\.(?:com|co|ru|net|org|edu|gov|it)[\\w/\\-]*\\b/?(?!@)``.
    """
    for start in _STARTS:
        kept, at = [], 0
        for begin, end in _links(text, start):
            kept.append(text[at:begin])
            at = end
        text = "".join([*kept, text[at:]])
    return text


def without_file_names(text: str) -> str:
    """``text`` without words that end in a file type, up to the last such ending: ``\\S+\\.(?:png|jpg|…)``."""
    return _WORD.sub(_behind_file_name, text) if _FILE_TYPE.search(text) else text


def _behind_file_name(word: re.Match[str]) -> str:
    # At least one character stands before the dot.
    ends = [found.end() for found in _FILE_TYPE.finditer(word[0], 1)]
    return word[0][ends[-1] :] if ends else word[0]


def _links(text: str, start: re.Pattern[str]) -> Iterator[tuple[int, int]]:
    """Begin and end of every link, from left to right; where two begin at one place the written start wins."""
    at = 0
    written = start.search(text)
    for word, dot, end in _domains(text):
        begin = _edge(text, max(at, word), dot)
        while begin is not None and written and written.start() <= begin:
            yield written.span()
            at = written.end()
            written = start.search(text, at)
            begin = _edge(text, max(at, word), dot)
        if begin is not None:
            yield begin, end
            at = end
            if written and written.start() < at:
                written = start.search(text, at)
    while written:
        yield written.span()
        written = start.search(text, written.end())


def _domains(text: str) -> Iterator[tuple[int, int, int]]:
    """For every word that holds a domain: its begin, the dot of the last top level that counts, the domain's end."""
    if not _TOP_LEVEL.search(text):
        return
    for word in _DOMAIN_CHARACTERS.finditer(text):
        if text.find(".", word.start() + 1, word.end()) < 0:
            continue
        dots = [found.start() for found in _TOP_LEVEL.finditer(text, word.start() + 1, word.end())]
        for dot in reversed(dots):
            if end := _DOMAIN_END.match(text, dot):
                yield word.start(), dot, end.end()
                break


def _edge(text: str, begin: int, dot: int) -> int | None:
    """The first word edge from ``begin`` on that leaves a character before ``dot``."""
    found = _WORD_EDGE.search(text, begin, dot) if begin < dot else None
    return found.start() if found and found.start() < dot else None
