"""Tags, comments and entities of any text, in time proportional to its length.

Finds what Python's HTML parser finds under the cleaning of the original (``html.parser`` as of Python 3.11.7): broken
tags are text, quotes hide brackets, and what is never closed is read anew as text. That parser looks through the whole
rest of the text for every tag left open, and newer ones read broken markup differently. Here every question about what
comes next is answered once, and on every Python alike.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from functools import cached_property
from typing import Protocol

TEXT_ONLY = ("script", "style")
"""Elements in which nothing but their own end tag is markup."""

SECTIONS = {"temp": 2, "cdata": 2, "ignore": 2, "include": 2, "rcdata": 2, "if": 1, "else": 1, "endif": 1}
"""Names of marked sections, and how many brackets close each."""

_INCOMPLETE = -1

_SIGN = re.compile("&(?=[a-zA-Z#])|<(?=[a-zA-Z/!?])")
_ENTITY = re.compile("&([a-zA-Z][-.a-zA-Z0-9]*)[^a-zA-Z0-9]")
_NUMBER = re.compile("&#([0-9]+|[xX][0-9a-fA-F]+)[^0-9a-fA-F]")
_TAG_NAME = re.compile(r"[a-zA-Z][^\t\n\r\f />\x00]*")
_TAG_NAME_END = re.compile(r"[\t\n\r\f />\x00]")
_END_TAG = re.compile(r"</\s*([a-zA-Z][-.a-zA-Z0-9:_]*)\s*>")
_SECTION_NAME = re.compile(r"[a-zA-Z][-_.a-zA-Z0-9]*\s*")

_GAP = re.compile(r"[\s/]*")
_ATTRIBUTE_START = re.compile(r"(?<=['\"\s/])[^\s/>]")
_ATTRIBUTE_NAME_END = re.compile(r"[\s/=>]")
_EQUALS = re.compile(r"\s*(=+)(\s*)")
_VALUE_END = re.compile(r"[>\s]")
_ATTRIBUTE_GAP = re.compile(r"(?:\s|/(?!>))*")


class BrokenMarkup(ValueError):
    """A declaration no HTML parser makes sense of, such as ``<![x``."""


class Reader(Protocol):
    """What wants to know of the parts of a text, in their order."""

    def data(self, text: str) -> None: ...
    def character(self, number: str) -> None: ...
    def entity(self, name: str) -> None: ...
    def start_tag(self, tag: str) -> None: ...
    def end_tag(self, tag: str) -> None: ...
    def section(self, content: str) -> None: ...
    def end_piece(self) -> None:
        """A comment, declaration or empty tag parts the text."""


def scan(text: str, reader: Reader) -> None:
    """Tell ``reader`` every part of ``text``. Raises BrokenMarkup."""
    scanner = _Scanner(text, reader)
    # First everything that is complete; then what is left, where incomplete markup is text.
    scanner.go_on(last=False)
    scanner.go_on(last=True)


class _Places:
    """Where a pattern occurs in a text: looked for once, asked for from any place."""

    def __init__(self, pattern: str | re.Pattern[str], text: str, missing: int = _INCOMPLETE) -> None:
        self._starts = [found.start() for found in re.finditer(pattern, text)]
        self._count = len(self._starts)
        self._starts.append(missing)

    def after(self, place: int) -> int:
        """The first occurrence that starts at ``place`` or later, or what was chosen for a missing one."""
        return self._starts[bisect_left(self._starts, place, 0, self._count)]


class _Scanner:
    """Walks through a text from sign to sign."""

    def __init__(self, text: str, reader: Reader) -> None:
        self.text = text
        self.reader = reader
        self.place = 0
        self.inside: str | None = None  # the element of TEXT_ONLY that is open
        self.tags = _TagEnds(text)
        # Behind the last bracket no start tag is complete; only a zero character could end one early.
        self.last_tag = text.rfind(">") if "\x00" not in text else len(text)

    @cached_property
    def closings(self) -> _Places:
        return _Places(">", self.text)

    @cached_property
    def openings(self) -> _Places:
        return _Places("<", self.text)

    def go_on(self, last: bool) -> None:
        """Read until the end or, unless this is the last time, until something is incomplete."""
        while self.place < len(self.text):
            if self.inside and not self._leave_element():
                return
            sign = _SIGN.search(self.text, self.place)
            stop = sign.start() if sign else len(self.text)
            self._take_text(stop)
            if not sign:
                break
            if not (self._markup(last) if sign[0] == "<" else self._reference(last)):
                break
        if last:
            self._take_text(len(self.text))

    def _take_text(self, stop: int) -> None:
        if self.place < stop:
            self.reader.data(self.text[self.place : stop])
        self.place = stop

    def _leave_element(self) -> bool:
        """Go to behind the end tag of an element that holds text only; False if there is none."""
        for found in _END_TAG.finditer(self.text, self.place):
            if found[1].lower() == self.inside:
                self.reader.data(self.text[self.place : found.start()])
                self.reader.end_tag(found[1].lower())
                self.place, self.inside = found.end(), None
                return True
        return False

    def _reference(self, last: bool) -> bool:
        """Take what starts with an ampersand; False where the rest is left for later."""
        text, place = self.text, self.place
        if text.startswith("&#", place):
            if found := _NUMBER.match(text, place):
                self.reader.character(found[1])
                self.place = found.end() if found[0][-1] == ";" else found.end() - 1
                return True
            if text.find(";", place) >= 0:
                self._take_text(place + 2)
            return False
        if found := _ENTITY.match(text, place):
            self.reader.entity(found[1])
            self.place = found.end() if found[0][-1] == ";" else found.end() - 1
            return True
        if last and len(text) == place + 2:
            self.place += 1
        return False

    def _markup(self, last: bool) -> bool:
        """Take what starts with "<"; False where the rest is left for later."""
        text, place = self.text, self.place
        following = text[place + 1]
        if following == "/":
            end = self._end_tag(place)
        elif following not in "!?":
            end = self._start_tag(place)
        elif text.startswith("<!--", place):
            end = self._comment(place)
        elif text.startswith("<![", place):
            end = self._section(place)
        else:
            end = self._declaration(place)
        if end == _INCOMPLETE:
            if not last:
                return False
            self._take_text(self._end_of_broken(place))
        else:
            self.place = end
        return True

    def _end_of_broken(self, place: int) -> int:
        """Up to where markup that is never complete is text."""
        closing = self.closings.after(place + 1)
        if closing >= 0:
            return closing + 1
        opening = self.openings.after(place + 1)
        return opening if opening >= 0 else place + 1

    def _start_tag(self, place: int) -> int:
        if place > self.last_tag:
            return _INCOMPLETE
        kind, name_end, end = self.tags.at(place)
        if kind == "data":
            self.reader.data(self.text[place:end])
        elif kind == "empty":
            self.reader.end_piece()
        elif kind == "start":
            tag = self.text[place + 1 : name_end].lower()
            self.reader.start_tag(tag)
            self.inside = tag if tag in TEXT_ONLY else None
        return end

    def _end_tag(self, place: int) -> int:
        closing = self.closings.after(place + 1)
        if closing < 0:
            return _INCOMPLETE
        name = _END_TAG.match(self.text, place)
        if name:
            self.reader.end_tag(name[1].lower())
        elif loose := _TAG_NAME.match(self.text, place + 2):
            self.reader.end_tag(loose[0].lower())
        elif closing > place + 2:
            self.reader.end_piece()
        return closing + 1

    def _comment(self, place: int) -> int:
        start = self._comment_ends.after(place + 4)
        if start < 0:
            return _INCOMPLETE
        self.reader.end_piece()
        return self.closings.after(start) + 1

    @cached_property
    def _comment_ends(self) -> _Places:
        return _Places(r"--\s*>", self.text)

    def _declaration(self, place: int) -> int:
        closing = self.closings.after(place + 2)
        if closing < 0:
            return _INCOMPLETE
        self.reader.end_piece()
        return closing + 1

    def _section(self, place: int) -> int:
        name = _SECTION_NAME.match(self.text, place + 3)
        if place + 3 == len(self.text) or (name and name.end() == len(self.text)):
            return _INCOMPLETE
        brackets = SECTIONS.get(name[0].strip().lower()) if name else None
        if brackets is None:
            raise BrokenMarkup("A declaration that starts with '<![' is of no known kind.")
        start = self._section_ends[brackets].after(place + 3)
        if start < 0:
            return _INCOMPLETE
        self.reader.section(self.text[place + 3 : start])
        return self.closings.after(start) + 1

    @cached_property
    def _section_ends(self) -> dict[int, _Places]:
        return {1: _Places(r"]\s*>", self.text), 2: _Places(r"]\s*]\s*>", self.text)}


class _TagEnds:
    """Finds where start tags end, through attributes whose values may hold brackets.

    From a place behind an attribute everything further is the same, whichever tag the reading began with. So places
    are remembered together with the end they lead to, and no attribute is read twice.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self._end_of_attributes: dict[int, int] = {}
        self._gaps: dict[int, int] = {}

    @cached_property
    def _tag_names(self) -> _Places:
        return _Places(_TAG_NAME_END, self.text, len(self.text))

    @cached_property
    def _attribute_names(self) -> _Places:
        return _Places(_ATTRIBUTE_NAME_END, self.text, len(self.text))

    @cached_property
    def _values(self) -> _Places:
        return _Places(_VALUE_END, self.text, len(self.text))

    @cached_property
    def _quotes(self) -> dict[str, _Places]:
        return {quote: _Places(quote, self.text) for quote in "'\""}

    def at(self, place: int) -> tuple[str, int, int]:
        """The tag that starts at ``place``: its kind, the end of its name, and its end.

        Kinds are "start", "empty" (``<a/>``), "data" (no tag after all) and "incomplete", whose end is -1.
        """
        name_end = self._tag_names.after(place + 1)
        if name_end not in self._gaps:
            self._gaps[name_end] = _match_end(_GAP, self.text, name_end)
        first = self._gaps[name_end]
        end = self._behind_attributes(first)
        following = self.text[end : end + 2]
        if following.startswith(">"):
            slash = end == first and self.text[end - 1] == "/"
            return "empty" if slash else "start", name_end, end + 1
        if following == "/>":
            return "empty", name_end, end + 2
        if not following or following[0] == "=":
            return "incomplete", name_end, _INCOMPLETE
        return "data", name_end, end

    def _behind_attributes(self, place: int) -> int:
        passed = []
        while place not in self._end_of_attributes and _ATTRIBUTE_START.match(self.text, place):
            passed.append(place)
            name_end = self._attribute_names.after(place + 1)
            place = _match_end(_ATTRIBUTE_GAP, self.text, self._behind_value(name_end))
        end = self._end_of_attributes.get(place, place)
        for each in passed:
            self._end_of_attributes[each] = end
        return end

    def _behind_value(self, place: int) -> int:
        """The place behind the value of an attribute whose name ends at ``place``; there if it has none."""
        equals = _EQUALS.match(self.text, place)
        if not equals:
            return place
        start = equals.end()
        quote = self.text[start : start + 1]
        if quote not in ("'", '"'):
            return self._values.after(start)
        closing = self._quotes[quote].after(start + 1)
        if closing >= 0:
            return closing + 1
        # A quote that is never closed opens no value: the value is empty, or what follows a second equals sign.
        if equals[2]:
            return start - 1
        return self._values.after(start - 1) if len(equals[1]) > 1 else place


def _match_end(pattern: re.Pattern[str], text: str, place: int) -> int:
    """The end of a pattern that matches everywhere."""
    found = pattern.match(text, place)
    return found.end() if found else place
