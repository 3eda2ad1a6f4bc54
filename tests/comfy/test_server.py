"""The real server: it starts with the pack, runs prompts, reports failures, and can be interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = pytest.mark.server


def picture(width: int = 64, color: int = 255) -> dict[str, dict[str, object]]:
    """A prompt that needs no model: an empty image, shown."""
    image = {"width": width, "height": 64, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def test_the_packs_nodes_are_listed(server: TestServer, object_info: dict[str, dict[str, object]]) -> None:
    ours = [name for name, info in object_info.items() if info["python_module"] == "custom_nodes.opensora"]
    assert "OSoraSize" in ours
    assert all(name.startswith("OSora") for name in ours)


def test_a_prompt_gives_files_and_events(server: TestServer) -> None:
    run = server.watch(picture())
    (file,) = run.files()
    assert server.file(file).startswith(b"\x89PNG")
    assert [name for name, _ in run.events][-1] == "execution_success"


def test_a_refused_prompt_says_why(server: TestServer) -> None:
    assert "width" in str(server.failure(picture(width=0)))


def test_the_tiny_models_are_listed(server: TestServer, tiny_models: object) -> None:
    (names, *_) = server.object_info("UNETLoader")["UNETLoader"]["input"]["required"]["unet_name"]
    assert "opensora-tiny-v1.2.safetensors" in names
