"""Reading a prompt as HTML and keeping its text, as the caption cleaning of the original does.

The original asks a forgiving HTML parser for the text of the document. The same text comes from the standard
library's parser with three rules on top: contents of scripts, styles, templates and ruby notes are not text, a tag
leaves no space behind, and an unknown entity stays as written but loses its semicolon.
"""

from __future__ import annotations

import html
from html.entities import html5
from html.parser import HTMLParser

HIDDEN_ELEMENTS = frozenset({"script", "style", "template", "rt", "rp"})
"""Elements whose contents are not part of a document's text."""

VOID_ELEMENTS = frozenset(
    ("area", "base", "basefont", "bgsound", "br", "col", "command", "embed", "frame", "hr", "image", "img", "input")
    + ("isindex", "keygen", "link", "menuitem", "meta", "nextid", "param", "source", "spacer", "track", "wbr")
)
"""Elements without contents or end tag (HTML 4 and 5)."""

_ASCII_SPACES = " \n\t\f\r"
_CDATA = "CDATA["


def text_of_html(markup: str) -> str:
    """The text of ``markup``; markup too broken to parse comes back unchanged.

    Entities are decoded, comments, declarations and hidden elements vanish, and no space takes a tag's place:
    ``"<p>a</p><p>b</p>"`` gives ``"ab"``.
    """
    if "<" not in markup and "&" not in markup:
        return markup
    reader = _TextReader()
    try:
        reader.feed(markup)
        reader.close()
    except (AssertionError, ValueError):  # what the standard parser raises for declarations such as "<![x"
        return markup
    return reader.text()


class _TextReader(HTMLParser):
    """Collects text pieces while keeping track of which elements are open."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=False)
        self._open: list[str] = []
        self._piece: list[str] = []
        self._pieces: list[str] = []

    def text(self) -> str:
        self._end_piece()
        return "".join(self._pieces)

    def _end_piece(self) -> None:
        """Close the text between two tags: dropped in hidden elements, one space if it was nothing but space."""
        piece, self._piece = "".join(self._piece), []
        if not piece or not HIDDEN_ELEMENTS.isdisjoint(self._open):
            return
        if not piece.strip(_ASCII_SPACES):
            piece = "\n" if "\n" in piece else " "
        self._pieces.append(piece)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._end_piece()
        if tag not in VOID_ELEMENTS:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self._end_piece()

    def handle_endtag(self, tag: str) -> None:
        self._end_piece()
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        self._piece.append(data)

    def handle_charref(self, name: str) -> None:
        number = int(name[1:], 16) if name[0] in "xX" else int(name)
        # html.unescape drops control characters, which would join the words around them too early.
        self.handle_data(html.unescape(f"&#{number};") or chr(number))

    def handle_entityref(self, name: str) -> None:
        self.handle_data(html5.get(f"{name};", f"&{name}"))

    def handle_comment(self, data: str) -> None:
        self._end_piece()

    def handle_decl(self, decl: str) -> None:
        self._end_piece()

    def handle_pi(self, data: str) -> None:
        self._end_piece()

    def unknown_decl(self, data: str) -> None:
        self._end_piece()
        if data.upper().startswith(_CDATA):
            self._pieces.append(data[len(_CDATA) :])
