"""What nodes say, as a person sees it when the run is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from browser.conftest import Page

pytestmark = [pytest.mark.server, pytest.mark.browser]


def test_what_a_node_says_stays_while_it_is_true(each_page: Page) -> None:
    visit = each_page.browser.visit("told", speaks="2.0", silent="1.2")
    for kind, found in visit.value.items():
        [text] = found["said"]
        assert "2.0" in text, kind
        assert found["cached"] == found["said"], f"{kind}: the node was not run again, and what it said holds"
        assert found["other"] == [], f"{kind}: it is no longer true"
        assert found["again"] == found["said"], kind
        assert found["made"] and found["undone"] == [text], f"{kind}: a step was undone"
        assert found["reloaded"] == [text] and found["seen"], f"{kind}: the page was loaded again"
        tabs = found["tabs"]
        assert tabs["elsewhere"] == [], f"{kind}: of the same number, in another workflow"
        assert tabs["back"] == [text] and tabs["seen"], f"{kind}: only the node in the other tab ran"
        assert tabs["asLarge"], f"{kind}: the text makes a node larger once"
        assert tabs["untrue"] == {"there": [], "back": []}, f"{kind}: it ran unseen and said nothing"
        assert tabs["unseen"] == {"there": [], "back": [text]}, f"{kind}: it ran unseen and said something"
        twin = tabs["twin"]
        assert twin["opened"] == [], f"{kind}: the same workflow opened once more has not run"
        assert twin["untrue"] == {"there": [], "back": []}, f"{kind}: nor is it the one that said nothing"
        assert twin["unseen"] == {"there": [], "back": [text]}, f"{kind}: nor the one that said something"
        assert tabs["last"] == found["gone"] == [], f"{kind}: it is not true either when the page is loaded again"
        inside = found["inside"]
        assert inside["outside"] == inside["out"] == [], f"{kind}: nodes of the same number that said nothing"
        assert inside["within"] == inside["back"] == [text], f"{kind}: a node inside another one"
    assert visit.errors == []
    assert visit.failed == []
