"""Caption cleaning: the rules every prompt of Open-Sora 1.0–1.3 was trained and sampled with.

The rules are applied twice in a row, in this order (`opensora/models/text_encoder/t5.py` of the original). They are
meant for captions scraped from the web and are blunt on purpose: "worshipping" becomes "wor". Cleaning a prompt
differently from the training text changes the picture, so nothing is made nicer here.
"""

from __future__ import annotations

import re
from urllib.parse import unquote_plus

from .links import without_file_names, without_links
from .markup import text_of_html, unescape
from .repair import repair_text

Rule = tuple[re.Pattern[str], str]

_DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)
_NUMBER = r"\d+(?:\.\d*)?"


def _rules(*rows: tuple[str, str]) -> tuple[Rule, ...]:
    return tuple((re.compile(pattern), replacement) for pattern, replacement in rows)


_SYMBOL_RULES = _rules(
    (r"@[\w\d]+\b", ""),  # account names
    # Chinese characters and their strokes, enclosed forms and hexagrams; kana and hangul stay
    ("[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+", ""),
    (f"[{_DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),  # network addresses
    (r"\d:\d\d\s+$", ""),  # time at the end
    (r"\\n", " "),  # a line break written out
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
)

_PUNCTUATION_RULES = _rules(
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"(?<!\s)\s+\.\s+", " "),
)

MANY_HYPHENS = 3
"""More hyphens and underscores than this make each of them a space."""

_WORD_RULES = _rules(
    # serial numbers: jc6640, jc6640vc, 6640vc231
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    # advertising
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (r"\b(?:png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4)(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d[a-zA-Z\d]*\b", " "),  # j2d1a2a
    (rf"\b{_NUMBER}[xх×]{_NUMBER}\b", ""),  # sizes; the second letter is Cyrillic
    # spacing around punctuation
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
)

_END_RULES = _rules(
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
)


def clean_prompt(text: str) -> str:
    """The text the tokenizer gets: the cleaning applied twice.

    The second pass sees what the first uncovered (``&lt;b&gt;`` becomes a tag and then vanishes), so one pass is not
    enough. Any string is accepted; the result may be empty.
    """
    return clean_once(clean_once(text))


def plain_prompt(text: str) -> str:
    """The original's alternative without cleaning: lower case, outer white space removed."""
    return text.lower().strip()


def clean_once(text: str) -> str:
    """One pass of the cleaning rules."""
    text = unquote_plus(text).strip().lower().replace("<person>", "person")
    text = _apply(_SYMBOL_RULES, text_of_html(without_links(text)))
    text = _apply(_PUNCTUATION_RULES, without_file_names(text))
    if text.count("-") + text.count("_") > MANY_HYPHENS:
        text = text.replace("-", " ").replace("_", " ")
    text = unescape(unescape(repair_text(text))).strip()
    return _apply(_END_RULES, _apply(_WORD_RULES, text)).strip()


def _apply(rules: tuple[Rule, ...], text: str) -> str:
    for pattern, replacement in rules:
        text = pattern.sub(replacement, text)
    return text
