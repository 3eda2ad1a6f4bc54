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
WIRES = (
    ("OSoraModelLoader", 0, "OSoraSampler", "Open-Sora Sampler"),
    ("OSoraTextEncoderLoader", 0, "OSoraTextEncode", "Open-Sora Text Encode"),
    ("OSoraVAELoader", 0, "OSoraReference", "Open-Sora Reference"),
    ("OSoraTextEncode", 0, "OSoraSampler", "Open-Sora Sampler"),
    ("OSoraSampler", 0, "OSoraDecodeToVideo", "Open-Sora Decode to Video"),
)
"""A wire by its node and output, and a node that has to be offered for it: by its id in the menu of a wire dropped with
Shift, by its title in the search that opens without, once a few letters are typed. Before that the search lists the 64
nodes that people use most, by a table of the page that no pack can add to."""


def test_the_search_lists_what_a_graph_begins_with(each_page: Page) -> None:
    visit = each_page.browser.visit("search", words=list(LISTED), wires=[wire[:2] for wire in WIRES], letters="open")
    seen = visit.value["words"]
    for words, titles in LISTED.items():
        assert titles <= set(seen[words]), (words, seen[words])
    assert all(title.startswith("Open-Sora ") for title in seen["open-sora"][:TOP])
    assert set(seen["text to video"][:TOP]) >= LISTED["text to video"], "nothing of core stands between"
    assert "Extend Video (Open-Sora)" in seen["extend"][:TOP]
    for kind, slot, node, title in WIRES:
        assert node in visit.value["menus"][f"{kind} {slot}"], visit.value["menus"]
        assert title in visit.value["lists"][f"{kind} {slot}"][:TOP], visit.value["lists"]
    assert visit.errors == []
