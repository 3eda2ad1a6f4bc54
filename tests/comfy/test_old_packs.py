"""Graphs of the two older Open-Sora packs: ComfyUI's own replacement makes valid nodes of ours out of theirs."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from support.comfyui import COLLECTOR, comfyui_root, use_comfyui
from support.pack import PACK_ROOT

if TYPE_CHECKING:
    from support.comfyui import Executor

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

from opensora.nodes.old_packs import OLD_NODES  # noqa: E402 (needs ComfyUI in the process)

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

# Inputs that each old node always has, those it may have, and its outputs; two packs call two nodes alike.
OLD: list[tuple[str, dict[str, Any], tuple[str, ...], tuple[str, ...]]] = [
    (
        "OpenSoraLoader",
        {"ckpt_path": "a.pth", "config": "a.py", "num_frames": 16, "width": 512, "height": 512, "dtype": "fp16",
         "num_sampling_steps": 100},
        (),
        ("model", "text_encoder", "vae", "scheduler"),
    ),
    (
        "OpenSoraSampler",
        {"model": "MODEL", "text_encoder": "CLIP", "vae": "VAE", "scheduler": "SCHEDULER", "prompt": "a wave",
         "dtype": "fp16", "seed": 42, "num_frames": 16, "width": 512, "height": 512},
        (),
        ("samples",),
    ),
    ("OpenSoraRun", {"vae": "VAE", "samples": "LATENT", "dtype": "fp16"}, (), ("images",)),
    (
        "OpenSoraLoader",
        {"config": "a.py", "duration": "2s", "resolution": "240p", "aspect_ratio": "1:1",
         "custom_checkpoint": "Default", "custom_vae": "Default", "custom_clip": "Default"},
        (),
        ("pipe", "steps", "guidance", "text_encoder", "vae", "num_frames", "width", "height", "fps"),
    ),
    (
        "OpenSoraSampler",
        {"pipe": "PIPE", "seed": 0, "dtype": "fp16", "steps": 100, "guidance": 4.5},
        ("positive", "negative", "reference"),
        ("samples",),
    ),
    (
        "OpenSoraTextEncoder",
        {"text_encoder": "CLIP", "positive_prompt": "a wave"},
        ("negative_prompt", "camera_motion", "enable_motion_strength", "motion_strength", "enable_aesthetic_score",
         "aesthetic_score"),
        ("positive", "negative"),
    ),
    ("OpenSoraEncoder", {"vae": "VAE", "image": "IMAGE", "dtype": "fp16"}, (), ("latent",)),
    ("OpenSoraDecoder", {"vae": "VAE", "latents": "LATENT", "dtype": "fp16"}, (), ("images",)),
]  # fmt: skip
WIRES = ("MODEL", "CLIP", "VAE", "LATENT", "IMAGE", "SCHEDULER", "PIPE")
TYPES = {"images": "IMAGE", "latent": "LATENT", "positive": "CONDITIONING", "negative": "CONDITIONING"}
SOURCE = "OSoraTestOldSource"
REPLACED = {each.old: each for each in OLD_NODES}


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


def old_graph(name: str, required: dict[str, Any], outputs: tuple[str, ...]) -> dict[str, Any]:
    """The old node with only what it must have, and something behind each of its outputs."""
    inputs = {key: ["source", WIRES.index(value)] if value in WIRES else value for key, value in required.items()}
    graph = {"source": {"class_type": SOURCE, "inputs": {}}, "old": {"class_type": name, "inputs": inputs}}
    for number, output in enumerate(outputs):
        graph[output] = {"class_type": COLLECTOR, "inputs": {"value": ["old", number], "name": output}}
    return {key: {**node, "_meta": {"title": key}} for key, node in graph.items()}


def replaced(graph: dict[str, Any]) -> dict[str, Any]:
    import server

    graph = copy.deepcopy(graph)
    server.PromptServer.instance.node_replace_manager.apply_replacements(graph)
    return graph


@pytest.mark.parametrize(("name", "required", "_", "outputs"), OLD, ids=lambda value: str(value)[:30])
def test_an_old_graph_is_replaced_where_one_node_is_one(
    executor: Executor, name: str, required: dict[str, Any], _: tuple[str, ...], outputs: tuple[str, ...]
) -> None:
    graph = old_graph(name, required, outputs)
    new = replaced(graph)
    if name not in REPLACED:
        assert new == graph
        return
    known = REPLACED[name]
    schema = known.new.define_schema()
    assert new["old"]["class_type"] == schema.node_id and executor.errors(new) == {}
    assert set(known.inputs.values()) <= set(required), "ComfyUI fails on an input that is not there"
    for ours, theirs in known.inputs.items():
        assert new["old"]["inputs"][ours] == graph["old"]["inputs"][theirs]
    for number, output in enumerate(outputs):
        assert new[output]["inputs"]["value"] == ["old", number]
        assert schema.outputs[number].get_io_type() == TYPES[output]


def test_every_registered_node_is_one_of_the_old_packs(executor: Executor) -> None:
    import server

    found = server.PromptServer.instance.node_replace_manager.as_dict()
    ours = {old: entries for old, entries in found.items() if entries[0]["new_node_id"].startswith("OSora")}
    assert set(ours) == set(REPLACED) < {name for name, *_ in OLD}
    assert json.loads(json.dumps(ours)) == ours
    for name, required, more, outputs in OLD:
        if name in REPLACED:
            widgets = [key for key, value in required.items() if value not in WIRES]
            assert ours[name][0]["old_widget_ids"] == [*widgets, *more]
            assert [entry["old_idx"] for entry in ours[name][0]["output_mapping"]] == list(range(len(outputs)))


def test_an_old_pack_that_is_installed_keeps_its_nodes(executor: Executor) -> None:
    import nodes

    name, required, _, outputs = OLD[-1]
    graph = old_graph(name, required, outputs)
    nodes.NODE_CLASS_MAPPINGS[name] = Source
    try:
        assert replaced(graph) == graph
    finally:
        del nodes.NODE_CLASS_MAPPINGS[name]


def test_a_replaced_text_encoder_asks_for_its_negative_before_it_runs(executor: Executor) -> None:
    """The old graph may have had a written one, which ComfyUI cannot carry over."""
    from opensora.opensora_models.native.text.encoding import check_prompts

    name, required, _, outputs = next(each for each in OLD if each[0] == "OpenSoraTextEncoder")
    inputs = replaced(old_graph(name, required, outputs))["old"]["inputs"]
    assert inputs["prompt"] == required["positive_prompt"] and "model" not in inputs
    with pytest.raises(ValueError, match="MODEL"):
        check_prompts(inputs["prompt"], inputs["negative_prompt"], None)


def test_the_page_says_where_every_input_and_output_went() -> None:
    page = (PACK_ROOT / "docs" / "old_packs.md").read_text(encoding="utf-8")
    for name, required, more, outputs in OLD:
        rows = "\n".join(_rows_of(page, name))
        missing = [word for word in (*required, *more, *outputs) if word not in rows]
        assert missing == [], name
    assert "docs/old_packs.md" in (PACK_ROOT / "README.md").read_text(encoding="utf-8")


def _rows_of(page: str, name: str) -> Iterator[str]:
    """The rows about a node: its own, and those after it that begin without a name."""
    inside = False
    for row in page.splitlines():
        inside = row.startswith(f"| {name} ") or (inside and row.startswith("| | "))
        if inside:
            yield row
