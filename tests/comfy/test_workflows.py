"""Every file below ``workflows/`` is one this ComfyUI would accept."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from opensora.devtools.comfyui import DEFAULT, RELEASES, version_of
from support.comfyui import comfyui_root
from support.pack import PACK_ROOT
from support.workflows import api_workflows, complaints, node_types, page_workflows, read, to_api

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = [pytest.mark.server, pytest.mark.compat]

# Files a user has and a clone has not: exactly those the README names.
NAMED_FILE = re.compile(r"`(?:models/\w+/)?([^`]+\.(?:safetensors|latent)(?: \[output\])?)`")
README = (PACK_ROOT / "README.md").read_text(encoding="utf-8")
KNOWN_FILES = frozenset(NAMED_FILE.findall(README))

ROOT = comfyui_root()
OLDER = ROOT is not None and version_of(ROOT) != RELEASES[DEFAULT].comfyui


def require_nodes(workflow: dict[str, Any], info: dict[str, Any], server: TestServer) -> None:
    """Skip where a node was left out on this ComfyUI and the log says so; an unknown node fails."""
    missing = sorted(node_types(workflow) - set(info))
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
def test_page_workflow_has_a_picture(path: Path) -> None:
    assert path.with_suffix(".jpg").is_file(), "the template browser shows the .jpg of the same name"


@pytest.mark.parametrize("path", page_workflows(), ids=lambda path: path.stem)
def test_page_workflow_has_a_title_one_finds(path: Path) -> None:
    """The page's title, search text and address of a template are the name of its file."""
    assert re.fullmatch(r"Open-Sora \d\d [A-Z][A-Za-z0-9 .,-]*[A-Za-z0-9]", path.stem)
    assert f"| {path.stem.removeprefix('Open-Sora ')} |" in README


def test_templates_stand_in_one_order() -> None:
    numbers = [path.stem.split()[1] for path in page_workflows()]
    assert numbers == sorted(set(numbers))
