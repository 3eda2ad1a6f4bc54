"""Reading a prompt as HTML and keeping its text, as the caption cleaning of the original does.

The original asks a forgiving HTML parser for the text of the document. The same text comes from the tags found by
``markup_scanner`` with three rules on top: contents of scripts, styles, templates and ruby notes are not text, a tag
leaves no space behind, and an unknown entity stays as written but loses its semicolon.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from html.entities import html5

from .markup_scanner import BrokenMarkup, scan

HIDDEN_ELEMENTS = frozenset({"script", "style", "template", "rt", "rp"})
"""Elements whose contents are not part of a document's text."""

VOID_ELEMENTS = frozenset(
    ("area", "base", "basefont", "bgsound", "br", "col", "command", "embed", "frame", "hr", "image", "img", "input")
    + ("isindex", "keygen", "link", "menuitem", "meta", "nextid", "param", "source", "spacer", "track", "wbr")
)
"""Elements without contents or end tag (HTML 4 and 5)."""

_ASCII_SPACES = " \n\t\f\r"
_CDATA = "CDATA["

_LEADING_ZEROS = re.compile("(?<=&#)0+(?=[0-9])")
_TOO_LARGE = re.compile("(?<=&#)([0-9]{9})[0-9]+")


def text_of_html(markup: str) -> str:
    """The text of ``markup``; markup too broken to parse comes back unchanged.

    Entities are decoded, comments, declarations and hidden elements vanish, and no space takes a tag's place:
    ``"<p>a</p><p>b</p>"`` gives ``"ab"``. Time grows in proportion to the text, whatever it holds.
    """
    if "<" not in markup and "&" not in markup:
        return markup
    reader = _TextReader()
    try:
        scan(markup, reader)
    except BrokenMarkup:
        return markup
    return reader.text()


def unescape(text: str) -> str:
    """``html.unescape`` for numbers of any length: a character number with thousands of digits is no character."""
    return html.unescape(_TOO_LARGE.sub(r"\1", _LEADING_ZEROS.sub("", text)))


class _TextReader:
    """Collects text pieces while keeping track of which elements are open."""

    def __init__(self) -> None:
        self._open: list[str] = []
        self._count: Counter[str] = Counter()
        self._hidden = 0
        self._piece: list[str] = []
        self._pieces: list[str] = []

    def text(self) -> str:
        self.end_piece()
        return "".join(self._pieces)

    def end_piece(self) -> None:
        """Close the text between two tags: dropped in hidden elements, one space if it was nothing but space."""
        if not self._piece:
            return
        piece, self._piece = "".join(self._piece), []
        if not piece or self._hidden:
            return
        if not piece.strip(_ASCII_SPACES):
            piece = "\n" if "\n" in piece else " "
        self._pieces.append(piece)

    def start_tag(self, tag: str) -> None:
        self.end_piece()
        if tag not in VOID_ELEMENTS:
            self._open.append(tag)
            self._count[tag] += 1
            self._hidden += tag in HIDDEN_ELEMENTS

    def end_tag(self, tag: str) -> None:
        self.end_piece()
        closed = None
        while self._count[tag] and closed != tag:
            closed = self._open.pop()
            self._count[closed] -= 1
            self._hidden -= closed in HIDDEN_ELEMENTS

    def data(self, text: str) -> None:
        self._piece.append(text)

    def character(self, number: str) -> None:
        """A character by its number, in decimal digits or "x" and hexadecimal ones."""
        base = 16 if number[0] in "xX" else 10
        digits = number[1:] if base == 16 else number
        digits = digits.lstrip("0") or "0"
        code = int(digits, base) if len(digits) < 9 else 0x110000  # beyond the last character
        # html.unescape drops control characters, which would join the words around them too early.
        self.data(html.unescape(f"&#{code};") or chr(code))

    def entity(self, name: str) -> None:
        self.data(html5.get(f"{name};", f"&{name}"))

    def section(self, content: str) -> None:
        """A section such as ``<![CDATA[ … ]]>``, which is text, or ``<![if … ]>``, which is not."""
        self.end_piece()
        if content.upper().startswith(_CDATA):
            self._pieces.append(content[len(_CDATA) :])
