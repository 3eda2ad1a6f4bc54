"""The graph that a node runs in: what of it goes into files, and by which words people know it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from comfy.cli_args import args

TEXTS = ("text", "prompt")


def workflow_metadata(hidden: Any) -> dict[str, Any] | None:
    """Prompt and workflow as ComfyUI's Save Video stores them; None where the user switched metadata off."""
    if hidden is None or args.disable_metadata:  # None: the node runs outside a graph
        return None
    metadata = dict(hidden.extra_pnginfo or {})
    if hidden.prompt is not None:
        metadata["prompt"] = hidden.prompt
    return metadata


def words_of(metadata: Mapping[str, Any] | None) -> str:
    """The prompt of a graph in API form among ``metadata``, by which people know a clip; "" where there is none.

    It is the first text that a node's ``positive`` input is made from, else the first text of the graph.
    """
    graph = (metadata or {}).get("prompt")
    nodes = {key: _inputs(node) for key, node in graph.items()} if isinstance(graph, Mapping) else {}
    start = [inputs["positive"] for inputs in nodes.values() if "positive" in inputs]
    return _first_text(nodes, start) or _first_text(nodes, [[key] for key in nodes])


def _inputs(node: Any) -> Mapping[str, Any]:
    inputs = node.get("inputs") if isinstance(node, Mapping) else None
    return inputs if isinstance(inputs, Mapping) else {}


def _first_text(nodes: Mapping[Any, Mapping[str, Any]], links: Iterable[Any]) -> str:
    waiting, seen = list(links), set()
    while waiting:
        link = waiting.pop(0)
        key = link[0] if isinstance(link, list) and link and isinstance(link[0], str) else None
        if key is None or key in seen or key not in nodes:
            continue
        seen.add(key)
        texts = [nodes[key].get(name) for name in TEXTS]
        text = next((text for text in texts if isinstance(text, str) and text.strip()), "")
        if text:
            return text
        waiting += nodes[key].values()
    return ""
