"""Words of a newcomer in the page's search for nodes: what a graph begins with is among what it lists.

The page ranks by the words of ids and titles, then by how often people use a node of core. Aliases decide whether a
node is listed, not where: so the blueprints, which have the words in their titles, stand at the top.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from browser.conftest import Page

pytestmark = [pytest.mark.server, pytest.mark.browser]

LOADERS = {"Open-Sora Load Model", "Open-Sora Load Text Encoder", "Open-Sora Load VAE"}
LISTED = {
    "open-sora": {"Open-Sora Sampler", "Open-Sora Reference", *LOADERS},
    "text to video": {"Open-Sora Sampler", *LOADERS, "Text to Video (Open-Sora)"},
    "extend": {"Open-Sora Sampler", "Open-Sora Reference", *LOADERS, "Extend Video (Open-Sora)"},
}
TOP = 10


def test_the_search_lists_what_a_graph_begins_with(each_page: Page) -> None:
    visit = each_page.browser.visit("search", words=list(LISTED))
    for words, titles in LISTED.items():
        assert titles <= set(visit.value[words]), (words, visit.value[words])
    assert all(title.startswith("Open-Sora ") for title in visit.value["open-sora"][:TOP])
    assert set(visit.value["text to video"][:TOP]) >= LISTED["text to video"], "nothing of core stands between"
    assert "Extend Video (Open-Sora)" in visit.value["extend"][:TOP]
    assert visit.errors == []
