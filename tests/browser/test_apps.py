"""App mode: the main templates show a person the few inputs that matter, and run from there."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.workflows import apps, every_node, read

if TYPE_CHECKING:
    from browser.conftest import Page

pytestmark = [pytest.mark.server, pytest.mark.browser]

SECONDS = {
    "Open-Sora 01 Text to video": 17 / 24,
    "Open-Sora 02 Image to video": 17 / 24,
    "Open-Sora 03 Text to image to video": 17 / 24,
    "Open-Sora 20 Extend video": 34 / 24,
    "Open-Sora 25 Long video": 68 / 24,
}
"""How long the video is that each app makes."""
STEPS = 6
WORKFLOWS = {path.stem: read(path) for path in apps()}


def app_of(workflow: dict[str, Any]) -> dict[str, Any]:
    """What app mode shows: ``inputs`` as ``[node, widget]``, ``outputs`` as nodes."""
    return dict(workflow["extra"]["linearData"])


def slots_of(workflow: dict[str, Any]) -> list[dict[str, Any]]:
    """The inputs of nodes that app mode shows, in its order."""
    nodes = {str(node["id"]): node for node in every_node(workflow)}
    return [
        slot for node, widget in app_of(workflow)["inputs"] for slot in nodes[node]["inputs"] if slot["name"] == widget
    ]


def labels_of(workflow: dict[str, Any]) -> list[str]:
    """What app mode calls them."""
    return [slot.get("label", slot["name"]) for slot in slots_of(workflow)]


@pytest.mark.parametrize("name", SECONDS)
def test_an_app_names_widgets_and_outputs_that_are_there(name: str) -> None:
    workflow = WORKFLOWS[name]
    nodes = {str(node["id"]): node for node in every_node(workflow)}
    app = app_of(workflow)
    assert len(slots_of(workflow)) == len(app["inputs"])
    assert all("widget" in slot and slot["link"] is None for slot in slots_of(workflow))
    assert app["inputs"][0][1] in ("prompt", "lines"), "the prompt comes first"
    assert nodes[app["outputs"][0]]["type"] == "OSoraDecodeToVideo"
    assert workflow["extra"]["linearMode"] is False, "a template opens as a graph"


@pytest.mark.parametrize("name", SECONDS)
def test_an_app_calls_no_two_inputs_alike(name: str) -> None:
    labels = labels_of(WORKFLOWS[name])
    assert len(set(labels)) == len(labels), labels


def test_the_main_templates_are_apps() -> None:
    assert set(WORKFLOWS) == set(SECONDS)


def test_apps_show_their_inputs_and_run(each_page: Page) -> None:
    visit = each_page.browser.visit("apps", graphs=WORKFLOWS, steps=STEPS)
    for name, seen in visit.value.items():
        labels = labels_of(WORKFLOWS[name])
        assert seen["shown"].split("\n") == labels, name
        assert len(seen["values"]) == len(labels) and all(seen["values"]), name
        assert (seen["width"], seen["seconds"]) == (64, pytest.approx(SECONDS[name], abs=0.05)), name
    assert visit.errors == []
    each_page.server.check_log()
