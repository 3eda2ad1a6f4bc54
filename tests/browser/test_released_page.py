"""Released weights, blueprints and apps on the page: what it saves of them, what it offers to download."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from support.workflows import apps, blueprints, every_node, offered, read, released_workflows

if TYPE_CHECKING:
    from browser.conftest import Page

pytestmark = [pytest.mark.server, pytest.mark.browser]


def as_saved(graph: dict[str, Any]) -> dict[str, Any]:
    """A graph without what the page adds or drops whenever it saves: the view, and a blueprint's name and category."""
    (*parts,) = ({**part, "nodes": [a_node(node) for node in part["nodes"]], "category": None} for part in
                 graph.get("definitions", {}).get("subgraphs", ()))  # fmt: skip
    nodes = [{**a_node(node), "title": None} for node in graph["nodes"]]
    return {"nodes": nodes, "links": graph["links"], "groups": graph.get("groups", []), "subgraphs": parts}


def a_node(node: dict[str, Any]) -> dict[str, Any]:
    """A node as all pages save it: the newest adds names to its values, writes no empty list of them, and calls an
    input as the node shows it where older ones say its id."""
    inputs = [{**slot, "localized_name": None} for slot in node.get("inputs", ())]
    return {**node, "inputs": inputs, "widgets_values": node.get("widgets_values", []), "widgets_values_named": None}


def check_names(node: dict[str, Any]) -> None:
    """The names that the newest page saves beside the values say the same."""
    if named := node.get("widgets_values_named"):
        assert list(named.values()) == node["widgets_values"], node["type"]


def test_they_are_what_the_page_saves(each_page: Page) -> None:
    graphs = {path.stem: read(path) for path in (*released_workflows(), *blueprints())}
    shown = {path.stem: read(path) for path in apps()}
    saved = each_page.browser.visit("saved", graphs={**graphs, **shown}).value
    for name, graph in graphs.items():
        assert as_saved(saved[name]) == as_saved(graph), name
        for node in every_node(saved[name]):
            check_names(node)
    for name, graph in shown.items():
        assert saved[name]["extra"]["linearData"] == graph["extra"]["linearData"], name


def test_the_page_offers_every_missing_file(each_page: Page) -> None:
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
    visit = each_page.browser.visit("offers", graphs=graphs)
    assert {name: set(map(tuple, found)) for name, found in visit.value.items()} == wanted
