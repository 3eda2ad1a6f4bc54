"""Quoting stands in one file, and whatever it is given becomes one short, printable line."""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

import pytest
import torch

from opensora.opensora_models.messages import quoting
from support.pack import PACK_ROOT

TEXTS = (
    "",
    "a",
    "a\nb",
    "\x00\x1b[31m",
    "\ud800",
    "\u200b\u2028",
    "猫" * 3000,
    "x" * 100_000,
    "😀" * 200,
    "\U000e0001",
)
QUOTERS: tuple[tuple[Callable[[Any], str], int], ...] = (
    (quoting.shortened, 12 * quoting.SHOWN_CHARACTERS),
    (quoting.quoted, quoting.LONGEST_QUOTE + 2),
    (quoting.one_line, quoting.LONGEST_SENTENCE),
    (quoting.shown, quoting.LONGEST_QUOTE),
    (quoting.described, quoting.SHOWN_CHARACTERS + 2),
)


@pytest.mark.parametrize(("quote", "longest"), QUOTERS, ids=lambda each: getattr(each, "__name__", None))
@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_any_text_becomes_one_short_line(quote: Callable[[Any], str], longest: int, text: str) -> None:
    said = quote(text)
    assert len(said) <= longest and "\n" not in said
    assert said.isprintable() and said.encode("utf-8") is not None


@pytest.mark.parametrize("text", TEXTS, ids=ascii)
def test_any_path_is_short_and_can_be_written(text: str) -> None:
    said = quoting.shown_path(text)
    assert len(said) <= quoting.LONGEST_PATH + 2 and "\0" not in said and said.encode("utf-8") is not None


@pytest.mark.parametrize(
    ("said", "want"),
    [
        (quoting.shortened("a  cat\n sits " * 9, 10), "a cat sits …"),
        (quoting.quoted("my\nfile"), "'my\\x0afile'"),
        (quoting.one_line("\n first\nsecond"), "first"),
        (quoting.shown(list(range(9))), "a list of 9 entries"),
        (quoting.shown({"a": 1}), "{'a': 1}"),
        (quoting.shown(10**5000), "a very long number"),
        (quoting.described(torch.zeros(2, 3)), "a tensor of shape [2, 3]"),
        (quoting.described({"a": 1}), "a dict"),
        (quoting.described("a"), "'a'"),
        (quoting.described(None), "None"),
    ],
)
def test_forms(said: str, want: str) -> None:
    assert said == want


def test_nobody_else_quotes() -> None:
    """A second helper of one of these names, or one that cuts text with its own sign, would drift away."""
    names = {"quoted", "shown", "shortened", "one_line", "described", "shown_path", "in_quotes"}
    files = [path for room in ("nodes", "opensora_models") for path in (PACK_ROOT / room).rglob("*.py")]
    for path in files:
        if path.name == "quoting.py":
            assert path.parent.name == "messages"
            continue
        tree = ast.parse(path.read_text(encoding="utf-8"))
        defined = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert not defined & names, path
