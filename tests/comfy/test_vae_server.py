"""A decode that dies with its server, continued by another one."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest
import torch

from opensora.opensora_models.vae.latent_file import save_latent
from support.graphs import Prompt, complete, node

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = pytest.mark.server

GROUPS = 16
STORE = "opensora_unfinished"


def decoding(file: str, **changes: Any) -> Prompt:
    """A stored latent of Open-Sora 1.3, whose neighbouring groups share a frame, decoded into a video."""
    return {
        "vae": node("OSoraVAELoader", vae_name="random-vae-v1.3.safetensors"),
        "load": node("OSoraLoadLatent", file=file),
        "video": node(
            "OSoraDecodeToVideo", samples=["load", 0], vae=["vae", 0], filename_prefix="killed/clip", **changes
        ),
    }


def first_group(events: list[tuple[str, dict[str, Any]]]) -> int:
    """The first group a run decoded, counted from 0."""
    return min(data["value"] for event, data in events if event == "progress" and data["node"] == "video") - 1


def frames_of(path: Path) -> torch.Tensor:
    with av.open(str(path)) as file:
        return torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)])


def test_a_killed_servers_video_is_continued_at_the_first_missing_group(
    tmp_path: Path, tiny_models: Path, server: TestServer, object_info: dict[str, Any]
) -> None:
    from support.server import TestServer

    output = server.base / "output"
    (tmp_path / "base" / "input").mkdir(parents=True)
    latents = torch.randn(1, 16, 5 * GROUPS, 8, 8, generator=torch.Generator().manual_seed(8))
    save_latent(tmp_path / "base" / "input" / "clip.latent", latents, {}, None)
    killed = TestServer(tmp_path / "base", tiny_models)
    killed.arguments += ["--output-directory", str(output)]
    killed.start()
    process = killed._process
    assert process is not None

    def kill(event: str, data: dict[str, Any]) -> None:
        if event == "progress" and data["node"] == "video" and data["value"] > 2:
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(OSError):  # the connection breaks in one of several ways
        killed.watch(complete(decoding("clip.latent"), object_info), kill)
    assert process.wait() == -signal.SIGKILL
    kept = sorted(path.name for path in (output / STORE).glob("*/*/0*.mp4"))
    assert 2 <= len(kept) < GROUPS
    assert not list(output.glob("killed/*.mp4"))

    prompt = complete(decoding("killed/clip_00001_.latent [output]"), object_info)
    continued = server.watch(prompt)
    assert first_group(continued.events) == len(kept)
    assert f"Continuing an unfinished video: {len(kept)} of {GROUPS} groups are there." in server.log()
    assert not list((output / STORE).iterdir())

    again = prompt | {
        "video": {**prompt["video"], "inputs": {**prompt["video"]["inputs"], "filename_prefix": "whole/clip"}}
    }
    assert first_group(server.watch(again).events) == 0
    (one,), (other,) = (list(output.glob(f"{folder}/*.mp4")) for folder in ("killed", "whole"))
    frames = frames_of(one)
    assert frames.shape == (16 * GROUPS + 1, 64, 64, 3)
    assert torch.equal(frames, frames_of(other))
