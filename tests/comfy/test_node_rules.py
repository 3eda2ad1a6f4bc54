"""The rules every node keeps, present and future: one test per rule, run for each node of the pack."""

from __future__ import annotations

import ast
import inspect
import textwrap
from typing import Any

import pytest

from support.comfyui import comfyui_root, use_comfyui
from support.pack import PACK_ROOT
from support.workflows import api_workflows, node_types, page_workflows, read

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

from opensora.nodes import NODES  # noqa: E402 (needs ComfyUI in the process)

pytestmark = [pytest.mark.comfy, pytest.mark.compat]
every_node = pytest.mark.parametrize("node", NODES, ids=lambda node: node.define_schema().node_id)

MAX_VISIBLE_INPUTS = 8
MAX_EXECUTE_LINES = 20


def inputs_of(node: Any) -> list[Any]:
    """All inputs of a node, those inside the choices of a dynamic list too."""
    found = []
    for entry in node.define_schema().inputs:
        found.append(entry)
        for option in getattr(entry, "options", None) or []:
            found += getattr(option, "inputs", [])
    return found


def help_page(node: Any) -> str:
    """The page the Info panel shows for a node."""
    return (PACK_ROOT / "js" / "docs" / f"{node.define_schema().node_id}.md").read_text(encoding="utf-8")


@every_node
def test_schema_equals_execute(node: Any) -> None:
    parameters = inspect.signature(node.execute).parameters
    entries = node.define_schema().inputs
    assert [entry.id for entry in entries] == list(parameters)
    for entry in entries:
        has_default = parameters[entry.id].default is not inspect.Parameter.empty
        assert has_default or not getattr(entry, "optional", False), f"{entry.id} may be left out and has no default"


@every_node
def test_every_input_and_output_has_a_tooltip(node: Any) -> None:
    silent = [entry.id for entry in inputs_of(node) if not entry.tooltip]
    silent += [f"output {entry.display_name}" for entry in node.define_schema().outputs if not entry.tooltip]
    assert silent == []


@every_node
def test_name_and_place(node: Any) -> None:
    schema = node.define_schema()
    assert schema.node_id.startswith("OSora")
    assert schema.display_name and "OSora" not in schema.display_name
    assert schema.category.split("/")[0] == "Open-Sora"
    assert schema.description


@every_node
def test_outputs_are_named(node: Any) -> None:
    assert all(entry.display_name for entry in node.define_schema().outputs)


@every_node
def test_few_inputs_are_visible(node: Any) -> None:
    visible = [entry.id for entry in node.define_schema().inputs if not getattr(entry, "advanced", False)]
    assert len(visible) <= MAX_VISIBLE_INPUTS, visible


@every_node
def test_help_page_names_every_input_and_output(node: Any) -> None:
    page = help_page(node).lower()
    schema = node.define_schema()
    names = [entry.display_name or entry.id for entry in (*inputs_of(node), *schema.outputs)]
    assert [name for name in names if name.lower() not in page and name.lower().replace("_", " ") not in page] == []


@every_node
def test_execute_is_short(node: Any) -> None:
    source = textwrap.dedent(inspect.getsource(node.execute))
    (function,) = ast.parse(source).body
    assert isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef)) and function.end_lineno is not None
    assert function.end_lineno - function.body[0].lineno + 1 <= MAX_EXECUTE_LINES


@every_node
def test_the_readme_lists_it(node: Any) -> None:
    readme = (PACK_ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split("## Nodes")[1].split("## ")[0]
    assert node.define_schema().display_name in table


@every_node
def test_appears_in_a_shipped_workflow(node: Any) -> None:
    shipped = [node_types(read(path)) for path in (*page_workflows(), *api_workflows())]
    assert any(node.define_schema().node_id in types for types in shipped)


def test_ids_are_unique() -> None:
    ids = [node.define_schema().node_id for node in NODES]
    assert sorted(ids) == sorted(set(ids))


def test_no_help_page_without_a_node() -> None:
    pages = {path.stem for path in (PACK_ROOT / "js" / "docs").glob("*.md")}
    assert pages <= {node.define_schema().node_id for node in NODES}
