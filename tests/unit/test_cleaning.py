"""Caption cleaning beyond the recorded pairs: its known surprises, damaged text, and any text at all."""

from __future__ import annotations

import random
import unicodedata

import pytest

from opensora.opensora_models.text.cleaning import clean_once, clean_prompt, plain_prompt
from opensora.opensora_models.text.markup import text_of_html
from opensora.opensora_models.text.repair import repair_mojibake, repair_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("the sea.It was loud", "the was loud"),
        ("ftp://files", "ftp: files"),
        ("C++ at f/1.8, 35mm", "c at f 1.8, 35mm"),
        ("4k 60fps 8k", "4k 60fps 8k"),
        ("#777 #7777 #77777", "7777"),
        ("3.5x2", "3."),
        ("e.g. this", "e. g. this"),
        ("a_b_c_d_e", "a b c d e"),
        ("a_b_c-d", "a_b_c-d"),
        ("100%2525", "100%"),
        ("click on it, free download", ""),
        ("at 7:45\n", "at 7:45"),
    ],
)
def test_surprises_of_the_original(text: str, expected: str) -> None:
    assert clean_prompt(text) == expected


def test_score_sentences_survive() -> None:
    for text in (
        "a boat. aesthetic score: 6.5. motion score: 4.0. camera motion: pan left.",
        "a boat. the aesthetic score is good. the motion strength is fair.",
    ):
        assert clean_prompt(text) == text


def test_the_second_pass_sees_what_the_first_uncovered() -> None:
    assert clean_once("&lt;b&gt;bold") == "<b>bold"
    assert clean_prompt("&lt;b&gt;bold") == "bold"


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("<p>a</p><p>b</p>", "ab"),
        ("a<br>b", "ab"),
        ("<script>x()</script>a<style>b{}</style>", "a"),
        ("<template>hidden", ""),
        ("<b>open", "open"),
        ("a &lt; b &amp; c &eacute;", "a < b & c é"),
        ("&foo; &#65; &#x42; &#128;", "&foo A B €"),
        ("<!-- a --><!doctype html><?x?>b", "b"),
        ("x < y > z", "x < y > z"),
        ("no markup", "no markup"),
    ],
)
def test_text_of_html(markup: str, text: str) -> None:
    assert text_of_html(markup) == text


@pytest.mark.parametrize(
    ("damaged", "repaired"),
    [
        ("donâ€™t", "don’t"),
        ("wait â€¦", "wait …"),
        ("â€“ and â€”", "– and —"),
        ("ä¸\xad", "中"),
        ("â€ t", "†t"),
        ("pâté à l’été, žluťoučký kůň, ßü", "pâté à l’été, žluťoučký kůň, ßü"),
        ("café\xa0€5", "café\xa0€5"),
    ],
)
def test_mojibake(damaged: str, repaired: str) -> None:
    assert repair_mojibake(damaged) == repaired


def test_repair_normalises() -> None:
    assert repair_text("ﬁne ｆｕｌｌ　ｗｉｄｔｈ ‘a’ “b”") == "fine full width 'a' \"b\""
    assert repair_text("a\r\nb\rc\u2028d\x1b[31me\x00\ufeff") == "a\nb\nc\nde"
    assert repair_text("cafe\u0301 \ud83d\ude00 \ud800") == "café 😀 \ufffd"


def test_without_cleaning_only_case_and_edges_change() -> None:
    assert plain_prompt("  A <b>Cat</b> ") == "a <b>cat</b>"


def _random_text(chance: random.Random) -> str:
    pieces = ("<", ">", "&", "&#", "&amp;", "<b>", "</", "<!", "<![", "<?", "%", "%41", "www:", "http://", ".com", "@")
    makers = (
        lambda: chance.choice(pieces),
        lambda: chr(chance.randrange(32, 127)),
        lambda: chr(chance.randrange(0x110000)),
        lambda: chance.choice("â€™œ é…中カ한😀\x00\x85\xa0\u200b\u2028\ud800"),
    )
    return "".join(chance.choice(makers)() for _ in range(chance.randrange(40)))


def test_any_text_is_cleaned_to_clean_text() -> None:
    chance = random.Random(5)
    for _ in range(3000):
        text = _random_text(chance)
        cleaned = clean_prompt(text)
        assert cleaned == cleaned.strip(), repr(text)
        assert unicodedata.normalize("NFC", cleaned) == cleaned, repr(text)
        assert not set(cleaned) & set("\x00\r\n\ufeff"), repr(text)
        assert not any("\ud800" <= char <= "\udfff" for char in cleaned), repr(text)
