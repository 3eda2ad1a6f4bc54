"""A bare install has all that shipped graphs name, says a linter of others of what its ComfyUI tells of the nodes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.workflows import api_workflows, read, released_workflows

if TYPE_CHECKING:
    from support.server import BareServer

pytestmark = pytest.mark.server

comfy_lint = pytest.importorskip("comfy_lint", reason="`python dev.py test` installs it")

NEED_FILES = {path.stem for path in released_workflows()} | {
    path.stem for path in api_workflows() if "from a file" in path.stem or "refinement" in path.stem
}
"""Graphs that name a file the person has or has to get."""
GRAPHS = [path for path in api_workflows() if path.stem not in NEED_FILES]


@pytest.fixture(scope="module")
def nodes(bare_server: BareServer) -> Any:
    """The bare server's nodes, in the linter's form."""
    return comfy_lint.schema.normalize(bare_server.object_info())


def is_part_of_an_input(found: Any, workflow: dict[str, Any], nodes: Any) -> bool:
    """Whether an "unknown" input is one of those that an input grows, which the linter does not know of."""
    name, dot, _ = found.field.partition(".")
    return (
        bool(dot) and found.severity == "warning" and name in nodes.nodes[workflow[found.node_id]["class_type"]].inputs
    )


@pytest.mark.parametrize(
    "path", [path for path in api_workflows() if path.stem not in NEED_FILES], ids=lambda p: p.stem
)
def test_a_bare_install_has_all_that_a_graph_names(path: Path, nodes: Any) -> None:
    workflow = read(path)
    found = [one for one in comfy_lint.lint_workflow(workflow, nodes) if not is_part_of_an_input(one, workflow, nodes)]
    assert [f"{one.severity} {one.node_id} {one.field}: {one.message}" for one in found] == []
