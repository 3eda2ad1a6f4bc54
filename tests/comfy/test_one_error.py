"""One mistake shows as one error, on the input that is wrong: every widget of every node is spoilt in every way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from support.comfyui import COLLECTOR, comfyui_root, use_comfyui

if TYPE_CHECKING:
    from support.comfyui import Executor

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

from opensora.nodes import NODES, door  # noqa: E402 (needs ComfyUI in the process)

pytestmark = [pytest.mark.comfy, pytest.mark.compat]
every_node = pytest.mark.parametrize("node", NODES, ids=lambda node: node.define_schema().node_id)

WIDGETS = ("INT", "FLOAT", "STRING", "COMBO", "BOOLEAN")
WIRES = ("MODEL", "CLIP", "VAE", "LATENT", "CONDITIONING", "IMAGE", "SIGMAS", "OSORA_REFERENCES")
SOURCE = "OSoraTestSource"


class Source:
    """Something that gives a value of every type; it never runs."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    RETURN_TYPES = WIRES
    FUNCTION = "give"

    def give(self) -> None:
        """Nothing."""


@pytest.fixture(scope="module", autouse=True)
def source(executor: Executor) -> Iterator[None]:
    import nodes

    nodes.NODE_CLASS_MAPPINGS[SOURCE] = Source
    yield
    del nodes.NODE_CLASS_MAPPINGS[SOURCE]


def good_inputs(node: Any) -> dict[str, Any]:
    """Every widget at its default, every wire from the source but those that decide what a widget means."""
    values: dict[str, Any] = {}
    for entry in node.define_schema().inputs:
        kind = entry.get_io_type()
        if kind in WIDGETS:
            values[entry.id] = entry.default if getattr(entry, "default", None) is not None else _first(entry)
        elif not entry.optional:
            values[entry.id] = ["source", WIRES.index(kind)]
    return values


def _first(entry: Any) -> Any:
    return (getattr(entry, "options", None) or ["a wave"])[0]


def bad_values(entry: Any) -> list[Any]:
    """Values that no graph can mean, as programs and old pages send them."""
    kind = entry.get_io_type()
    if kind in ("INT", "FLOAT"):
        return [entry.min - 1, entry.max + 1, 10**30, -(10**30), "abc", None, [1], {"a": 1}]
    if kind == "COMBO":
        return ["no such choice", "", 3]
    return ["\ud800"] if kind == "STRING" else []


def errors(executor: Executor, node: Any, values: dict[str, Any]) -> list[dict[str, Any]]:
    prompt = {
        "node": {"class_type": node.define_schema().node_id, "inputs": values},
        "source": {"class_type": SOURCE, "inputs": {}},
        "end": {"class_type": COLLECTOR, "inputs": {"value": ["node", 0], "name": "x"}},
    }
    found = executor.errors(prompt)
    assert set(found) <= {"node"}, "what uses the node is not to blame"
    return found.get("node", [])


@every_node
def test_one_bad_widget_is_marked_once(executor: Executor, node: Any) -> None:
    nothing_saved = any(door._names_a_file(entry) and not entry.options for entry in node.define_schema().inputs)
    assert nothing_saved or errors(executor, node, good_inputs(node)) == []
    for entry in node.define_schema().inputs:
        if entry.get_io_type() not in WIDGETS:
            continue
        for bad in bad_values(entry):
            found = errors(executor, node, {**good_inputs(node), entry.id: bad})
            marked = [error["extra_info"]["input_name"] for error in found]
            # What ComfyUI does not look at, as half a character, is refused when the node runs: by one exception.
            late = entry.get_io_type() == "STRING" or door._names_a_file(entry)
            assert marked == [entry.id] or (late and not marked), (entry.id, bad, found)


@every_node
def test_one_missing_input_is_marked_once(executor: Executor, node: Any) -> None:
    for entry in node.define_schema().inputs:
        values = {name: value for name, value in good_inputs(node).items() if name != entry.id}
        marked = [error["extra_info"]["input_name"] for error in errors(executor, node, values)]
        assert marked == ([] if entry.optional else [entry.id])


NODE = {node.define_schema().node_id: node for node in NODES}
RULES: list[tuple[str, dict[str, Any], str]] = [
    ("OSoraSize", {"length": "custom", "custom_frames": 60}, "custom_frames"),
    ("OSoraSize", {"version": "2.0", "length": "custom", "custom_frames": 51}, "custom_frames"),
    ("OSoraSize", {"version": "9.9", "length": "custom", "custom_frames": 60}, "version"),
    ("OSoraEmptyLatent", {"frames": 50}, "frames"),
    ("OSoraEmptyLatent", {"version": "1.3"}, "frames"),
    ("OSoraStepCache", {"table": "from steps", "steps": "1012"}, "steps"),
    ("OSoraGuidanceCurve", {"text_points": "0:2"}, "text_points"),
    ("OSoraGuidanceCurve", {"image_points": "a"}, "image_points"),
    ("OSoraStrengthCurve", {"strength_points": "0:2"}, "strength_points"),
    ("OSoraParallel", {"devices": "0;1"}, "devices"),
    ("OSoraTimeline", {"plan": "{"}, "plan"),
    ("OSoraPromptBuilder", {"aesthetic": "god"}, "aesthetic"),
    *((name, {"filename_prefix": "../x"}, "filename_prefix") for name in ("OSoraDecode", "OSoraSaveConditioning")),
]  # fmt: skip


@pytest.mark.parametrize(("name", "changed", "guilty"), RULES)
def test_a_broken_rule_is_marked_once(executor: Executor, name: str, changed: dict[str, Any], guilty: str) -> None:
    (error,) = errors(executor, NODE[name], {**good_inputs(NODE[name]), **changed})
    assert error["extra_info"]["input_name"] == guilty and error["details"].startswith(f"{guilty} - ")


def test_every_rule_over_widgets_is_among_them() -> None:
    ruled = {name for name, node in NODE.items() if len(_judged(node)) > 1}
    assert ruled <= {name for name, _, _ in RULES}


def _judged(node: Any) -> list[str]:
    """Inputs that a node's own rule looks at."""
    rule = node.__dict__.get("validate_inputs")
    return [] if rule is None else list(node.validate_inputs.__signature__.parameters)[1:]


def test_shapes_of_older_graphs_are_still_taken(executor: Executor) -> None:
    size = NODE["OSoraSize"]
    (aspect,) = (entry for entry in size.define_schema().inputs if entry.id == "aspect_ratio")
    assert aspect.also and not set(aspect.also) & set(aspect.options)
    for shape in aspect.also:
        assert errors(executor, size, {**good_inputs(size), "aspect_ratio": shape}) == []


def test_another_packs_node_is_left_as_it_is(executor: Executor) -> None:
    """Neither the door nor what cuts errors down knows nodes that are not ours."""
    import execution

    import nodes

    class Other:
        INPUT_TYPES = classmethod(lambda cls: {"required": {"a": ("INT",), "b": ("INT",)}})
        RETURN_TYPES = ("INT",)
        FUNCTION = "give"
        OUTPUT_NODE = True
        VALIDATE_INPUTS = classmethod(lambda cls, a, b: "The input a is wrong")

    nodes.NODE_CLASS_MAPPINGS["OSoraTestOther"] = Other
    try:
        prompt = {"x": {"class_type": "OSoraTestOther", "inputs": {"a": 1, "b": 2}}}
        found = asyncio.new_event_loop().run_until_complete(execution.validate_prompt("p", prompt, None))[3]
        assert [error["extra_info"]["input_name"] for error in found["x"]["errors"]] == ["a", "b"]
    finally:
        del nodes.NODE_CLASS_MAPPINGS["OSoraTestOther"]
