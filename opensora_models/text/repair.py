"""Repair of damaged Unicode text: what the original's cleaning asks of a text-repair library, written out.

Every step is deterministic and needs the standard library alone. Wrongly decoded UTF-8 ("mojibake") is repaired for
Windows-1252 and Latin-1, the two encodings it comes from in practice; exotic ones (Mac, DOS, Cyrillic) stay as they
are, where the original may still guess.
"""

from __future__ import annotations

import re
import unicodedata
from itertools import chain, groupby

_TERMINAL_ESCAPE = re.compile("\x1b\\[[\\d;]*[a-zA-Z]")
_SURROGATE_PAIR = re.compile("[\ud800-\udbff][\udc00-\udfff]")
_SURROGATE = re.compile("[\ud800-\udfff]")
_SINGLE_QUOTES = re.compile("[\u02bc\u2018-\u201b]")
_DOUBLE_QUOTES = re.compile("[\u201c-\u201f]")
_LINE_BREAKS = re.compile("\r\n|[\r\u2028\u2029\u0085]")


def _windows_1252() -> dict[int, str]:
    """Byte to character for 0x80–0xFF; the five bytes Windows leaves undefined keep their Latin-1 control character."""
    return {byte: bytes([byte]).decode("cp1252", errors="ignore") or chr(byte) for byte in range(0x80, 0x100)}


_CHARACTER_OF_BYTE = _windows_1252()
_BYTE_OF_CHARACTER = {char: byte for byte, char in _CHARACTER_OF_BYTE.items()} | {
    chr(byte): byte for byte in range(0x80, 0x100)
}
_C1_CONTROLS = {byte: _CHARACTER_OF_BYTE[byte] for byte in range(0x80, 0xA0)}

_LIGATURES = {
    code: "".join(chr(int(part, 16)) for part in unicodedata.decomposition(chr(code)).split()[1:])
    for code in chain((0x132, 0x133, 0x149), range(0x1C4, 0x1CD), range(0x1F1, 0x1F4), range(0xFB00, 0xFB07))
}
"""Latin letters written as one character: fi, ffl, ij, dž …"""

_WIDTHS = {0x3000: " "} | {
    code: plain for code in range(0xFF01, 0xFFF0) if (plain := unicodedata.normalize("NFKC", chr(code))) != chr(code)
}
"""Full-width and half-width forms to their ordinary character."""

_CONTROLS = dict.fromkeys(
    chain(
        range(0x00, 0x09),
        (0x0B,),
        range(0x0E, 0x20),
        (0x7F,),
        range(0x206A, 0x2070),  # deprecated formatting
        (0xFEFF,),  # byte order mark
        range(0xFFF9, 0xFFFD),  # annotations, object replacement
    )
)

_LONG_RUN = re.compile("[^\\w\\s\x00-\u02ff]{64,}")
_SPLIT_VOWELS = {0x0F73: "\u0f71\u0f72", 0x0F75: "\u0f71\u0f74", 0x0F81: "\u0f71\u0f80"}
"""Tibetan vowels that fall into two accents without being accents themselves."""


def repair_text(text: str) -> str:
    """Undo common damage and normalise: mojibake, ligatures, width, quotes, line breaks, control characters, NFC.

    Steps repeat until nothing changes, because one repair can uncover the next.
    """
    while (repaired := _repair_once(text)) != text:
        text = repaired
    return text


def _repair_once(text: str) -> str:
    text = "\n".join(repair_mojibake(line) for line in text.split("\n"))
    text = text.translate(_C1_CONTROLS).translate(_LIGATURES).translate(_WIDTHS)
    text = _SINGLE_QUOTES.sub("'", _DOUBLE_QUOTES.sub('"', text))
    text = _LINE_BREAKS.sub("\n", text)
    text = _SURROGATE_PAIR.sub(_join_surrogates, text)
    text = _SURROGATE.sub("\ufffd", text)
    text = _TERMINAL_ESCAPE.sub("", text).translate(_CONTROLS)
    return _composed(text)


def _composed(text: str) -> str:
    """``text`` in NFC.

    Python sorts a run of accents by moving each one past all that belong behind it. Where a run is long its accents
    are put in order first, which changes nothing in the result.
    """
    return unicodedata.normalize("NFC", _LONG_RUN.sub(_in_order, text))


def _in_order(run: re.Match[str]) -> str:
    ordered: list[str] = []
    for combines, group in groupby(run.group().translate(_SPLIT_VOWELS), lambda char: unicodedata.combining(char) > 0):
        accents = list(group)
        ordered += sorted(accents, key=unicodedata.combining) if combines else accents
    return "".join(ordered)


def _join_surrogates(pair: re.Match[str]) -> str:
    return pair.group().encode("utf-16", "surrogatepass").decode("utf-16")


def _class_of(first: int, last: int) -> str:
    return "[" + re.escape("".join(char for char, byte in _BYTE_OF_CHARACTER.items() if first <= byte <= last)) + "]"


_CONTINUATION = _class_of(0x80, 0xBF)
_NOT_A_LETTER = "[^šœžƒªºµˆ˜\xa0]"
# Three or four bytes of UTF-8, each read as one character. After "â" a space may stand for the lost byte A0.
_MOJIBAKE = re.compile(
    f"(?<!{_CONTINUATION})"
    f"(?:[\xe0-\xef](?={_NOT_A_LETTER}){_CONTINUATION}{{2}}"
    f"|\xe2(?={_NOT_A_LETTER}){_CONTINUATION} "
    f"|[\xf0-\xf4](?={_NOT_A_LETTER}){_CONTINUATION}{{3}})+"
)


def repair_mojibake(line: str) -> str:
    """Put back characters that were UTF-8 but have been read as Windows-1252 or Latin-1 ("â€¦" for "…").

    Only an accented letter followed by two or three signs no language writes there is touched. Two-byte sequences
    ("Ã©") do not survive the lower-casing and symbol rules that come before this step of the cleaning.
    """
    return _MOJIBAKE.sub(_decode_utf8, line)


def _decode_utf8(match: re.Match[str]) -> str:
    raw = bytes(0xA0 if char == " " else _BYTE_OF_CHARACTER[char] for char in match.group())
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return match.group()
