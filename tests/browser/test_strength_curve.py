"""Open-Sora Strength over Clip in a real browser: the curve that is drawn, or the numbers, arrive in the frames."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from conftest import Page

NAME = "Open-Sora 29 Strength over clip"
pytestmark = [pytest.mark.server, pytest.mark.browser]


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "Nodes 2.0"])
def test_a_curve_is_changed_saved_loaded_and_run(each_page: Page, vue: bool) -> None:
    visit = each_page.browser.visit(
        "curve", name=NAME, type="OSoraStrengthCurve", points="strength_points", written="0:0, 1:0.7", pull=0.3,
        vue=vue,
    )  # fmt: skip
    found = visit.value
    assert visit.errors == visit.failed == []
    assert (found["opened"]["reference"], found["opened"]["strength_points"]) == (-1, "")
    drawn, changed = found["opened"]["strength_curve"], found["changed"]
    assert drawn["points"] == [[0, 0], [1, 1]]
    if vue:
        assert changed["strength_curve"]["points"][0] == [0, 0]
        last = changed["strength_curve"]["points"][-1][1]
        assert 0.55 <= last <= 0.85
    else:
        last = 0.7
        assert (changed["strength_points"], changed["strength_curve"]) == ("0:0, 1:0.7", drawn)
    assert found["loaded"] == changed
    queued = found["queued"]["strength_curve"]
    assert queued.get("__value__", queued) == changed["strength_curve"], "newer pages wrap it, which ComfyUI takes off"
    assert (found["end"], found["refused"]) == ("execution_success", []), found["said"]
    told = " ".join(found["texts"].values())
    (on_the_node,) = re.findall(r"Reference 0: its strength rises from 0 to ([\d.]+) over its 5 latent frames\.", told)
    (in_the_frames,) = re.findall(
        r"fills latent frames 0 to 4, edited with a strength that rises from 0 to (\S+)\.", told
    )
    assert on_the_node == in_the_frames and float(in_the_frames) == pytest.approx(last, abs=1e-3)
