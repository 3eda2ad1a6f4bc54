"""What stands for ``%date:yyyy-MM-dd%``, ``%Node.widget%`` and ComfyUI's own placeholders in the name of a new file.

ComfyUI's page fills the first two in for core's own save nodes only, so it is done here, by the page's rules
(``applyTextReplacements`` and ``formatDate`` of ComfyUI_frontend 1.47), from the prompt and the workflow that come
along. Who sends a prompt without the page gets the same.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import cached_property
from typing import Any

NOT_STORABLE = re.compile('[:*?"<>|\x00-\x1f\x7f\ud800-\udfff]')
"""What Windows or a UTF-8 name cannot hold, path separators aside."""
_NOT_IN_A_VALUE = re.compile(r"[/\\]|" + NOT_STORABLE.pattern)
_ONLY_DOTS = re.compile(r"[. ]+")

_DATE = "date:"
_DATE_PIECES = re.compile("dd?|MM?|hh?|mm?|ss?|yyy?y?")
_PAGE_NAME = "Node name for S&R"
_PAGE_PRIMITIVE = "PrimitiveNode"
_AFTER_GENERATE = ("fixed", "increment", "decrement", "randomize")
_MOST_LINKS = 32  # of a chain of nodes that hand a value on; graphs of programs may be loops

Names = tuple[str, str, str]


@dataclass(frozen=True)
class Placeholders:
    """Where values come from.

    Args:
        prompt: the graph in API form, as ComfyUI hands it to nodes.
        workflow: the page's graph, where it came along: it knows names of nodes that the prompt does not.
        size: width and height in pixels of what is saved; 0 where it has none, as core's nodes do.
        titles: of node types, which a node has in the page as long as nobody gives it another.
    """

    prompt: Any = None
    workflow: Any = None
    size: tuple[int, int] = (0, 0)
    titles: Mapping[str, str] = field(default_factory=dict)
    now: datetime = field(default_factory=datetime.now)

    def value(self, text: str) -> str | None:
        """What stands for ``%text%``, fit for a file name; None for an unknown placeholder."""
        if text.startswith(_DATE):
            return NOT_STORABLE.sub("_", formatted(text[len(_DATE) :], self.now))
        core = self._core()
        if text in core:
            return core[text]
        for dot in (place for place, character in enumerate(text) if character == "."):
            value = self._widget(text[:dot], text[dot + 1 :])
            if value is not None:
                return storable(value)
        return None

    @cached_property
    def _nodes(self) -> list[tuple[Names, Mapping[str, Any]]]:
        return list(named_nodes(self.prompt, self.workflow, self.titles))

    def _core(self) -> dict[str, str]:
        """The placeholders that ComfyUI fills in for every node (``folder_paths.get_save_image_path``)."""
        values = {"year": str(self.now.year), "width": str(self.size[0]), "height": str(self.size[1])}
        for name in ("month", "day", "hour", "minute", "second"):
            values[name] = f"{getattr(self.now, name):02}"
        return values

    def _widget(self, name: str, widget: str) -> str | None:
        """The widget of the first node of that name: the page's name goes before the title, and that before the id."""
        for kind in range(3):
            for names, inputs in self._nodes:
                if names[kind] == name and widget in inputs:
                    return _literal(inputs[widget], _mapping(self.prompt))
        return None


def formatted(pattern: str, now: datetime) -> str:
    """A date as the page writes it: d, M, h (0 to 23), m, s alone or doubled, yy or yyyy; all else stays."""
    numbers = {"d": now.day, "M": now.month, "h": now.hour, "m": now.minute, "s": now.second}

    def piece(found: re.Match[str]) -> str:
        text = found[0]
        if text[0] == "y":
            return {"yy": str(now.year)[2:], "yyyy": str(now.year)}.get(text, text)
        return str(numbers[text[0]]).zfill(len(text))

    return _DATE_PIECES.sub(piece, pattern)


def storable(value: str) -> str:
    """A widget's value as part of a file name: no separators, nothing Windows refuses, no way to the folder above."""
    text = _NOT_IN_A_VALUE.sub("_", value)
    return "_" * len(text) if _ONLY_DOTS.fullmatch(text) else text


def named_nodes(prompt: Any, workflow: Any, titles: Mapping[str, str]) -> Iterator[tuple[Names, Mapping[str, Any]]]:
    """Nodes in the page's order: (page's name, title, id) and widgets; those that do not run come after all others.

    Strange entries are left out: programs can send anything.
    """
    places = _Page(workflow)
    entries = [(str(key), node) for key, node in _mapping(prompt).items() if isinstance(node, Mapping)]
    for key, node in sorted(entries, key=lambda entry: places.rank(entry[0])):
        drawn, kind = places.node(key), str(node.get("class_type", ""))
        title = _mapping(node.get("_meta")).get("title")
        yield _names(drawn, kind, key, title, titles), _mapping(node.get("inputs"))
    for drawn in places.nodes():
        yield _names(drawn, str(drawn.get("type", "")), str(drawn.get("id")), None, titles), _drawn_widgets(drawn)


def _names(drawn: Mapping[str, Any], kind: str, key: str, title: Any, titles: Mapping[str, str]) -> Names:
    page_name = _mapping(drawn.get("properties")).get(_PAGE_NAME, kind)
    return str(page_name), str(title or drawn.get("title") or titles.get(kind, kind)), key


def _drawn_widgets(drawn: Mapping[str, Any]) -> Mapping[str, Any]:
    """Widgets of a node that only the page knows: one that is switched off, or a primitive of the page's own."""
    values, inputs = drawn.get("widgets_values"), drawn.get("inputs")
    if not isinstance(values, list):
        return _mapping(values)
    if drawn.get("type") == _PAGE_PRIMITIVE:
        return {"value": values[0]} if values else {}
    widgets = [_mapping(_mapping(entry).get("widget")) for entry in (inputs if isinstance(inputs, list) else [])]
    names = [str(widget["name"]) for widget in widgets if "name" in widget]
    if len(values) != len(names):  # behind a seed stands what happens to it after a run, which is no input
        values = [value for value in values if value not in _AFTER_GENERATE]
    return dict(zip(names, values, strict=True)) if len(values) == len(names) else {}


class _Page:
    """The page's graph, looked into by ids of the prompt: ``12``, or ``12:5`` for node 5 in the subgraph node 12."""

    def __init__(self, workflow: Any) -> None:
        graph = _mapping(workflow)
        self._root = _by_id(graph)
        subgraphs = _mapping(graph.get("definitions")).get("subgraphs")
        self._subgraphs = {
            str(each.get("id")): _by_id(each)
            for each in (subgraphs if isinstance(subgraphs, list) else [])
            if isinstance(each, Mapping)
        }

    def rank(self, key: str) -> tuple[float, ...]:
        """Where the node stands in the page's list; unknown ones come last."""
        return tuple(place for place, _ in self._way(key)) or (float("inf"),)

    def nodes(self) -> Iterator[Mapping[str, Any]]:
        """Every entry of the graph and its subgraphs."""
        for graph in (self._root, *self._subgraphs.values()):
            yield from (node for _, node in graph.values())

    def node(self, key: str) -> Mapping[str, Any]:
        """The page's entry of a node of the prompt, or {}."""
        way = self._way(key)
        return way[-1][1] if way else {}

    def _way(self, key: str) -> list[tuple[int, Mapping[str, Any]]]:
        nodes, way = self._root, []
        for part in key.split(":"):
            if part not in nodes:
                return []
            way.append(nodes[part])
            nodes = self._subgraphs.get(str(nodes[part][1].get("type")), {})
        return way


def _by_id(graph: Mapping[str, Any]) -> dict[str, tuple[int, Mapping[str, Any]]]:
    nodes = graph.get("nodes")
    listed = nodes if isinstance(nodes, list) else []
    return {str(node.get("id")): (place, node) for place, node in enumerate(listed) if isinstance(node, Mapping)}


def _literal(value: Any, prompt: Mapping[str, Any]) -> str | None:
    """A widget's value as the page writes it; a wire is followed to the primitive node that sets it."""
    for _ in range(_MOST_LINKS):
        if not (isinstance(value, list) and len(value) == 2):
            break
        value = _mapping(_mapping(prompt.get(str(value[0]))).get("inputs")).get("value", value[:1])
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    if isinstance(value, (str, int, float)):
        return str(value)
    return "" if value is None else None


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
