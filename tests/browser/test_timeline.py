"""Open-Sora Timeline in a real browser: its text and its view say the same, whoever changes either."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Page

pytestmark = [pytest.mark.server, pytest.mark.browser]

TEXT = '{ "references": [\n  {"reference": 0, "length": 5},\n  {"at":-1 , "reference":1} ] }'
MOVED = TEXT.replace('"length": 5}', '"length": 5, "at": 5}')
BROKEN = '{"references": [{"at": 1]}'


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "Nodes 2.0"])
def test_the_timeline_is_dragged_and_its_text_keeps_its_form(each_page: Page, vue: bool) -> None:
    many = json.dumps({"references": [{"reference": n % 20, "at": n % 20} for n in range(200)]})
    visit = each_page.browser.visit("timeline", text=TEXT, broken=BROKEN, many=many, vue=vue)
    found = visit.value
    assert visit.errors == [] and found["drawn"] == 2
    assert found["moved"] == MOVED
    assert found["resized"] == MOVED.replace('"length": 5', '"length": 7')
    softened = json.loads(found["softened"])["references"]
    assert 0.4 <= softened[0]["strength"] <= 0.6 and softened[1] == {"at": -1, "reference": 1}
    assert found["undone"] == TEXT
    assert len(json.loads(found["pasted"])["references"]) == 3 and found["pasted"].startswith(TEXT[:60])
    assert json.loads(found["removed"]) == json.loads(TEXT)
    assert found["saved"] == [found["removed"], "crop"], "the view adds nothing to a saved workflow"
    assert {"plan", "clip_latent", "resize"} == set(found["queued"])
    assert found["costOfMany"] <= 3 * found["cost"] + 1, "a drag costs the same with many spans; 1 ms for the clock"
    assert found["kept"] == BROKEN and found["sentence"].startswith("The plan is not readable JSON")
