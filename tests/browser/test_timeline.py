"""Open-Sora Timeline in a real browser: its text and its view say the same, whoever changes either."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from opensora.training.reading import follow, read_clip
from support.videos import frames_and_rate

if TYPE_CHECKING:
    from conftest import Page

NAME = "Open-Sora 13 Keyframes on a timeline"
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
    assert json.loads(found["typed"])["references"][0] == {"reference": 0, "length": 5, "strength": 0.4}
    assert json.loads(found["words"])["prompts"] == [{"segment": 0, "text": "a calm / sea"}]
    assert found["elsewhere"] == 2, "spans of another segment are shown"
    assert found["saved"][1:] == ["crop"], "the view adds nothing to a saved workflow"
    assert {"plan", "clip_latent", "resize"} == set(found["queued"])
    assert found["costOfMany"] <= 3 * found["cost"] + 1, "a drag costs the same with many spans; 1 ms for the clock"
    assert found["kept"] == BROKEN and found["sentence"].startswith("The plan is not readable JSON")


def test_the_timeline_bears_rough_hands(each_page: Page, request: pytest.FixtureRequest) -> None:
    newest = request.node.callspec.params["each_page"] == "newest page"
    visit = each_page.browser.visit("timeline_stranger", vue=newest)
    found = visit.value
    assert visit.errors == []
    assert found["films"] == 2 and "data:image/png" in found["drawing"], (
        "what core's nodes will draw shows before a run"
    )
    place = {"reference": 0, "length": 3}
    assert (found["right"], found["left"]) == ({**place, "at": 15}, {**place, "at": 0}), "over the edges"
    assert found["narrow"] == found["escaped"] == {"reference": 0, "at": 0, "length": 1}
    assert (found["added"], found["deleted"]) == (3, 2), "a key after a button is the timeline's, not the page's"
    assert found["emptied"] == [{"references": []}, 2], "Delete never removes the node"
    assert found["broken"] == ["{broken", 2]
    first, second = found["pasted"]
    assert first == {"references": [{"reference": 1, "at": 10, "strength": 0.5}]}
    defaults = {"length": 1, "from": 0, "segment": 0}
    assert second == {"references": [{**first["references"][0], **defaults}]}
    moved = {"reference": 0, "at": 10, "length": 5}
    assert found["panel"] == found["zoomed"] == moved
    width, beside, top, still = found["beside"]
    assert (width, top) == (beside, still), "the panel leaves the node's own view where it is"
    assert found["panelClosed"] == [2, 0]
    text, left, sentence = found["locked"]
    assert found["wired"] and text["references"] == [moved], "the widget keeps its text while another comes by wire"
    assert left == "50%" and sentence.endswith("The plan comes by wire; change it where it is written.")
    assert "picture1 → picture0" in found["closed"], "the page closes a gap, and the numbers mean other pictures"
    assert found["inside"] == [moved, {**moved, "at": 5}] and found["insideFilms"] == 1, "in a subgraph as outside"


def test_the_timeline_runs_and_shows_what_became_of_it(each_page: Page, request: pytest.FixtureRequest) -> None:
    newest = request.node.callspec.params["each_page"] == "newest page"
    visit = each_page.browser.visit("timeline_run", name=NAME, vue=newest)
    found = visit.value
    assert visit.errors == visit.failed == []
    plan, moved = json.loads(found["opened"]), json.loads(found["moved"])
    assert moved["references"][1]["at"] == 3
    assert moved["references"][0] == plan["references"][0] and moved["references"][2] == plan["references"][2]
    assert found["loaded"] == found["copied"] == found["moved"], "saved, loaded and copied as it is"
    assert json.loads(found["typed"]) == plan, "a number that is typed moves it as well"
    assert (found["end"], found["refused"]) == ("execution_success", []), found["said"]
    items = [item for kinds in found["outputs"].values() for kind in kinds.values() for item in kind]
    (video,) = [item for item in items if isinstance(item, dict) and str(item.get("filename")).endswith(".mp4")]
    frames, _ = frames_and_rate(each_page.server.base / video["type"] / video["subfolder"] / video["filename"])
    assert frames.shape == (17, 64, 64, 3)
    seen = read_clip(frames)
    assert (seen.colour, seen.motion) == ("red", "right")
    across = follow(frames).x
    assert across[0] == pytest.approx(0.25, abs=0.06) and across[-1] == pytest.approx(0.72, abs=0.06)
    assert found["films"] == 3 and found["caption"].startswith("4 · 13 · ")
    assert "opensora_timeline" in found["picture"], "the play head shows what the last run was given"
    assert "Reference 1 fills latent frame 2" in found["sentence"]
