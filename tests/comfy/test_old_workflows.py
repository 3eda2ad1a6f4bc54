"""The workflows that version 0.1 came with, frozen: they load into the same values and run, whatever nodes learned."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from support.workflows import complaints, to_api

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = [pytest.mark.server]

# Both forms of each, the page's without places and colours.
OLD: dict[str, Any] = json.loads(Path(__file__).with_name("data").joinpath("workflows_0_1.json").read_text("utf-8"))
RUN = ("text_to_video", "image_to_video", "long_video")


@pytest.mark.parametrize("name", OLD)
def test_it_loads_into_the_values_it_was_saved_with(name: str, object_info: dict[str, Any]) -> None:
    assert to_api(OLD[name]["page"], object_info) == OLD[name]["api"]


@pytest.mark.parametrize("name", OLD)
def test_it_is_accepted(name: str, object_info: dict[str, Any]) -> None:
    files = frozenset(_file_names(OLD[name]["api"]))
    assert complaints(OLD[name]["api"], object_info, files, older=False) == []


@pytest.mark.parametrize("name", RUN)
def test_it_runs(name: str, server: TestServer) -> None:
    files = server.watch(OLD[name]["api"]).files()
    assert [item for item in files if item["filename"].endswith(".mp4")]


def _file_names(workflow: dict[str, Any]) -> set[str]:
    """Files that a workflow names; a machine may have them or not."""
    values = [value for node in workflow.values() for value in node["inputs"].values() if isinstance(value, str)]
    return {value for value in values if value.removesuffix(" [output]").endswith((".safetensors", ".latent"))}
