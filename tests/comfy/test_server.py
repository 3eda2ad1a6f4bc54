"""The real server: it starts with the pack, runs prompts, reports failures, and can be interrupted."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from support.server import PromptFailed

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = [pytest.mark.server, pytest.mark.compat]


def picture(width: int = 64, color: int = 255) -> dict[str, dict[str, object]]:
    """A prompt that needs no model: an empty image, shown."""
    image = {"width": width, "height": 64, "batch_size": 1, "color": color}
    return {
        "1": {"class_type": "EmptyImage", "inputs": image},
        "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
    }


def test_the_packs_nodes_are_listed(comfy: object, object_info: dict[str, dict[str, object]]) -> None:
    from opensora.nodes import NODES

    ours = {name for name, info in object_info.items() if info["python_module"] == "custom_nodes.opensora"}
    assert ours == {node.define_schema().node_id for node in NODES}
    assert "OSoraSize" in ours


def test_a_prompt_gives_files_and_events(server: TestServer) -> None:
    run = server.watch(picture())
    (file,) = run.files()
    assert server.file(file).startswith(b"\x89PNG")
    assert [name for name, _ in run.events][-1] == "execution_success"


def test_a_refused_prompt_says_why(server: TestServer) -> None:
    assert "width" in str(server.failure(picture(width=0)))


def test_the_tiny_models_are_listed(server: TestServer, tiny_models: object) -> None:
    (names, *_) = server.object_info("UNETLoader")["UNETLoader"]["input"]["required"]["unet_name"]
    assert "random-v1.2.safetensors" in names


def test_a_running_prompt_is_interrupted(server: TestServer) -> None:
    chain = picture(width=512)
    for number in range(3, 103):  # a hundred slow steps: ComfyUI looks for the interrupt between nodes
        scale = {"image": [str(number - 1 if number > 3 else 1), 0], "upscale_method": "lanczos", "crop": "disabled"}
        inputs = {**scale, "width": 1024 + number, "height": 1024}
        chain[str(number)] = {"class_type": "ImageScale", "inputs": inputs}
    chain["2"]["inputs"] = {"images": ["102", 0]}

    def interrupt(event: str, data: dict[str, object]) -> None:
        if event == "executing" and data.get("node") == "5":
            server.interrupt(str(data["prompt_id"]))

    with pytest.raises(PromptFailed) as failed:
        server.watch(chain, interrupt)
    assert failed.value.type == "interrupted"


def test_the_log_of_a_failed_prompt_is_noticed(server: TestServer) -> None:
    with open(server.log_path, "a", encoding="utf-8") as log:
        log.write("\nTraceback (most recent call last):\n")
    with pytest.raises(AssertionError, match="tells of an exception"):
        server.check_log()
