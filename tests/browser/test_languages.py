"""The page in the complete languages: nodes, inputs and help in the language, no file of ours asked for in vain."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.translations import COMPLETE, DOCS, key_of, read_locale

if TYPE_CHECKING:
    from browser.conftest import Page

pytestmark = [pytest.mark.server, pytest.mark.browser]


GROWING = {"pictures"}
ON_THE_NEWEST = ("ja",)
"""There one complete language has to do: what sets the pages apart is the same in all of them."""


def test_the_page_speaks_every_complete_language(each_page: Page) -> None:
    languages = ON_THE_NEWEST if each_page.is_newest else COMPLETE
    object_info = each_page.server.object_info()
    ours = {name: info for name, info in object_info.items() if info["python_module"] == "custom_nodes.opensora"}
    pages = {language: {name: DOCS / name / f"{language}.md" for name in ours} for language in ("en", *languages)}
    headings = {
        language: {name: path.read_text(encoding="utf-8").splitlines()[0][2:] for name, path in of_nodes.items()}
        for language, of_nodes in pages.items()
    }
    visit = each_page.browser.visit("languages", headings=headings)
    assert {node["type"]: node["title"] for node in visit.value["en"]} == {
        name: info["display_name"] for name, info in ours.items()
    }
    for language in languages:
        texts, categories = read_locale(language, "nodeDefs"), read_locale(language, "main")["nodeCategories"]
        assert {node["type"] for node in visit.value[language]} == set(ours)
        for node in visit.value[language]:
            named = texts[node["type"]]
            assert node["title"] == named["display_name"]
            assert node["category"] == "/".join(categories[part] for part in ours[node["type"]]["category"].split("/"))
            # What an input grows is called by its number, as plans call it: that is the same in every language.
            inputs = {name: label for name, label in node["inputs"].items() if name.partition(".")[0] not in GROWING}
            assert inputs == {name: named["inputs"][key_of(name)]["name"] for name in inputs}
            assert node["outputs"] == [named["outputs"][str(i)]["name"] for i in range(len(node["outputs"]))]
    assert [line for line in (*visit.failed, *visit.errors) if "opensora" in line] == []
