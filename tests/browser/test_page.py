"""ComfyUI's page with the pack, in a real browser: it loads cleanly and knows every node."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.videos import write_persons_video
from support.workflows import PREVIEWS, page_workflows, read, to_api

if TYPE_CHECKING:
    from browser.conftest import Page

pytestmark = [pytest.mark.server, pytest.mark.browser]


def test_the_page_knows_every_node_and_complains_of_nothing(each_page: Page, object_info: dict[str, Any]) -> None:
    visit = each_page.browser.visit("smoke")
    ours = {name for name, info in object_info.items() if info["python_module"] == "custom_nodes.opensora"}
    assert set(visit.value["registered"]) == ours
    titles = {node["type"]: node["title"] for node in visit.value["placed"]}
    assert titles == {name: object_info[name]["display_name"] for name in ours}
    assert visit.errors == []
    assert visit.failed == []
    assert visit.foreign == []


@pytest.mark.skipif(not page_workflows(), reason="no page workflow is shipped yet")
def test_the_page_makes_of_every_workflow_what_the_tests_validate(each_page: Page, object_info: dict[str, Any]) -> None:
    write_persons_video(each_page.server.base / "input")
    workflows = {path.stem: read(path) for path in page_workflows()}
    visit = each_page.browser.visit("workflows", workflows=workflows)
    for name, workflow in workflows.items():
        page = {key: bare(node) for key, node in visit.value[name].items()}
        assert page == to_api(workflow, object_info), name
    assert visit.errors == []


def bare(node: dict[str, Any]) -> dict[str, Any]:
    """A node of the page's prompt without titles, previews, and the types that newer pages write around values."""
    inputs = {name: untyped(value) for name, value in node["inputs"].items() if name not in PREVIEWS}
    return {"class_type": node["class_type"], "inputs": inputs}


def untyped(value: Any) -> Any:
    """As ComfyUI 0.30 gives it to the node."""
    return value["__value__"] if isinstance(value, dict) and "__type__" in value else value


def test_a_template_is_found_runs_and_shows_its_video(each_page: Page) -> None:
    visit = each_page.browser.visit(
        "template", name="Open-Sora 01 Text to video", words="open-sora", ends_in="OSoraDecodeToVideo"
    )
    assert all(name.startswith("Open-Sora ") for name in visit.value["first"]), visit.value["first"]
    assert (visit.value["width"], visit.value["height"]) == (64, 64)
    assert visit.value["seconds"] == pytest.approx(17 / 24, abs=0.05)
    assert visit.errors == []
    assert visit.failed == []
