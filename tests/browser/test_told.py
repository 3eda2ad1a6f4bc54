"""What nodes say, as a person sees it when the run is over."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from browser.conftest import Page

pytestmark = [pytest.mark.server, pytest.mark.browser, pytest.mark.timeout(400)]


def test_what_a_node_says_stays_while_it_is_true(each_page: Page) -> None:
    visit = each_page.browser.visit("told", seconds=360, speaks="2.0", silent="1.2")
    for kind, found in visit.value.items():
        [text] = found["said"]
        assert "2.0" in text, kind
        assert found["cached"] == found["said"], f"{kind}: the node was not run again, and what it said holds"
        assert found["other"] == [], f"{kind}: it is no longer true"
        assert found["again"] == found["said"], kind
    assert visit.errors == []
    assert visit.failed == []
