"""Open-Sora Guidance over Time in a real browser: core's curve editor, or plain numbers where the page draws none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Page

NAME = "Open-Sora 31 Guidance over time"
FLAT = {"points": [[0, 1], [1, 1]], "interpolation": "monotone_cubic"}
pytestmark = [pytest.mark.server, pytest.mark.browser]


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "Nodes 2.0"])
def test_a_curve_is_changed_saved_loaded_and_run(each_page: Page, vue: bool) -> None:
    visit = each_page.browser.visit(
        "curve", name=NAME, type="OSoraGuidanceCurve", points="text_points", written="0:1, 1:0.5", pull=-0.3, vue=vue,
    )  # fmt: skip
    found = visit.value
    assert visit.errors == visit.failed == []
    assert found["opened"]["text_points"] == "" and found["opened"]["image_curve"] == FLAT
    drawn, changed = found["opened"]["text_curve"], found["changed"]
    assert drawn["points"][-1] == [1, 0.2]
    if vue:
        assert changed["text_curve"]["points"][:-1] == drawn["points"][:-1]
        assert 0.4 <= changed["text_curve"]["points"][-1][1] <= 0.6
    else:
        assert (changed["text_points"], changed["text_curve"]) == ("0:1, 1:0.5", drawn)
    assert found["loaded"] == changed
    queued = found["queued"]["text_curve"]
    assert queued.get("__value__", queued) == changed["text_curve"], "newer pages wrap it, which ComfyUI takes off"
    assert (found["end"], found["refused"]) == ("execution_success", []), found["said"]
    assert "Text guidance 7 falls to 3" in " ".join(found["texts"].values())
