"""Ends of prompts and padding of tokens in Open-Sora 2.0."""

from __future__ import annotations

import pytest

from opensora.opensora_models.text.padding import CLIP_END, CLIP_LENGTH, T5_LENGTH, aligned_length, padded
from opensora.opensora_models.text.suffixes import (
    MOTION_WORDS,
    append_once,
    append_suffixes,
    ends_as_trained,
    read_motion,
)


@pytest.mark.parametrize(
    ("prompt", "fps", "motion", "result"),
    [
        ("raining, sea", 24, 4, "raining, sea. 24 FPS. 4 motion score."),
        (" a cat. ", 24.0, "7", "a cat. 24 FPS. 7 motion score."),
        ("a cat", 23.976, None, "a cat. 23.976 FPS."),
        ("a cat. 8 FPS", 24, 4.0, "a cat. 8 FPS. 4 motion score."),
        ("at 8 FPS it jumps", 24, 2.5, "at 8 FPS it jumps. 24 FPS. 2.5 motion score."),
    ],
)
def test_prompts_end_in_frame_rate_and_motion(prompt: str, fps: float, motion: float | None, result: str) -> None:
    assert append_suffixes(prompt, fps, motion) == result


@pytest.mark.parametrize(
    ("prompt", "result"),
    [
        ("raining, sea", "raining, sea. 24 FPS. 7 motion score."),
        ("raining, sea. 24 FPS. 4 motion score.", "raining, sea. 24 FPS. 4 motion score."),
        (" a cat. 8 FPS. ", "a cat. 8 FPS. 7 motion score."),
        ("a cat. 2.5 motion score.", "a cat. 24 FPS. 2.5 motion score."),
        ("a cat. 24 FPS, 4 motion score.", "a cat. 24 FPS, 4 motion score."),
        ("4 motion score.", ". 24 FPS. 4 motion score."),
        ("it has a 4 motion score. A cat", "it has a 4 motion score. A cat. 24 FPS. 7 motion score."),
    ],
)
def test_a_prompt_keeps_the_end_it_has(prompt: str, result: str) -> None:
    assert append_once(prompt, 24, 7) == result == append_once(result, 16, 1)
    assert ends_as_trained(result) and ends_as_trained(append_suffixes(prompt, 8, None))
    assert not ends_as_trained("it has a 4 motion score. A cat") and not ends_as_trained("")


@pytest.mark.parametrize(("text", "score"), [("", None), (" Off ", None), ("5", 5.0), ("strong", 7), (" Static", 1)])
def test_motion_is_read(text: str, score: float | None) -> None:
    assert read_motion(text) == score


@pytest.mark.parametrize(("text", "nearest"), [("strongg", "strong"), ("0", "1"), ("99", "15"), ("nan", "1")])
def test_other_motion_is_refused_with_a_value_that_is_accepted(text: str, nearest: str) -> None:
    with pytest.raises(ValueError, match=f"nearest.*{nearest}"):
        read_motion(text)
    assert read_motion(nearest) is not None


def test_words_for_motion_go_from_still_to_strong() -> None:
    assert list(MOTION_WORDS.values()) == sorted(MOTION_WORDS.values())


@pytest.mark.parametrize("count", [1, 5, 511, 512, 513, 700])
def test_tokens_are_exactly_as_many_as_the_network_reads(count: int) -> None:
    pairs = [(token + 2, 1.0) for token in range(count - 1)] + [(1, 1.0)]
    kept, cut = padded(pairs)
    assert len(kept) == T5_LENGTH and len(cut) == max(0, count - T5_LENGTH)
    end = min(count, T5_LENGTH) - 1
    assert kept[end] == (1, 1.0) and all(pair == (0, 1.0) for pair in kept[end + 1 :])
    assert padded([*pairs, *[(0, 1.0)] * 9])[0] == kept  # padding of another tokenizer does not count


def test_padding_keeps_what_else_a_token_carries() -> None:
    kept, _ = padded([(49406, 1.0, 0), (320, 1.0, 1), (CLIP_END, 1.0, 0)], CLIP_LENGTH, CLIP_END)
    assert len(kept) == CLIP_LENGTH and {len(pair) for pair in kept} == {3} and kept[-1][0] == CLIP_END


@pytest.mark.parametrize(("visual", "multiple", "want"), [(8316, 8, 516), (8320, 8, 512), (8316, 1, 512), (1, 0, 512)])
def test_sequences_are_filled_to_whole_multiples(visual: int, multiple: int, want: int) -> None:
    assert aligned_length(512, visual, multiple) == want
