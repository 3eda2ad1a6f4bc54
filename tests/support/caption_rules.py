"""The cleaning rules of the original written as plainly as possible, without a thought for time.

HTML is read by Python's own parser. What the pack does in linear time is held against this on short texts.
"""

from __future__ import annotations

import html
import re
from collections.abc import Callable
from html.entities import html5
from html.parser import HTMLParser
from urllib.parse import unquote_plus

from opensora.opensora_models.text.cleaning import MANY_HYPHENS
from opensora.opensora_models.text.markup import HIDDEN_ELEMENTS, VOID_ELEMENTS
from opensora.opensora_models.text.repair import repair_text

DOMAIN = r"[a-zA-Z0-9.\-]+\.(?:com|co|ru|net|org|edu|gov|it)[\w/\-]*\b/?(?!@)"
FILE_TYPES = "png|jpg|jpeg|bmp|webp|eps|pdf|apk|mp4"
DASHES = (
    "\u002d\u058a\u05be\u1400\u1806\u2010-\u2015\u2e17\u2e1a\u2e3a\u2e3b\u2e40\u301c\u3030\u30a0"
    "\ufe31\ufe32\ufe58\ufe63\uff0d"
)
LINKS = [(rf"\b(?:{start}:(?:/{{1,3}}|[a-zA-Z0-9%])|{DOMAIN})", "") for start in ("https?", "www")]
SYMBOLS = [
    (r"@[\w\d]+\b", ""),
    ("[\u31c0-\u31ef\u31f0-\u31ff\u3200-\u32ff\u3300-\u33ff\u3400-\u4dbf\u4dc0-\u4dff\u4e00-\u9fff]+", ""),
    (f"[{DASHES}]+", "-"),
    ("[`´«»“”¨]", '"'),
    ("[‘’]", "'"),
    (r"&quot;?", ""),
    (r"&amp", ""),
    (r"\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}", " "),
    (r"\d:\d\d\s+$", ""),
    (r"\\n", " "),
    (r"#\d{1,3}\b", ""),
    (r"#\d{5,}\b", ""),
    (r"\b\d{6,}\b", ""),
    (rf"\S+\.(?:{FILE_TYPES})", ""),
    (r"[\"']{2,}", '"'),
    (r"\.{2,}", " "),
    (r"[#®•©™&@·º½¾¿¡§~()\[\]{}|\\/*]+", " "),
    (r"\s+\.\s+", " "),
]
WORDS = [
    (r"\b[a-zA-Z]{1,3}\d{3,15}\b", ""),
    (r"\b[a-zA-Z]+\d+[a-zA-Z]+\b", ""),
    (r"\b\d+[a-zA-Z]+\d+\b", ""),
    (r"(?:worldwide\s+)?(?:free\s+)?shipping", ""),
    (r"(?:free\s)?download(?:\sfree)?", ""),
    (r"\bclick\b\s(?:for|on)\s\w+", ""),
    (rf"\b(?:{FILE_TYPES})(?:\simages?)?", ""),
    (r"\bpage\s+\d+\b", ""),
    (r"\b\d*[a-zA-Z]+\d+[a-zA-Z]+\d+[a-zA-Z\d]*\b", " "),
    (r"\b\d+\.?\d*[xх×]\d+\.?\d*\b", ""),
    (r"\b\s+:\s+", ": "),
    (r"(\D[,./])\b", r"\1 "),
    (r"\s+", " "),
    (r"^[\"']([\w\W]+)[\"']$", r"\1"),
    (r"^['_,\-:;]", ""),
    (r"['_,\-:+]$", ""),
    (r"^\.\S+$", ""),
]


def clean_once(text: str, read_html: Callable[[str], str]) -> str:
    """One pass; ``read_html`` gives the text of a document."""
    text = apply(LINKS, unquote_plus(text).strip().lower().replace("<person>", "person"))
    text = apply(SYMBOLS, read_html(text))
    if text.count("-") + text.count("_") > MANY_HYPHENS:
        text = re.sub("[-_]", " ", text)
    return apply(WORDS, html.unescape(html.unescape(repair_text(text))).strip()).strip()


def apply(rules: list[tuple[str, str]], text: str) -> str:
    """Every rule once, in order."""
    for pattern, replacement in rules:
        text = re.sub(pattern, replacement, text)
    return text


def pythons_text_of_html(markup: str) -> str:
    """The text of a document as Python's parser reads it; broken declarations leave it unchanged."""
    reader = _Reader()
    try:
        reader.feed(markup)
        reader.close()
    except AssertionError:
        return markup
    reader.end_piece()
    return "".join(reader.pieces)


def pythons_parser_is_the_recorded_one() -> bool:
    """Whether this Python reads broken markup as the Python the original was recorded with (3.11.7)."""
    return pythons_text_of_html("a<!--b--!>c") == "a<!--b--!>c" and pythons_text_of_html("a</b c") == "a</b c"


class _Reader(HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self.open: list[str] = []
        self.piece = ""
        self.pieces: list[str] = []

    def end_piece(self) -> None:
        piece, self.piece = self.piece, ""
        if piece and HIDDEN_ELEMENTS.isdisjoint(self.open):
            self.pieces.append(piece if piece.strip(" \n\t\f\r") else "\n" if "\n" in piece else " ")

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.end_piece()
        if tag not in VOID_ELEMENTS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.end_piece()

    def handle_endtag(self, tag: str) -> None:
        self.end_piece()
        while tag in self.open:
            if self.open.pop() == tag:
                break

    def handle_data(self, data: str) -> None:
        self.piece += data

    def handle_charref(self, name: str) -> None:
        number = int(name[1:], 16) if name[0] in "xX" else int(name)
        self.handle_data(html.unescape(f"&#{number};") or chr(number))

    def handle_entityref(self, name: str) -> None:
        self.handle_data(html5.get(f"{name};", f"&{name}"))

    def handle_comment(self, data: str) -> None:
        self.end_piece()

    handle_decl = handle_pi = handle_comment

    def unknown_decl(self, data: str) -> None:
        self.end_piece()
        if data.upper().startswith("CDATA["):
            self.pieces.append(data[6:])
