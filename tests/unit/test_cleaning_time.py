"""Cleaning takes time in proportion to the prompt, and gives what the rules of the original give."""

from __future__ import annotations

import random
import time
import unicodedata
from itertools import islice

import pytest

from opensora.opensora_models.text.cleaning import clean_once, clean_prompt
from opensora.opensora_models.text.markup import text_of_html, unescape
from opensora.opensora_models.text.repair import repair_text
from support.caption_rules import clean_once as plain_rules
from support.caption_rules import pythons_parser_is_the_recorded_one, pythons_text_of_html
from support.hostile_text import long_texts, short_texts

SIZE = 100_000
SECONDS = 1.0
"""Measured 0.05 to 0.4; what takes quadratic time needs ten seconds and more."""


def test_long_prompts_are_cleaned_in_a_moment() -> None:
    seconds = {}
    # A sample; `test_any_text` has them all at a fifth of the length.
    for name, text in islice(long_texts(SIZE), 1, None, 6):
        start = time.process_time()
        clean_prompt(text)
        seconds[name] = time.process_time() - start
    assert {name: spent for name, spent in seconds.items() if spent > SECONDS} == {}


def test_links_words_and_symbols_go_as_by_the_plain_rules() -> None:
    for text in short_texts(seed=1, count=6000):
        assert clean_once(text) == plain_rules(text, text_of_html), repr(text)


@pytest.mark.skipif(not pythons_parser_is_the_recorded_one(), reason="this Python reads broken markup differently")
def test_markup_is_read_as_by_pythons_parser() -> None:
    for text in short_texts(seed=2, count=8000):
        if "<" in text or "&" in text:
            assert text_of_html(text) == pythons_text_of_html(text), repr(text)


@pytest.mark.parametrize(
    ("markup", "text"),
    [
        ("a<!--b--!>c", "a<!--b--!>c"),
        ("a</b c", "a</b c"),
        ("<a <b <i>x", "x"),
        ("<a x='>' y=\">\">z", "z"),
        ("<a x='>z", "<a x='>z"),
        ("<a x==' >z", "z"),
        ("<a x= '>z", "z"),
        ("<a\x00b>c", "<a\x00b>c"),
        ("<script>a<b>c</script/></ script >d", "d"),
        ("<a/>b<script/>c", "bc"),
        ("&#;&#;&#65; x", "&#;&#;&#65; x"),
        ("a &b", "a b"),
        ("<![cdata[a>b]]>c", "a>bc"),
        ("<![x", "<![x"),
    ],
)
def test_broken_markup_on_every_python(markup: str, text: str) -> None:
    assert text_of_html(markup) == text


def test_accents_are_put_in_order_as_by_unicode() -> None:
    chance = random.Random(3)
    accents = [chr(code) for code in range(0x300, 0x1000) if unicodedata.category(chr(code)).startswith("M")]
    for _ in range(300):
        few = chance.sample(accents, chance.randrange(1, 8)) + ["a"] * chance.randrange(2)
        text = "".join(chance.choice(few) for _ in range(chance.randrange(300)))
        assert repair_text(text) == unicodedata.normalize("NFC", text), ascii(text)


def test_numbers_of_any_length_are_read() -> None:
    assert unescape("&#0065;&#" + "0" * 9000 + "66;&#" + "9" * 9000 + ";&#x43") == "AB\ufffdC"
    assert text_of_html("&#" + "0" * 9000 + "65;&#" + "9" * 9000 + ";&#x" + "0" * 9000 + "42;") == "A\ufffdB"
