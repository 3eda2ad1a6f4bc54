"""A node that stands in for nodes that are not the subject: it gives what a test put in under a name."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SOURCE = "OSoraTestSource"
VALUES: dict[str, Any] = {}


class AnyType(str):
    """Equal to every type name."""

    def __ne__(self, other: object) -> bool:
        return False


class Source:
    """Gives a value of ``VALUES``; runs every time."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"name": ("STRING",)}})
    RETURN_TYPES = (AnyType("*"),)
    FUNCTION = "give"
    IS_CHANGED = classmethod(lambda cls, **_: float("nan"))

    def give(self, name: str) -> tuple[Any]:
        """The value of that name."""
        return (VALUES[name],)


@contextmanager
def source_nodes() -> Iterator[dict[str, Any]]:
    """The node known to ComfyUI, and the values it gives; needs the ``executor`` fixture."""
    import nodes

    nodes.NODE_CLASS_MAPPINGS[SOURCE] = Source
    try:
        yield VALUES
    finally:
        VALUES.clear()
        del nodes.NODE_CLASS_MAPPINGS[SOURCE]


def source(name: str) -> dict[str, Any]:
    """The node of a graph that gives the value of that name."""
    return {"class_type": SOURCE, "inputs": {"name": name}}
