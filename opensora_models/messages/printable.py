"""Text that any log, terminal and network message can carry.

Prompts and file names may hold half characters: a lone surrogate from a broken JSON escape, or the bytes of a file
name that is not UTF-8, which Python keeps as surrogates. Writing such text to a UTF-8 stream raises, and ComfyUI writes
error messages to one in the thread that runs all prompts. Whatever quotes text from outside goes through here.
"""

from __future__ import annotations

import logging
import re

_HALF_CHARACTER = re.compile("[\ud800-\udfff]")


def printable(text: object) -> str:
    """``str(text)`` with every half character written out, for example ``\\ud800``; other text is unchanged."""
    return _HALF_CHARACTER.sub(lambda found: f"\\u{ord(found[0]):04x}", str(text))


def is_printable(text: str) -> bool:
    """Whether every character of ``text`` is a whole one."""
    return _HALF_CHARACTER.search(text) is None


class PrintableRecords(logging.Filter):
    """Makes the records of a logger printable, whatever text they quote."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Keeps every record; its text is put together here if it holds a half character."""
        text = record.getMessage()
        if not is_printable(text):
            record.msg, record.args = printable(text), None
        return True
