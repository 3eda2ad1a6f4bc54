"""Every language says what the nodes say: nothing missing, nothing left over, the same numbers and code words.

A language is complete (all texts and all help pages), or it has the names and descriptions of the nodes. English stands
in the nodes themselves; only of its help pages the page asks for ``<NodeId>/en.md`` first, a copy that
``python dev.py translations`` makes.
"""

from __future__ import annotations

import re

import pytest

from support.comfyui import comfyui_root, use_comfyui
from support.pack import PACK_ROOT
from support.translations import (
    COMPLETE,
    DOCS,
    FORMATTED,
    LOCALES,
    NAMED,
    blocks,
    broken_emphasis,
    differences,
    english_definitions,
    key_of,
    leaves,
    names_only,
    read_locale,
    unnamed,
)

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

from opensora.nodes import NODES  # noqa: E402 (needs ComfyUI in the process)

pytestmark = [pytest.mark.comfy]

SCRIPTS = {
    "ja": "[\u3041-\u30ff\u4e00-\u9fff]", "ko": "[\uac00-\ud7a3]", "zh": "[\u4e00-\u9fff]", "zh-TW": "[\u4e00-\u9fff]",
    "ru": "[\u0430-\u044f]",
}  # fmt: skip
A_SENTENCE = 4  # words; what is shorter may be a name that is the same everywhere
PAGES = sorted(node.define_schema().node_id for node in NODES)
ENGLISH = leaves(english_definitions(NODES))
CATEGORIES = {part for node in NODES for part in node.define_schema().category.split("/")}
# Settings are made by the page's part, in JavaScript.
SETTINGS = {
    name
    for path in (PACK_ROOT / "js").rglob("*.js")
    for name in re.findall(r"\bid:\s*[\"'](OpenSora(?:\.\w+)+)[\"']", path.read_text(encoding="utf-8"))
}

every_language = pytest.mark.parametrize("language", [*COMPLETE, *NAMED])
complete_languages = pytest.mark.parametrize("language", COMPLETE)
page_texts = pytest.mark.parametrize("node", PAGES)


def titles(language: str) -> dict[str, tuple[str, str]]:
    named = read_locale(language, "nodeDefs")
    return {node: (ENGLISH[f"{node}.display_name"], named[node]["display_name"]) for node in PAGES}


def faults_of(english: str, other: str, language: str) -> list[str]:
    """What is wrong with one text of a language."""
    faults = differences(english, other) + unnamed(english, other, titles(language))
    prose = re.sub(r"`[^`]*`", "", english)
    if english.startswith("| |"):  # a row without a word before it holds what the models were trained with
        return faults
    if len(re.findall(r"[a-z]{2,}", prose)) >= A_SENTENCE and not re.search(SCRIPTS.get(language, "[a-z]"), other):
        faults.append("is not in the language")
    return faults


def test_no_language_but_these() -> None:
    assert {path.name for path in LOCALES.iterdir()} == {*COMPLETE, *NAMED}
    assert {path.stem for path in DOCS.glob("*/*.md")} == {"en", *COMPLETE}


@every_language
def test_nothing_is_missing_or_left_over(language: str) -> None:
    given = leaves(read_locale(language, "nodeDefs"))
    wanted = ENGLISH if language in COMPLETE else names_only(ENGLISH)
    assert sorted(wanted.keys() - given.keys()) == [], "missing"
    assert sorted(given.keys() - wanted.keys()) == [], "left over"
    assert [address for address, text in given.items() if not isinstance(text, str) or not text.strip()] == []


@every_language
def test_texts_hold_the_same_numbers_and_code_words(language: str) -> None:
    given = leaves(read_locale(language, "nodeDefs"))
    texts = {address: text for address, text in given.items() if address in ENGLISH and not address.endswith(".name")}
    faults = {address: faults_of(ENGLISH[address], text, language) for address, text in texts.items()}
    assert {address: found for address, found in faults.items() if found} == {}


@every_language
def test_names_and_descriptions_are_plain_messages(language: str) -> None:
    given = {**leaves(read_locale(language, "nodeDefs")), **leaves(read_locale(language, "main"))}
    formatted = [text for address, text in given.items() if not address.endswith(".tooltip") and FORMATTED.search(text)]
    assert formatted == []


@every_language
def test_nodes_are_told_apart_and_called_open_sora(language: str) -> None:
    shown = [name for _, name in titles(language).values()]
    assert sorted(shown) == sorted(set(shown))
    assert [name for name in shown if "Open-Sora" not in name] == []


@complete_languages
def test_categories_and_settings_are_translated(language: str) -> None:
    main = read_locale(language, "main")
    assert set(main["nodeCategories"]) == CATEGORIES
    assert set(main.get("settingsCategories", {})) == {part for name in SETTINGS for part in name.split(".")}
    assert set(read_locale(language, "settings")) == {key_of(name) for name in SETTINGS}


def test_every_help_page_is_there_in_every_complete_language() -> None:
    wanted = {f"{node}/{language}.md" for node in PAGES for language in ("en", *COMPLETE)}
    assert {path.relative_to(DOCS).as_posix() for path in DOCS.glob("*/*.md")} == wanted


def test_english_pages_are_copies() -> None:
    stale = [node for node in PAGES if (DOCS / node / "en.md").read_bytes() != (DOCS / f"{node}.md").read_bytes()]
    assert stale == [], "run: python dev.py translations"


@complete_languages
@page_texts
def test_a_help_page_says_what_the_english_one_says(node: str, language: str) -> None:
    english = blocks((DOCS / f"{node}.md").read_text(encoding="utf-8"))
    other = blocks((DOCS / node / f"{language}.md").read_text(encoding="utf-8"))
    assert [kind for kind, _ in other] == [kind for kind, _ in english]
    pairs = zip(english, other, strict=True)
    assert [text for kind, text in english if kind == "code"] == [text for kind, text in other if kind == "code"]
    prose = [(first, second) for (kind, first), (_, second) in pairs if kind != "code"]
    faults = [(second, faults_of(first, second, language) + broken_emphasis(second)) for first, second in prose]
    assert [(text, found) for text, found in faults if found] == []


@complete_languages
@page_texts
def test_a_help_page_names_inputs_and_outputs_as_the_node_shows_them(node: str, language: str) -> None:
    page = (DOCS / node / f"{language}.md").read_text(encoding="utf-8").lower()
    named = leaves(read_locale(language, "nodeDefs")[node])
    shown = [text for address, text in named.items() if address.endswith(".name")]
    assert [name for name in shown if name.lower() not in page] == []
