"""What is kept, as a person sees it on the page."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from browser.conftest import Page

pytestmark = [pytest.mark.server, pytest.mark.browser]


def test_the_node_shows_its_report_and_the_dialog_its_setting(each_page: Page) -> None:
    visit = each_page.browser.visit("stored")
    assert any(" kept, " in str(value) for value in visit.value["shown"])
    assert visit.value["setting"] == 0 and visit.value["label"] >= 1
    assert visit.errors == []
    assert visit.failed == []
