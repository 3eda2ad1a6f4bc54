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


def decoding(file: str, vae: str = "random-vae-v1.3.safetensors", **changes: Any) -> Prompt:
    """Stored latents decoded into a video: by default Open-Sora 1.3's, whose neighbouring groups share a frame."""
    return {
        "vae": node("OSoraVAELoader", vae_name=vae),
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


def until_killed(server: TestServer, folder: Path, models: Path, prompt: Prompt) -> None:
    """Run a prompt on a server of its own, with the output folder of ``server``, that is killed after some pieces."""
    from support.server import TestServer

    output = server.base / "output"
    killed = TestServer(folder, models)
    killed.arguments += ["--output-directory", str(output)]
    killed.start()
    process = killed._process
    assert process is not None

    def kill(event: str, data: dict[str, Any]) -> None:
        if event == "progress" and data["node"] == "video" and data["value"] > 2:
            os.kill(process.pid, signal.SIGKILL)

    with pytest.raises(OSError):  # the connection breaks in one of several ways
        killed.watch(prompt, kill)
    assert process.wait() == -signal.SIGKILL


def saved_clip(folder: Path, *shape: int) -> Path:
    """Latents in the input folder of a server that will run in ``folder``."""
    (folder / "input").mkdir(parents=True)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(8))
    save_latent(folder / "input" / "clip.latent", latents, {}, None)
    return folder


def test_a_killed_servers_video_is_continued_at_the_first_missing_group(
    tmp_path: Path, tiny_models: Path, server: TestServer, object_info: dict[str, Any]
) -> None:
    output = server.base / "output"
    folder = saved_clip(tmp_path / "base", 1, 16, 5 * GROUPS, 8, 8)
    until_killed(server, folder, tiny_models, complete(decoding("clip.latent"), object_info))
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


def test_a_killed_servers_tiles_are_continued_at_the_first_missing_row(
    tmp_path: Path, tiny_models: Path, server: TestServer, object_info: dict[str, Any]
) -> None:
    """A clip of Open-Sora 2.0, whose tiles hold all frames: eight rows of one tile."""
    output, vae = server.base / "output", "random-vae-v2.0.safetensors"
    folder = saved_clip(tmp_path / "base", 1, 16, 1, 24 * 8, 4)
    until_killed(server, folder, tiny_models, complete(decoding("clip.latent", vae), object_info))
    kept = sorted(path.name for path in (output / STORE).glob("*/*/row-*"))
    assert 2 <= len(kept) < 8 and not list((output / STORE).glob("*/*/0*.mp4"))

    (latents,) = sorted(output.glob("killed/*.latent"))[-1:]
    prompt = complete(decoding(f"killed/{latents.name} [output]", vae), object_info)
    assert first_group(server.watch(prompt).events) == len(kept)
    assert "Continuing an unfinished video: some rows of tiles are there." in server.log()
    assert not list((output / STORE).iterdir())
    again = prompt | {
        "video": {**prompt["video"], "inputs": {**prompt["video"]["inputs"], "filename_prefix": "whole/rows"}}
    }
    assert first_group(server.watch(again).events) == 0
    one, other = (max(output.glob(f"{folder}/*.mp4"), key=os.path.getmtime) for folder in ("killed", "whole"))
    assert frames_of(one).shape == (1, 8 * 24 * 8, 32, 3)
    assert torch.equal(frames_of(one), frames_of(other))
