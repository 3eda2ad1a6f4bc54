"""Every file below ``workflows/`` is one this ComfyUI would accept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image

from opensora.devtools.comfyui import DEFAULT, RELEASES, version_of
from support.comfyui import comfyui_root
from support.pack import PACK_ROOT
from support.workflows import api_workflows, complaints, every_node, node_types, page_workflows, read, to_api

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = [pytest.mark.server, pytest.mark.compat]

# Files a user has and a clone has not: exactly those the README names.
NAMED_FILE = re.compile(r"`(?:models/\w+/)?([^`]+\.(?:safetensors|mp4))`")
README = (PACK_ROOT / "README.md").read_text(encoding="utf-8")
KNOWN_FILES = frozenset(NAMED_FILE.findall(README))
PROJECT = dict(
    re.findall(r'^(name|version) = "(.+)"$', (PACK_ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.M)
)

ROOT = comfyui_root()
OLDER = ROOT is not None and version_of(ROOT) != RELEASES[DEFAULT].comfyui


NEWER_THAN_THE_OLDEST = {"MultiGPU_WorkUnits"}
"""Nodes of ComfyUI itself that only newer versions have."""


def require_nodes(workflow: dict[str, Any], info: dict[str, Any], server: TestServer) -> None:
    """Skip where a node was left out on this ComfyUI and the log says so, or is core's and newer; others fail."""
    missing = sorted(node_types(workflow) - set(info))
    if OLDER and (newer := NEWER_THAN_THE_OLDEST & set(missing)):
        pytest.skip(f"not in this ComfyUI yet: {', '.join(newer)}")
    left_out = [name for name in missing if re.search(rf"\b{name}\b", server.log())]
    assert missing == left_out, f"unknown nodes: {sorted(set(missing) - set(left_out))}"
    if left_out:
        pytest.skip(f"left out on this ComfyUI: {', '.join(left_out)}")


@pytest.mark.parametrize("path", api_workflows(), ids=lambda path: path.stem)
def test_api_workflow_is_accepted(path: Path, server: TestServer, object_info: dict[str, Any]) -> None:
    workflow = read(path)
    require_nodes(workflow, object_info, server)
    assert complaints(workflow, object_info, KNOWN_FILES, OLDER) == []


@pytest.mark.parametrize("path", page_workflows(), ids=lambda path: path.stem)
def test_page_workflow_is_accepted(path: Path, server: TestServer, object_info: dict[str, Any]) -> None:
    workflow = read(path)
    require_nodes(workflow, object_info, server)
    assert complaints(to_api(workflow, object_info), object_info, KNOWN_FILES, OLDER) == []


@pytest.mark.parametrize("path", page_workflows(), ids=lambda path: path.stem)
def test_api_form_is_that_of_the_page(path: Path, object_info: dict[str, Any], server: TestServer) -> None:
    workflow = read(path)
    require_nodes(workflow, object_info, server)
    stored = read(path.parent / "api" / path.name)
    bare = {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in stored.items()}
    assert bare == to_api(workflow, object_info)


def test_both_forms_have_the_same_names() -> None:
    assert [path.name for path in page_workflows()] == [path.name for path in api_workflows()]


@pytest.mark.parametrize("path", page_workflows(), ids=lambda path: path.stem)
def test_page_workflow_has_a_square_picture(path: Path) -> None:
    with Image.open(path.with_suffix(".jpg")) as picture:  # the template browser shows the .jpg of the same name
        assert picture.width == picture.height >= 400


@pytest.mark.parametrize("path", page_workflows(), ids=lambda path: path.stem)
def test_every_node_says_which_pack_it_is_of(path: Path, object_info: dict[str, Any], server: TestServer) -> None:
    """So that a ComfyUI without the pack can offer it: the registry's name, and the version of the pack."""
    workflow = read(path)
    require_nodes(workflow, object_info, server)
    for node in every_node(workflow):
        if node["type"] not in object_info:  # a note or a subgraph
            continue
        ours = object_info[node["type"]]["python_module"] == "custom_nodes.opensora"
        assert node["properties"]["cnr_id"] == (PROJECT["name"] if ours else "comfy-core"), node["type"]
        assert not ours or node["properties"]["ver"] == PROJECT["version"]


@pytest.mark.parametrize("path", page_workflows(), ids=lambda path: path.stem)
def test_page_workflow_has_a_title_one_finds(path: Path) -> None:
    """The page's title, search text and address of a template are the name of its file."""
    assert re.fullmatch(r"Open-Sora \d\d [A-Z][A-Za-z0-9 .,-]*[A-Za-z0-9]", path.stem)
    assert f"| {path.stem.removeprefix('Open-Sora ')} |" in README


def test_templates_stand_in_one_order() -> None:
    numbers = [path.stem.split()[1] for path in page_workflows()]
    assert numbers == sorted(set(numbers))
