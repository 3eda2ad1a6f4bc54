"""Any text whatever goes through every function that reads text: quickly, and with one short sentence at worst."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from opensora.opensora_models import text
from opensora.opensora_models.messages.printable import is_printable
from opensora.opensora_models.text import segments, wording
from opensora.opensora_models.text.losses import losses, lost_pieces
from support.hostile_text import long_texts, short_texts

SIZE = 20_000
SECONDS = 1.0
LONGEST_SENTENCE = 500

OTHERS: dict[str, Any] = {
    "version": "1.3",
    "words": wording.AESTHETIC_WORDS,
    "change": str.upper,
    "segment": 3,
    "cut": 1,
    "clean": True,
    "reader": None,
    "prompt": "a cat",
    "task": "refine",
    "written": "a cat",
    "cleaned": "a cat",
    "read": "a cat",
    "text": "a cat",
    "fps": 24,
    "motion": None,
    "part": segments.PromptPart(0, "a cat"),
    "sentence": "it rains",
}
"""A value for every further parameter of those functions."""
LEFT_OUT = ("markup_scanner", "conditioning_file", "t5_config")
"""Modules whose functions read text on behalf of another one here, or read files."""


def readers_of_text() -> Iterator[Any]:
    """Every public function of the text room with every parameter that takes text, one at a time."""
    for found in pkgutil.iter_modules(text.__path__):
        module = importlib.import_module(f"{text.__name__}.{found.name}")
        for name, function in inspect.getmembers(module, inspect.isfunction):
            if name.startswith("_") or function.__module__ != module.__name__ or found.name in LEFT_OUT:
                continue
            for parameter in inspect.signature(function).parameters.values():
                if parameter.annotation in ("str", "object", "Score | None", "str | None"):
                    yield pytest.param(function, parameter.name, id=f"{found.name}.{name}({parameter.name})")


def call(function: Callable[..., Any], name: str, value: str) -> str | None:
    """The sentence of a refusal, None where the text was taken; anything else but ValueError is raised."""
    parameters = inspect.signature(function).parameters.values()
    needed = [each.name for each in parameters if each.default is inspect.Parameter.empty]
    try:
        function(**{each: OTHERS[each] for each in needed if each != name}, **{name: value})
    except ValueError as error:
        assert type(error) is ValueError, f"{type(error).__name__} for {value[:80]!r}"
        return str(error)
    return None


def check_sentence(said: str | None, given: str) -> None:
    if said is not None:
        assert said.endswith(".") and "\n" not in said, ascii(given[:80])
        assert len(said) < LONGEST_SENTENCE and is_printable(said), ascii(given[:80])


every_reader = pytest.mark.parametrize(("function", "name"), list(readers_of_text()))


@every_reader
def test_short_texts(function: Callable[..., Any], name: str) -> None:
    for given in short_texts(seed=7, count=800):
        for start in ("", "|0|", "a {"):
            check_sentence(call(function, name, start + given), start + given)


@every_reader
def test_long_texts(function: Callable[..., Any], name: str) -> None:
    for kind, given in long_texts(SIZE):
        start = time.process_time()
        check_sentence(call(function, name, given), given)
        assert time.process_time() - start < SECONDS, kind


def test_the_functions_are_found() -> None:
    found = {parameter.id for parameter in readers_of_text()}
    assert {"cleaning.clean_prompt(text)", "segments.split_settings(prompt)", "wording.read_motion(text)"} <= found
    assert {"losses.losses(written)", "refinement.answer(text)", "tokens.cut_message(words)"} <= found


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("|0|a|²|b", "'²' stands where a segment number belongs"),
        ("|0|a|" + "9" * 5000 + "|b", "999… is later than the last, 999"),
        ("|0|a|1000|b", "segment 1000 is later than the last, 999"),
        ("|0|a|\ud800|b", "'\\ud800' stands where"),
        ('a {"mask_strategy": ' + "[" * 100_000, "nested too deeply"),
        ('a {"mask_strategy": ' + "1" * 5000 + "}", "a number in them is too long"),
        ('a {"mask_strategy": NaN}', "is NaN, but must be text"),
        ('a {"mask_strategy": [1]}', "is a list, but must be text"),
        ('a {"reference_path": true}', "is true, but must be text"),
        ('a {"' + "k" * 5000 + '": 1}', "kkk …'"),
    ],
)
def test_what_was_wrong_is_said(prompt: str, said: str) -> None:
    def read() -> None:
        segments.split_prompt(prompt)
        segments.split_settings(prompt)

    with pytest.raises(ValueError) as caught:
        read()
    assert said.replace("…", " …") in str(caught.value).replace("  ", " ") or said in str(caught.value)
    check_sentence(str(caught.value), prompt)


@pytest.mark.parametrize(
    ("written", "cleaned", "pieces"),
    [
        ("一只猫，在跑", "，", ["一只猫,在跑"]),
        ("かわいい猫です", "かわいいです", ["猫"]),
        ("A cat. Cafe\u0301, ｆｕｌｌ ﬁne!", "a cat. café, full fine!", []),
        ("worshipping", "wor", ["worshipping"]),
        ("<b>Bold</b> at https://x.com/a", "bold at", ["<b>", "</b>", "https://x.com/a"]),
        ("a dog, a dog", "a dog, a", ["dog"]),
        ("hello%20world+again\\nthere &eacute;", "hello world again there é", []),
    ],
)
def test_lost_pieces(written: str, cleaned: str, pieces: list[str]) -> None:
    assert lost_pieces(written, cleaned) == pieces


@pytest.mark.parametrize(
    ("written", "read", "clean", "words"),
    [
        ("", "", True, ["there is no text"]),
        ("一只猫。", "。", True, ["no words are left of “一只猫。”", "the model reads English"]),
        ("x.png", "", True, ["no words are left of “x.png”", "write words"]),
        ("...", "...", False, ["no words are left"]),
        ('a {"mask_strategy": "0"}', 'a "mask_strategy": "0"', True, ["settings in braces", "Prompt Segments"]),
        ("a 猫", "a", True, ["took away or cut “猫”", "Generate Text"]),
        ("a shipping b", "a b", True, ["took away or cut “shipping”", "other words"]),
    ],
)
def test_losses_are_told(written: str, read: str, clean: bool, words: list[str]) -> None:
    (sentence,) = losses(written, read, clean)
    assert all(word in sentence for word in words), sentence


def test_nothing_is_told_of_an_ordinary_prompt() -> None:
    assert losses("A Cat, (very cute); it's 4k — “nice”!", 'a cat, very cute ; it\'s 4k - "nice"!', True) == []
    assert losses("<b>猫</b>", "<b>猫</b>", False) == []


def test_many_losses_are_counted() -> None:
    (sentence,) = losses("one " + " and ".join(f"www{n}.com" for n in range(30)), "one " + "and " * 29, True)
    assert "and 25 more" in sentence and len(sentence) < LONGEST_SENTENCE
