"""The native MODEL in the real server: preview frames on the websocket, and an interrupt in the middle."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load

from support.processes import children, gone

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = pytest.mark.server

HEADER_BYTES = 8  # event number and picture kind, four bytes each, before the JPEG of a plain preview
PREVIEW, PREVIEW_WITH_METADATA = 1, 4


def prompt(version: str, seed: int, steps: int = 4) -> dict[str, dict[str, Any]]:
    """Text to latent with the tiny models; the latent is saved so that something is asked for."""
    text = {"clip": ["2", 0], "text": "a red boat"}
    return {
        "1": {
            "class_type": "OSoraModelLoader",
            "inputs": {
                "model_name": f"random-v{version}.safetensors",
                "weight_dtype": "default",
                "rounding": "accurate",
                "window": 0,
                "spatial_rotary": "automatic",
            },
        },
        "2": {"class_type": "OSoraTextEncoderLoader", "inputs": TEXT_ENCODER | CLIP_L.get(version, {})},
        "3": {"class_type": "CLIPTextEncode", "inputs": text},
        "4": {
            "class_type": "OSoraEmptyLatent",
            "inputs": {"version": version, "height": 96, "width": 128, "frames": FRAMES[version], "batch_size": 1},
        },
        "5": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["1", 0],
                "positive": ["3", 0],
                "negative": ["3", 0],
                "latent_image": ["4", 0],
                "seed": seed,
                "steps": steps,
                "cfg": 4.0,
                "sampler_name": "euler",
                "scheduler": "simple",
                "denoise": 1.0,
            },
        },
        "6": {"class_type": "SaveLatent", "inputs": {"samples": ["5", 0], "filename_prefix": "native"}},
    }


TEXT_ENCODER = {
    "text_encoder_name": "random-t5.safetensors",
    "precision": "default",
    "device": "default",
}
CLIP_L = {"2.0": {"clip_l_name": "random-clip-l.safetensors"}}
ONE_SPAN = {
    "table": "from steps", "computed_percent": 60, "steps": "10", "guidance_every": 1, "guidance_after": 0.35
}  # fmt: skip
FRAMES = {"1.2": 51, "1.3": 49, "2.0": 33}


def pictures(messages: list[bytes]) -> list[Image.Image]:
    """The JPEGs among the binary messages of a run."""
    found = []
    for message in messages:
        kind = int.from_bytes(message[:4], "big")
        if kind == PREVIEW_WITH_METADATA:
            found.append(message[HEADER_BYTES + int.from_bytes(message[4:8], "big") :])
        elif kind == PREVIEW:
            found.append(message[HEADER_BYTES:])
    return [Image.open(io.BytesIO(data)) for data in found]


@pytest.mark.parametrize("version", ["1.2", "1.3", "2.0"])
def test_previews_show_the_clip_as_a_contact_sheet(
    server: TestServer, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    post = server.post

    def with_previews(path: str, payload: Any) -> Any:
        extra = {"extra_data": {"preview_method": "latent2rgb"}} if path == "/prompt" else {}
        return post(path, payload | extra)

    monkeypatch.setattr(server, "post", with_previews)
    run = server.watch(prompt(version, seed=31))
    sheets = pictures(run.previews)
    assert sheets, "no preview came"
    # Nine frames of 16 x 12 latents in three rows of three.
    assert {sheet.width / sheet.height for sheet in sheets} == {4 / 3}
    assert min(sheet.width for sheet in sheets) >= 48
    assert len(sheets[-1].convert("L").getcolors()) > 20


def test_an_interrupt_ends_a_long_run_and_the_next_one_works(server: TestServer) -> None:
    from support.server import PromptFailed

    def stop(event: str, data: dict[str, Any]) -> None:
        if event == "progress":
            server.interrupt(data["prompt_id"])

    with pytest.raises(PromptFailed):
        server.watch(prompt("1.2", seed=32, steps=2000), stop)
    assert server.watch(prompt("1.2", seed=33, steps=1)).outputs


def test_nothing_a_step_cache_kept_outlives_an_interrupt(server: TestServer) -> None:
    from support.server import PromptFailed

    def stop(event: str, data: dict[str, Any]) -> None:
        if event == "progress" and data["value"] > 3:
            server.interrupt(data["prompt_id"])

    def cached(steps: int, name: str) -> dict[str, dict[str, Any]]:
        graph = prompt("1.2", seed=35, steps=steps)
        graph["7"] = {"class_type": "OSoraStepCache", "inputs": {"model": ["1", 0]} | ONE_SPAN}
        graph["5"]["inputs"]["model"] = ["7", 0]
        graph["6"]["inputs"]["filename_prefix"] = name
        return graph

    with pytest.raises(PromptFailed):
        server.watch(cached(2000, "stopped"), stop)
    after = server.run(cached(4, "after"))["6"]["latents"][0]
    assert "Step cache: 2 of 8 rows were computed; kept were 2 rows" in server.log()
    server.post("/free", {"unload_models": True, "free_memory": True})
    fresh = server.run(cached(4, "fresh"))["6"]["latents"][0]
    tensors = [load(server.file(item))["latent_tensor"] for item in (after, fresh)]
    assert torch.equal(*tensors)


@pytest.mark.skipif(os.name == "nt", reason="/proc")
def test_a_worker_shares_runs_stays_after_an_interrupt_and_ends_with_the_model(server: TestServer) -> None:
    from support.server import PromptFailed

    def stop(event: str, data: dict[str, Any]) -> None:
        if event == "progress" and data["value"] > 1:
            server.interrupt(data["prompt_id"])

    def graph(steps: int, name: str) -> dict[str, dict[str, Any]]:
        made = prompt("1.2", seed=36, steps=steps)
        made["7"] = {"class_type": "OSoraParallel", "inputs": {"model": ["1", 0], "devices": "cpu x 2"}}
        made["5"]["inputs"]["model"] = ["7", 0]
        made["6"]["inputs"]["filename_prefix"] = name
        return made

    alone = server.run(prompt("1.2", seed=36))["6"]["latents"][0]
    before = set(children(server.pid))
    shared = server.run(graph(4, "shared"))["6"]["latents"][0]
    assert "2 ranks as 2 x 1 (rows x sequence): each computes 1 of 2 rows" in server.log()
    (worker,) = set(children(server.pid)) - before
    with pytest.raises(PromptFailed):
        server.watch(graph(2000, "stopped"), stop)
    again = server.run(graph(4, "again"))["6"]["latents"][0]
    tensors = [load(server.file(item))["latent_tensor"] for item in (shared, again, alone)]
    assert torch.equal(*tensors[:2]) and torch.allclose(tensors[0], tensors[2], atol=1e-4)
    assert set(children(server.pid)) - before == {worker}
    server.post("/free", {"unload_models": True, "free_memory": True})
    assert gone([worker])


def test_a_wrong_file_is_told_in_one_sentence(server: TestServer, tiny_models: Any) -> None:
    wrong = prompt("1.2", seed=34)
    target = tiny_models / "diffusion_models" / "a-t5.safetensors"
    target.write_bytes((tiny_models / "text_encoders" / "random-t5.safetensors").read_bytes())
    try:
        wrong["1"]["inputs"]["model_name"] = target.name
        message = str(server.failure(wrong))
    finally:
        target.unlink()
    assert "'a-t5.safetensors' looks like a T5 text encoder" in message
    assert "expected an Open-Sora 1.2, 1.3 or 2.0 diffusion model" in message
