"""Prompt language: score sentences, segments and the settings behind a prompt, against the recorded tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from golden.runner import Row, runs_table
from opensora.opensora_models.text import segments, wording

RAISES = "raises"


def _row(entry: dict[str, Any], compute: Callable[[], Any]) -> Row:
    """One line of a table; where the original raised any error will do, but there must be one."""
    try:
        got = compute()
    except ValueError:
        got = RAISES
    return Row(str(entry["in"]), got, entry.get("out", RAISES))


def _split(prompt: str) -> list[Any]:
    parts = segments.split_prompt(prompt)
    if not segments.is_segmented(prompt):
        return [[parts[0].text], None]
    return [[part.text.strip() for part in parts], [part.first_segment for part in parts]]


def _settings(prompt: str) -> list[Any]:
    found = segments.split_settings(prompt)
    return [[found.text], [found.reference_path], [found.mask_strategy]]


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
            yield _row(entry, lambda entry=entry: _settings(entry["in"]))


for _version in wording.WORDINGS:
    _register(_version)
