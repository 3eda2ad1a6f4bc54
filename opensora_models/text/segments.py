"""Prompts that change over a long video: ``|0| a forest |2| the sea`` and the settings a prompt may end with.

A number says from which segment on its text holds, until the next number. Such a prompt starts with ``|0|``; any
other text, bars included, is one prompt for the whole video. Source: ``split_prompt``, ``merge_prompt``,
``extract_prompts_loop`` and ``extract_json_from_prompts`` of the original.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..messages.quoting import shortened

OPENING = "|0|"
SEGMENT_KEY = "opensora_segment"
"""Key of a conditioning entry that says from which segment of a long video on it holds."""

MAX_SEGMENTS = 1000
"""Segments a long video may have; numbers count from 0."""

SETTINGS = ("reference_path", "mask_strategy")
_SETTINGS_START = re.compile(r'\{\s*(?:"|\}\s*$)')


@dataclass(frozen=True)
class PromptPart:
    """A prompt and the first segment it holds for."""

    first_segment: int
    text: str


@dataclass(frozen=True)
class PromptSettings:
    """A prompt and the conditioning written behind it in braces."""

    text: str
    reference_path: str = ""
    mask_strategy: str = ""


def is_segmented(prompt: str) -> bool:
    """Whether the prompt changes over the segments of a long video."""
    return prompt.startswith(OPENING)


def split_prompt(prompt: str) -> list[PromptPart]:
    """The parts of a prompt, their text as written; a prompt without segments is one part from segment 0.

    Raises ValueError for bars that do not pair up, numbers that do not grow, and segments no video has.
    """
    if not is_segmented(prompt):
        return [PromptPart(0, prompt)]
    pieces = prompt.split("|")[1:]
    if len(pieces) % 2:
        raise ValueError(_grammar(prompt, "a number stands without text behind it"))
    parts = []
    for number, text in zip(pieces[::2], pieces[1::2], strict=True):
        parts.append(PromptPart(_segment_number(prompt, number.strip()), text))
    for before, after in zip(parts, parts[1:], strict=False):
        if after.first_segment <= before.first_segment:
            raise ValueError(_grammar(prompt, f"segment {after.first_segment} follows {before.first_segment}"))
    return parts


def join_parts(parts: Sequence[PromptPart]) -> str:
    """The prompt text of several parts, outer white space removed from each."""
    return "".join(f"|{part.first_segment}|{part.text.strip()}" for part in parts)


def each_part(prompt: str, change: Callable[[str], str]) -> str:
    """``prompt`` with ``change(text)`` applied to every part, segments kept."""
    if not is_segmented(prompt):
        return change(prompt)
    return join_parts([PromptPart(part.first_segment, change(part.text.strip())) for part in split_prompt(prompt)])


def prompt_of_segment(prompt: str, segment: int) -> str:
    """The text that holds in ``segment`` (from 0), as written."""
    return [part.text for part in split_prompt(prompt) if part.first_segment <= segment][-1]


def prompt_from_lines(lines: str) -> str:
    """A segmented prompt from one line per segment; an empty line lets the text before it go on.

    A single line is an ordinary prompt, and a prompt that is segmented already stays one. Raises ValueError where the
    first line is empty but a later one is not, for bars in a line, and for more lines than a video has segments.
    """
    if is_segmented(lines.lstrip()):
        return join_parts(split_prompt(lines.strip()))
    texts = [line.strip() for line in lines.strip("\n").splitlines()]
    if len(texts) < 2:
        return "".join(texts)
    if not texts[0]:
        raise ValueError("The first line is empty, but the first segment needs a prompt of its own.")
    if len(texts) > MAX_SEGMENTS:
        raise ValueError(f"There are {len(texts)} lines, but a long video has at most {MAX_SEGMENTS} segments.")
    if any("|" in text for text in texts):
        raise ValueError("A line contains '|', which separates segments; write the prompt without it.")
    return join_parts([PromptPart(number, text) for number, text in enumerate(texts) if text])


def split_settings(prompt: str) -> PromptSettings:
    """Separate a prompt from the JSON object behind it that names references and the mask strategy.

    Braces that do not open a JSON object are text, where the original gives up; a setting that is null is not given.
    Raises ValueError for a second object, broken JSON, other keys, and values that are neither text nor a number.
    """
    opening = _SETTINGS_START.search(prompt)
    if not opening:
        return PromptSettings(prompt)
    text = prompt[: opening.start()]
    settings = _read_json(prompt[opening.start() :])
    unknown = sorted(set(settings) - set(SETTINGS))
    if unknown:
        known = " and ".join(SETTINGS)
        raise ValueError(f"The settings behind the prompt know {known}, not '{shortened(unknown[0])}'.")
    return PromptSettings(text, **{key: _setting(key, value) for key, value in settings.items()})


def conditioning_of_segment(conditioning: Sequence[Any], segment: int) -> list[Any]:
    """The entries of a CONDITIONING that hold in ``segment``; entries without a mark hold everywhere.

    Of the marked ones those with the largest first segment that is not later than ``segment`` are taken.
    """
    marks = [entry[1][SEGMENT_KEY] for entry in conditioning if SEGMENT_KEY in entry[1]]
    current = max((mark for mark in marks if mark <= segment), default=None)
    return [entry for entry in conditioning if entry[1].get(SEGMENT_KEY, current) == current]


def texts_of_one_clip(conditioning: Sequence[Any]) -> tuple[list[Any], list[int]]:
    """The entries of a CONDITIONING that one clip is made of, and the later segments whose texts are left out."""
    marks = sorted({entry[1][SEGMENT_KEY] for entry in conditioning if SEGMENT_KEY in entry[1]})
    return (conditioning_of_segment(conditioning, marks[0]), marks[1:]) if marks else (list(conditioning), [])


def _segment_number(prompt: str, number: str) -> int:
    if not number.isdecimal():
        raise ValueError(_grammar(prompt, f"'{shortened(number)}' stands where a segment number belongs"))
    if len(number) > len(str(MAX_SEGMENTS)) or int(number) >= MAX_SEGMENTS:
        raise ValueError(_grammar(prompt, f"segment {shortened(number)} is later than the last, {MAX_SEGMENTS - 1}"))
    return int(number)


def _read_json(text: str) -> dict[str, Any]:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        reason = f"{error.msg}, character {error.pos + 1} of them"
    except ValueError:
        reason = "a number in them is too long"
    except RecursionError:
        reason = "they are nested too deeply"
    raise ValueError(
        f"The braces behind the prompt do not hold one JSON object ({reason}); write for example "
        '{"reference_path": "first.png", "mask_strategy": "0"}.'
    )


def _setting(key: str, value: Any) -> str:
    if value is None:
        return ""
    endless = isinstance(value, float) and not math.isfinite(value)
    if isinstance(value, bool) or endless or not isinstance(value, (str, int, float)):
        kind = "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else json.dumps(value)
        raise ValueError(f"The setting {key} behind the prompt is {kind}, but must be text in quotation marks.")
    return str(value)


def _grammar(prompt: str, problem: str) -> str:
    written = shortened(prompt)
    return f"The prompt '{written}' starts with |0| but {problem}; write '|0| first text |2| text from segment 2'."
