"""Moving previews in a real browser: seen while a clip is sampled, and gone without a trace afterwards."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.workflows import page_workflows, read

if TYPE_CHECKING:
    from conftest import Page

pytestmark = [pytest.mark.server, pytest.mark.browser]

OF_THE_PAGE = "graph accessed before initialization"
"""What the page says of itself at every load, whatever runs; run.cjs leaves out those of the first."""
FRAMES = 5  # latent frames of the workflow's 17 frames


@pytest.mark.parametrize("vue", [False, True], ids=["classic", "Nodes 2.0"])
def test_a_clip_moves_while_it_is_sampled_and_leaves_nothing(
    each_page: Page, vue: bool, request: pytest.FixtureRequest
) -> None:
    graph = read(next(path for path in page_workflows() if path.stem == "Open-Sora 01 Text to video"))
    # A second window and a page that is loaded again are slow and the same everywhere.
    more = not vue and "newest" not in request.node.callspec.id
    visit = each_page.browser.visit("previews", graph=graph, vue=vue, more=more)
    found = visit.value
    assert [line for line in visit.errors if OF_THE_PAGE not in line] == []
    loop = found["loop"]
    assert loop["views"] == 1 and loop["frames"] >= 3, "all latent frames in their turn"
    assert loop["caption"].endswith(f"{FRAMES} latent frames") and " of 1000" in loop["caption"]
    assert loop["canvas"] == [8, 8] and min(loop["shown"]) > 100, "a latent is a pixel, made large"
    assert found["during"]["stills"] == 0, "no still picture beside it"
    saved = found["during"]["saved"]
    assert saved["size"] == found["before"]["saved"]["size"], "a workflow saved meanwhile does not tell"
    assert saved["values"] == found["interrupted"]["saved"]["values"]
    assert len(saved["values"]) == len(found["before"]["saved"]["values"])
    # ComfyUI makes a node larger for good for its still picture: the last run shows that, and a page that is loaded
    # again may be sent it before the first of ours.
    assert more or found["interrupted"]["size"] == found["before"]["size"], "the node is as large as it was"
    for later in ("interrupted", "after"):
        assert found[later]["widgets"] <= found["before"]["widgets"] + 1, "but for the line that a run writes"
    assert found["sheet"]["canvas"] == [24, 16] and found["sheet"]["frames"] == 1
    assert found["off"] == 0
    playing = {"playing": True, "loop": True, "muted": True}
    assert found["video"] == playing
    assert found["again"] == playing and found["sources"][0] != found["sources"][1], "the next run's video as well"
    if more:
        assert found["other"] == 0, "another window has not asked for it"
        assert found["reloaded"]["frames"] >= 3, "the page that comes back sees it again"
