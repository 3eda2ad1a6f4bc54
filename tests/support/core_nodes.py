"""Core's own nodes, called as the executor calls them, with the defaults a person has who changes nothing."""

from __future__ import annotations

from typing import Any

import torch


def node_class(name: str) -> Any:
    """The class of a node; needs the ``executor`` fixture, which has them all read. KeyError where there is none."""
    import nodes

    return nodes.NODE_CLASS_MAPPINGS[name]


def default_of(spec: tuple[Any, ...]) -> Any:
    """What an input has by itself; None where a wire is needed."""
    kind, options = spec[0], spec[1] if len(spec) > 1 else {}
    choices = kind if isinstance(kind, list) else options.get("options") or []
    plain = {"INT": 0, "FLOAT": 0.0, "BOOLEAN": False, "STRING": ""}
    return options.get("default", next(iter(choices), None) if choices else plain.get(str(kind)))


def inputs_of(kind: Any) -> dict[str, Any]:
    """The required inputs of a node with their defaults; None where a wire is needed."""
    return {key: default_of(spec) for key, spec in kind.INPUT_TYPES().get("required", {}).items()}


def call(name: str, **given: Any) -> tuple[Any, ...]:
    """The outputs of a node for these inputs."""
    kind = node_class(name)
    values = inputs_of(kind) | given
    with torch.inference_mode():
        if not hasattr(kind, "define_schema"):
            return getattr(kind(), kind.FUNCTION)(**values)
        out = kind.execute(**values)
    return getattr(out, "result", out)
