"""Texts that are hard on whatever reads them: long repetitions, and short ones of everything that means something."""

from __future__ import annotations

import random
from collections.abc import Iterator

MARKUP = (
    *("<", "</", "<a", "<b>", "</b>", " ", "/", ">", "=", "'", '"', "x", "x='", "<!--", "--", "-", "-->", "<!"),
    *("<![", "cdata[", "]", "]]>", "if", "<?", "&", "&#", "&#x", "1", "65", ";", "&amp;", "&lt;", "\x00", "\t"),
    *("\v", "\u2003", "<script>", "</script>", "</ script >", "<style>", "<rt>", "<br/>", "S", "<!doctype", "\n"),
    *("ſ", "İ", "temp"),
)
WRITING = (
    *("http:", "https:", "//", "www:", "a", "b.", ".com", ".co", ".it", "@", "_", "é", "1.", "x", "×", ".png"),
    *(".mp4", "com", "png", ":", "free", "shipping", "worldwide", "download", "click", "for", "page", " . ", "#"),
    *("a1", "b2", "%", "%41", "+", "|", "|0|", "猫", "か", "한", "😀", "\\n", "7:45", "…"),
    *("－", "＆", "＃", "＜b＞", "ﬁ"),
    *("٣", "²", "€", "â", "ï", "¥", "\xa0", "\x85", "\u2028", "\u0301", "\u0323", "\ud800", "\udc00", "\ufeff"),
    *("\x1b[", "{", "}", '{"', '":', "NaN", "<think>", "embedding:", "(", ")", "\\("),
)

REPEATED = (
    *("<", "<a ", "<a", "<a/", "<a/x=", "<a '", "<a x='>' ", '<a "" ', "<a x='\" y=\"' ", "<b>", "</", "</ "),
    *("</a", "<!--", "<!--- --", "<!", "<?", "<![if x] ", "<![cdata[", "<rt>x", "<script></", "&", "&a", "&#"),
    *("&#1;", "&lt;a ", "&lt;!--", "＜a ", "＆#", "http:", "a.", "a-", "a.co", "a.com@", ".it/", "@a", "@a ", "-"),
    *("a b ", "1.1.", "1.1.1.1 ", '"', "'", "{", "}", '{"', "|0|", "|", "\\n", "(", "a.png", ".png ", "free "),
    *("page ", "worldwide free ", "1a", "a1b", "1x1", "%", "%4", "猫", "é", "e\u0301\u0323", "â€", "ï¿", "ﬁ", "İ"),
    *("\ud800", "\x1b[", "\x00", " ", "\n", " . ", ",", "a, ", "<think>", "embedding: ", "Σ'", "ཱི"),
)


def long_texts(size: int) -> Iterator[tuple[str, str]]:
    """Name and text, each about ``size`` characters: pieces repeated, and the worst of beginnings and ends."""
    for piece in REPEATED:
        yield piece, piece * (size // len(piece))
    half = size // 2
    yield "a domain at the end", "a-" * half + " x.com"
    yield "a file at the end", "a" * size + " a.png"
    yield "a file at the beginning", "a.png" + "b" * size
    yield "spaces inside", "a" + " " * size + "b"
    yield "spaces and a dot", "a" + " " * size + ".b"
    yield "digits of a serial number", "a1b" + "2" * size + "é"
    yield "digits of a size", "1x" + "1" * size + "é"
    yield "digits", "1" * size + "é"
    yield "digits of a character", "&#" + "9" * size + "a;"
    yield "digits of a character, wide", "＆＃" + "9" * size + ";"
    yield "an odd segment number", "|0|a|" + "9" * size + "|b"
    yield "open tags and strays", "<b>" * (size // 8) + "</i>x" * (size // 10)
    yield "open and closed tags", "<b>x" * (size // 9) + "</b>" * (size // 9)
    yield "tags and ampersands", "<b " * (size // 6) + "&" * half
    yield "brackets of a section", "<![cdata[" * (size // 20) + "] ] " * (size // 8)
    yield "ends of comments", "<!--" * (size // 8) + ("--" + " " * 46) * (size // 96)
    yield "one tag of many attributes", "<a " + "b='" * (size // 3)
    yield "accents out of order", "e" + "\u0301\u0323" * half
    yield "nested JSON", 'a {"mask_strategy": ' + "[" * size
    yield "an open quote", '"' + "a" * size + "'b"


def short_texts(seed: int, count: int) -> Iterator[str]:
    """``count`` texts of a few pieces each."""
    chance = random.Random(seed)
    for _ in range(count):
        pool = chance.choice((MARKUP, WRITING, MARKUP + WRITING))
        if chance.random() < 0.5:
            pool = tuple(chance.choice(pool) for _ in range(chance.randrange(2, 7)))
        pieces = [chance.choice(pool) for _ in range(chance.randrange(1, chance.choice((6, 14, 30))))]
        if chance.random() < 0.1:
            pieces += [chr(chance.randrange(0x110000)) for _ in range(8)]
        yield "".join(pieces)
