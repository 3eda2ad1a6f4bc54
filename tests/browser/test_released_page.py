"""Released weights, blueprints and apps on the page: what it saves of them, what it offers to download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.workflows import apps, blueprints, every_node, offered, read, released_workflows

if TYPE_CHECKING:
    from support.browser import Browser

pytestmark = [pytest.mark.server, pytest.mark.browser]


def as_saved(graph: dict[str, Any]) -> dict[str, Any]:
    """A graph without what the page adds or drops whenever it saves: the view, and a blueprint's name and category."""
    nodes = [{key: value for key, value in node.items() if key != "title"} for node in graph["nodes"]]
    (*parts,) = ({key: value for key, value in part.items() if key != "category"} for part in
                 graph.get("definitions", {}).get("subgraphs", ()))  # fmt: skip
    return {"nodes": nodes, "links": graph["links"], "groups": graph.get("groups", []), "subgraphs": parts}


def test_they_are_what_the_page_saves(browser: Browser) -> None:
    graphs = {path.stem: read(path) for path in (*released_workflows(), *blueprints())}
    shown = {path.stem: read(path) for path in apps()}
    saved = browser.visit("saved", graphs={**graphs, **shown}).value
    for name, graph in graphs.items():
        assert as_saved(saved[name]) == as_saved(graph), name
    for name, graph in shown.items():
        assert saved[name]["extra"]["linearData"] == graph["extra"]["linearData"], name


def test_the_page_offers_every_missing_file(browser: Browser) -> None:
    graphs, wanted = {}, {}
    for path in released_workflows():
        graph = read(path)
        models = offered(graph)
        for model in models:  # nobody has a file of such a name, whatever stands in the folders
            model["name"] = f"absent-{model['name']}"
        for node in every_node(graph):
            names = {model["name"].removeprefix("absent-") for model in node.get("properties", {}).get("models", ())}
            node["widgets_values"] = [
                f"absent-{value}" if value in names else value for value in node["widgets_values"]
            ]
        graphs[path.stem], wanted[path.stem] = graph, {(model["name"], model["url"]) for model in models}
    visit = browser.visit("offers", graphs=graphs)
    assert {name: set(map(tuple, found)) for name, found in visit.value.items()} == wanted
