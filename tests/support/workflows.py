"""Checks workflow files against what a ComfyUI says of its nodes, and turns the page's form into the API form."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.pack import PACK_ROOT

WORKFLOWS = PACK_ROOT / "workflows"
DYNAMIC_COMBO = "COMFY_DYNAMICCOMBO_V3"
DYNAMIC_TYPES = (DYNAMIC_COMBO, "COMFY_AUTOGROW_V3", "COMFY_DYNAMICSLOT_V3")
NOTES = ("Note", "MarkdownNote")
MUTED, BYPASSED = 2, 4
SEEDS = ("seed", "noise_seed")
BUTTONS = ("upload",)  # the page saves the button beside a file list as if it were an input
PREVIEWS = ("video-preview",)  # and sends the picture below it along

Json = dict[str, Any]


def page_workflows() -> list[Path]:
    """The workflows people open: saved by the page, with positions."""
    return sorted(WORKFLOWS.glob("*.json"))


def api_workflows() -> list[Path]:
    """The workflows programs queue."""
    return sorted((WORKFLOWS / "api").glob("*.json"))


def api_of(page: Path) -> Json:
    """The API form that is shipped with a page workflow."""
    return read(page.parent / "api" / page.name)


def released_workflows() -> list[Path]:
    """Those of them that need weights people download, Open-Sora's or another model's, which are in no test."""
    return [path for path in page_workflows() if offered(read(path))]


def apps() -> list[Path]:
    """Those of them that say what app mode shows."""
    return [path for path in page_workflows() if "linearData" in read(path).get("extra", {})]


def blueprints() -> list[Path]:
    """The subgraphs that people put into graphs of their own."""
    return sorted((PACK_ROOT / "subgraphs").glob("*.json"))


def offered(workflow: Json) -> list[dict[str, str]]:
    """What the page would offer to download: the files that nodes declare and have chosen."""
    return [
        model
        for node in every_node(workflow)
        for model in node.get("properties", {}).get("models", ())
        if model["name"] in node["widgets_values"]
    ]


SMALL = {"height": 64, "width": 64, "frames": 17, "length": 17}
EMPTY_CLIPS = ("OSoraEmptyLatent", "EmptySD3LatentImage", "EmptyLTXVLatentVideo")


def made_small(prompt: Json, steps: int = 2) -> Json:
    """The prompt at 64 pixels, 17 frames and two steps; nothing else is changed."""
    for node in prompt.values():
        inputs = node["inputs"]
        if node["class_type"] in EMPTY_CLIPS:
            inputs.update({name: value for name, value in SMALL.items() if name in inputs})
        if "steps" in inputs:
            inputs["steps"] = steps
    return prompt


def read(path: Path) -> Json:
    """A workflow file."""
    return dict(json.loads(path.read_text(encoding="utf-8")))


def node_types(workflow: Json) -> set[str]:
    """Every node type a workflow of either form names, inside subgraphs too; notes do not count."""
    if "nodes" not in workflow:
        return {node["class_type"] for node in workflow.values()}
    names = {subgraph["id"] for subgraph in _subgraphs(workflow)}
    return {node["type"] for node in every_node(workflow)} - names - set(NOTES)


def every_node(workflow: Json) -> list[Json]:
    """The nodes of a page workflow and of its subgraphs, notes and subgraphs among them."""
    return [node for graph in (workflow, *_subgraphs(workflow)) for node in graph["nodes"]]


def _subgraphs(workflow: Json) -> list[Json]:
    return list(workflow.get("definitions", {}).get("subgraphs", []))


def to_api(workflow: Json, info: Json) -> Json:
    """The API form of a page workflow; subgraphs are taken apart, muted and bypassed nodes are left out."""
    definitions = {subgraph["id"]: subgraph for subgraph in _subgraphs(workflow)}
    prompt: Json = {}
    for graph, node in _Graph(workflow, definitions).nodes():
        inputs = dict(_widget_values(node, info))
        for entry in node.get("inputs", []):
            if entry.get("link") is not None:
                source = graph.source(entry["link"])
                if source is not None:
                    inputs[entry["name"]] = source
        prompt[graph.prefix + str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


INSIDE, OUTSIDE = -10, -20
"""What links of a subgraph name where they come from its inputs or go to its outputs."""


class _Graph:
    """A graph with what its host, where it is a subgraph, links to its inputs or holds in its widgets."""

    def __init__(self, graph: Json, definitions: Json, prefix: str = "", host: Json | None = None, outer: Any = None):
        self.graph, self.definitions, self.prefix, self.host, self.outer = graph, definitions, prefix, host, outer
        self.links = dict(map(_link_ends, graph["links"]))
        self.inner = {
            node["id"]: _Graph(definitions[node["type"]], definitions, f"{prefix}{node['id']}:", node, self)
            for node in graph["nodes"]
            if node["type"] in definitions
        }

    def nodes(self) -> Iterator[tuple[_Graph, Json]]:
        """Every node that runs, with the graph it stands in."""
        for node in self.graph["nodes"]:
            if node["type"] in NOTES or node.get("mode", 0) in (MUTED, BYPASSED):
                continue
            if node["id"] in self.inner:
                yield from self.inner[node["id"]].nodes()
            else:
                yield self, node

    def source(self, link: int) -> Any:
        """What a link brings: ``[node, output]``, or the value of a widget on the host; None where nothing."""
        node, slot = self.links[link][:2]
        if node == INSIDE:
            return self._from_host(slot)
        if node in self.inner:
            inside = self.inner[node]
            (end,) = {key for key, ends in inside.links.items() if ends[2:] == (OUTSIDE, slot)}
            return inside.source(end)
        return [self.prefix + str(node), slot]

    def _from_host(self, slot: int) -> Any:
        entry = self.host["inputs"][slot]
        if entry.get("link") is not None:
            return self.outer.source(entry["link"])
        widgets = [one["name"] for one in self.host["inputs"] if "widget" in one]
        return self.host["widgets_values"][widgets.index(entry["name"])] if "widget" in entry else None


def _link_ends(link: Any) -> tuple[int, tuple[Any, ...]]:
    """The number of a link, and where it comes from and goes to; subgraphs save links as objects, graphs as lists."""
    if isinstance(link, list):
        return link[0], tuple(link[1:5])
    return link["id"], (link["origin_id"], link["origin_slot"], link["target_id"], link["target_slot"])


def _widget_values(node: Json, info: Json) -> Iterator[tuple[str, Any]]:
    values = iter(node.get("widgets_values", []))
    specs = _specs(info[node["type"]])
    for entry in node.get("inputs", []):
        if "widget" not in entry:
            continue
        name = entry["name"]
        try:
            value = next(values)
        except StopIteration:
            raise AssertionError(f"{node['type']} {node['id']}: no saved value for {name}") from None
        if name not in BUTTONS:
            yield name, value
        options = specs.get(name, [None, {}])[1:]
        if name in SEEDS or (options and options[0].get("control_after_generate")):
            control = next(values, None)
            assert control == "fixed", (
                f"{node['type']} {node['id']}: save {name} with the control 'fixed', not {control!r}"
            )
    left = list(values)
    assert not left, f"{node['type']} {node['id']}: {left} belong to no input"


def complaints(prompt: Json, info: Json, known_files: frozenset[str], older: bool = False) -> list[str]:
    """What is wrong with an API workflow. ``known_files`` may be named although nobody has them here.

    ``older``: the ComfyUI is older than the one that saved the workflow; it ignores inputs its own nodes lack.
    """
    found = []
    for key, node in prompt.items():
        name = node["class_type"]
        if name not in info:
            found.append(f"{name} ({key}): no such node")
            continue
        specs, inputs = _specs(info[name]), node["inputs"]
        found += [
            f"{name} ({key}): required input {missing} is not given"
            for missing, spec in info[name]["input"].get("required", {}).items()
            if missing not in inputs and spec[0] not in DYNAMIC_TYPES
        ]
        for input_name, value in inputs.items():
            if older and input_name not in specs and not name.startswith("OSora"):
                continue
            problem = _complaint(input_name, value, specs, prompt, info, known_files)
            if problem:
                found.append(f"{name} ({key}): {input_name}: {problem}")
    return found


def _complaint(name: str, value: Any, specs: Json, prompt: Json, info: Json, known_files: frozenset[str]) -> str | None:
    spec = specs.get(name)
    if spec is None:
        parent = specs.get(name.split(".")[0], [None])
        return None if parent[0] in DYNAMIC_TYPES else "no such input"
    if isinstance(value, list):
        return _link_complaint(value, spec[0], prompt, info)
    choices = _choices(spec)
    if choices is not None and value not in choices and value not in known_files:
        return f"{value!r} is not among {choices}"
    limits = spec[1] if len(spec) > 1 else {}
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if "min" in limits and value < limits["min"]:
            return f"{value} is below {limits['min']}"
        if "max" in limits and value > limits["max"]:
            return f"{value} is above {limits['max']}"
    return None


def _link_complaint(link: list[Any], wanted: Any, prompt: Json, info: Json) -> str | None:
    source, number = link
    if source not in prompt:
        return f"linked to node {source}, which is not there"
    outputs = info.get(prompt[source]["class_type"], {}).get("output", [])
    if number >= len(outputs):
        return f"linked to output {number} of node {source}, which has {len(outputs)}"
    given, accepted = outputs[number], wanted
    if isinstance(given, list) or isinstance(accepted, list):  # lists of choices; the page lets COMBO meet them
        return None
    if "*" in (given, accepted) or accepted in DYNAMIC_TYPES or "MATCHTYPE" in f"{given}{accepted}":
        return None
    return None if set(given.split(",")) & set(accepted.split(",")) else f"takes {accepted}, is given {given}"


def _choices(spec: list[Any]) -> list[Any] | None:
    if isinstance(spec[0], list):
        return spec[0]
    if spec[0] == "COMBO":
        return list(spec[1].get("options", []))
    return [option["key"] for option in spec[1]["options"]] if spec[0] == DYNAMIC_COMBO else None


def _specs(node_info: Json) -> Json:
    return {name: spec for part in ("required", "optional") for name, spec in node_info["input"].get(part, {}).items()}
