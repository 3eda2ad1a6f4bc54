"""Score sentences, segments, token limits and requests: what the recorded tables do not ask."""

from __future__ import annotations

from pathlib import Path

import pytest

from opensora.opensora_models.text import refinement, segments, wording
from opensora.opensora_models.text.tokens import cut_message, limit_tokens


def pairs(*ids: int) -> list[tuple[int, float]]:
    return [(token, 1.0) for token in ids]


@pytest.mark.parametrize(
    ("score", "word"),
    [(0, "terrible"), (3.99, "terrible"), (4, "very poor"), (5.5, "good"), (6.49, "very good"), (6.5, "excellent")],
)
def test_aesthetic_bounds(score: float, word: str) -> None:
    assert wording.word_for(score, wording.AESTHETIC_WORDS) == word


@pytest.mark.parametrize(
    ("score", "word"), [(0.4, "very low"), (0.5, "low"), (19.9, "very high"), (20, "extremely high")]
)
def test_motion_bounds(score: float, word: str) -> None:
    assert wording.word_for(score, wording.MOTION_WORDS) == word


def test_every_word_and_its_number_belong_together() -> None:
    for words in (wording.AESTHETIC_WORDS, wording.MOTION_WORDS):
        for word in words:
            assert wording.word_for(wording.number_for(word, words), words) == word


def test_typed_scores() -> None:
    assert wording.read_aesthetic("1.2", " 6.5 ") == 6.5
    assert wording.read_aesthetic("1.3", "Very Good") == "very good"
    assert wording.read_motion("1.3", "off") is None and wording.read_motion("1.2", "") is None


@pytest.mark.parametrize(
    ("version", "text", "message"),
    [
        ("1.2", "good", "the number for 'good' is 5.5"),
        ("1.3", "excelent", "the nearest good value is 'excellent'"),
        ("1.2", "-3", "a number from 0 up"),
        ("1.3", "nan", "a number from 0 up"),
    ],
)
def test_unusable_scores_are_refused(version: str, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        wording.read_aesthetic(version, text)


def test_segments_to_text_and_back() -> None:
    prompt = "|0| a forest |2| the sea"
    assert segments.prompt_of_segment(prompt, 1).strip() == "a forest"
    assert segments.prompt_of_segment(prompt, 9).strip() == "the sea"
    assert segments.join_parts(segments.split_prompt(prompt)) == "|0|a forest|2|the sea"
    assert segments.each_part(prompt, str.upper) == "|0|A FOREST|2|THE SEA"
    assert segments.each_part("a | b", str.upper) == "A | B"


@pytest.mark.parametrize("prompt", ["|0|a|0|b", "|0|a|3|b|2|c", "|0|a|", "|0|a|x|b", "|0|a|-1|b", "|0|"])
def test_broken_segments_are_refused(prompt: str) -> None:
    if prompt == "|0|":
        assert segments.split_prompt(prompt) == [segments.PromptPart(0, "")]
        return
    with pytest.raises(ValueError, match="starts with .0. but"):
        segments.split_prompt(prompt)


def test_lines_become_segments() -> None:
    assert segments.prompt_from_lines("a cat\n") == "a cat"
    assert segments.prompt_from_lines("a\n\nb\r\nc") == "|0|a|2|b|3|c"
    assert segments.prompt_from_lines("") == ""
    with pytest.raises(ValueError, match="first line is empty"):
        segments.prompt_from_lines(" \nb")
    with pytest.raises(ValueError, match="contains '|'"):
        segments.prompt_from_lines("a|b\nc")


def test_conditioning_of_a_segment() -> None:
    everywhere, first, later = ["e", {}], ["f", {"opensora_segment": 0}], ["l", {"opensora_segment": 2}]
    conditioning = [everywhere, first, later]
    assert segments.conditioning_of_segment(conditioning, 0) == [everywhere, first]
    assert segments.conditioning_of_segment(conditioning, 1) == [everywhere, first]
    assert segments.conditioning_of_segment(conditioning, 5) == [everywhere, later]
    assert segments.conditioning_of_segment([everywhere], 3) == [everywhere]


def test_settings_behind_a_prompt() -> None:
    found = segments.split_settings('a cat {"mask_strategy": "0,1"}')
    assert (found.text, found.mask_strategy, found.reference_path) == ("a cat ", "0,1", "")
    with pytest.raises(ValueError, match="not 'seed'"):
        segments.split_settings('a {"seed": 1}')
    with pytest.raises(ValueError, match="one JSON object"):
        segments.split_settings('a {"curly cat')
    assert segments.split_settings("a {curly} cat").text == "a {curly} cat"


def test_limit_keeps_the_end_token() -> None:
    kept, cut = limit_tokens(pairs(5, 6, 7, 8, 1, 0, 0), 4)
    assert kept == pairs(5, 6, 7, 1) and cut == pairs(8)
    assert limit_tokens(pairs(1, 0, 0)) == (pairs(1), [])
    assert limit_tokens(pairs(1, 1), 300) == (pairs(1, 1), [])


def test_cut_message_is_short() -> None:
    message = cut_message("word " * 500, 500)
    assert "500 tokens longer than the 300" in message and len(message) < 300 and message.count("\n") == 0


def test_requests() -> None:
    assert set(refinement.tasks()) == {"refine", "invent", "continue the picture"}
    for task in refinement.tasks():
        text = refinement.request(task, " a {red} kite ")
        assert text.endswith("a {red} kite") and "{prompt}" not in text and "<!--" not in text
    assert refinement.request("invent", "").endswith("none")
    with pytest.raises(ValueError, match="no task 'x'"):
        refinement.request("x", "")


def test_answers() -> None:
    assert refinement.answer('<think>hm\nhm</think>\n"A cat."') == "A cat."
    assert refinement.answer("<think>never ends") == ""
    assert refinement.answer('"Hi," she says, "you."') == '"Hi," she says, "you."'
    assert refinement.answer("plain") == "plain"


@pytest.mark.parametrize("content", [b"", b"no heading at all\n", b"#refine without space", b"\xff\xfe\x00", None])
def test_instructions_without_a_section_are_said(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "prompt_writer.md"
    if content is not None:
        path.write_bytes(content)
    monkeypatch.setattr(refinement, "INSTRUCTIONS", path)
    refinement.tasks.cache_clear()
    try:
        assert refinement.tasks() == {}
        with pytest.raises(ValueError, match="prompt_writer.md has no section; begin each with a line such as '# refi"):
            refinement.request(refinement.NO_TASK, "a cat")
    finally:
        refinement.tasks.cache_clear()


def test_instructions_with_a_byte_order_mark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "prompt_writer.md"
    path.write_text("# refine\n\nDo it: {prompt}", encoding="utf-8-sig")
    monkeypatch.setattr(refinement, "INSTRUCTIONS", path)
    refinement.tasks.cache_clear()
    try:
        assert refinement.request("refine", " x ") == "Do it: x"
    finally:
        refinement.tasks.cache_clear()
