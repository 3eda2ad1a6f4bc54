"""Requests to a language model that writes or improves prompts, and what is kept of its answer.

The model itself is ComfyUI's: its text generation node takes the request and gives the answer. Nothing here calls
anything.
"""

from __future__ import annotations

import logging
import re
from functools import cache
from pathlib import Path

from ..messages.quoting import shortened

logger = logging.getLogger("opensora")

INSTRUCTIONS = Path(__file__).with_name("prompt_writer.md")
"""A person may edit this file; sections are tasks."""

NO_TASK = "no instructions"
"""The only choice where the file has no section."""
REPAIR = "begin each with a line such as '# refine', or install the pack anew to have its own back."

PLACE = "{prompt}"
_REASONING = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL | re.IGNORECASE)


@cache
def tasks() -> dict[str, str]:
    """Instructions by task, in the order of the file; none where it cannot be read or has no section."""
    try:
        text = INSTRUCTIONS.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        logger.warning("%s cannot be read (%s); %s", INSTRUCTIONS.name, type(error).__name__, REPAIR)
        return {}
    parts = re.split(r"^# (.+)$", text, flags=re.MULTILINE)[1:]
    return {name.strip(): body.strip() for name, body in zip(parts[::2], parts[1::2], strict=True)}


def request(task: str, prompt: str) -> str:
    """What to ask the language model. Raises ValueError for a task the file does not have."""
    known = tasks()
    if not known:
        raise ValueError(
            f"There are no instructions for a language model: {INSTRUCTIONS.name} has no section; {REPAIR}"
        )
    if task not in known:
        raise ValueError(f"There is no task '{shortened(task)}'; the instructions know {', '.join(known)}.")
    return known[task].replace(PLACE, prompt.strip() or "none")


def unanswered(text: str) -> str:
    """What to tell of a language model's text that ends before an answer begins; nothing where there is one."""
    if not text.strip() or answer(text):
        return ""
    return "The prompt is a language model's reasoning without an answer; let Generate Text write more tokens."


def answer(text: str) -> str:
    """The prompt in a language model's answer: its reasoning, quotation marks and outer white space removed."""
    text = _REASONING.sub("", text).strip()
    quoted = len(text) > 1 and text[0] == text[-1] == '"' and '"' not in text[1:-1]
    return text[1:-1].strip() if quoted else text
