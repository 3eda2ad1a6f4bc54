"""A decode that dies with its server, continued by another one."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest
import torch

from opensora.opensora_models.storage.segment_store import SegmentStore
from opensora.opensora_models.vae.latent_file import save_latent
from support.graphs import Prompt, complete, node, saved_latents

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = pytest.mark.server

GROUPS = 16
STORE = "opensora_unfinished"
CLIPS = {
    "1.2": (1, 4, 5 * 6, 8, 8),
    "1.3": (1, 16, 5 * 6, 8, 8),
    "2.0": (1, 16, 1, 24 * 6, 4),
    "2.0-hc": (1, 128, 1, 6 * 6, 2),
}
"""Latents of each release that are decoded and encoded in several pieces."""

DIES = """
import os
import signal

import comfy.utils
from comfy_execution.utils import get_executing_context

NODE_CLASS_MAPPINGS = {{}}
update = comfy.utils.ProgressBar.update_absolute


def update_or_die(self, value, *args, **kwargs):
    if value > 2 and get_executing_context().node_id == "{node}":
        os.kill(os.getpid(), signal.SIGKILL)
    return update(self, value, *args, **kwargs)


comfy.utils.ProgressBar.update_absolute = update_or_die
"""
"""A custom node that kills its server in the middle of a node's work."""


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


def until_killed(server: TestServer, folder: Path, models: Path, prompt: Prompt, name: str = "video") -> None:
    """Run a prompt on a server of its own, with ``server``'s output folder, that is killed after pieces of a node.

    It does so itself: an event that tells of the third piece may arrive when a fast machine has finished the last.
    """
    from support.server import TestServer

    output = server.base / "output"
    killed = TestServer(folder, models)
    killed.arguments += ["--output-directory", str(output)]
    (folder / "custom_nodes").mkdir(exist_ok=True)
    (folder / "custom_nodes" / "dies.py").write_text(DIES.format(node=name), encoding="utf-8")
    killed.start()
    process = killed._process
    assert process is not None
    with pytest.raises(OSError):  # the connection breaks in one of several ways
        killed.watch(prompt)
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


def old_segments(output: Path, folder: Path) -> Path:
    """Segments nobody has touched for a year, and settings of the server in ``folder`` that keep them for a week."""
    settings = folder / "user" / "default" / "comfy.settings.json"
    settings.parent.mkdir(parents=True)
    settings.write_text('{"OpenSora.Stored.KeepDays": 7}', encoding="utf-8")
    store = output / "opensora_segments" / "0123456789abcdef"
    SegmentStore(store, "run").save(0, torch.zeros(1, 4, 1, 2, 2))
    then = time.time() - 365 * 24 * 3600
    for path in store.iterdir():
        os.utime(path, (then, then))
    return store


@pytest.mark.parametrize(("name", "release"), [("decode", "2.0"), ("encode", "2.0-hc")])
def test_a_killed_servers_images_and_latents_are_the_same_when_repeated(
    name: str, release: str, tmp_path: Path, tiny_models: Path, server: TestServer, object_info: dict[str, Any]
) -> None:
    """Open-Sora Decode and Encode hold their result in memory: nothing half-written stays, and all is made again."""
    output, prefix = server.base / "output", f"killed-{name}-{release}"
    folder = saved_clip(tmp_path / "base", *CLIPS[release])
    graph = {
        "vae": node("OSoraVAELoader", vae_name=f"random-vae-v{release}.safetensors"),
        "load": node("OSoraLoadLatent", file="clip.latent"),
        "decode": node("OSoraDecode", samples=["load", 0], vae=["vae", 0], filename_prefix=f"{prefix}/clip"),
        "encode": node("OSoraEncode", images=["decode", 0], vae=["vae", 0]),
    }
    whole = graph | {"save": node("SaveLatent", samples=["encode", 0])}
    old = old_segments(output, folder)
    until_killed(server, folder, tiny_models, complete(whole, object_info), name)
    assert not old.exists()  # of its settings
    files = [path.relative_to(output) for path in output.rglob("*") if path.is_file()]
    mine = sorted(path.name for path in files if path.parts[0] == prefix)
    noted = [path for path in files if path.parts[:2] == (STORE, "begun")]
    assert mine == ["clip_00001_.latent"]
    assert sorted(path.name for path in noted) == ["check_plan.json", "lock", "plan"]
    listed = {"stored": node("OSoraStored", what="unfinished decodes")}
    (report,) = server.run(complete(listed, object_info))["stored"]["text"]
    assert report.startswith("1 kept, ") and f"{STORE}/begun/" in report

    graph["load"]["inputs"]["file"] = f"{prefix}/clip_00001_.latent [output]"
    repeated = saved_latents(server, object_info, graph, "encode")["encode"]
    assert not (output / STORE).exists() and not list(output.rglob(".opensora-*"))
    graph["load"] = node("OSoraLoadLatent", file=f"{prefix}/clip_00002_.latent [output]")
    undisturbed = saved_latents(server, object_info, graph, "encode")["encode"]
    assert repeated.std() > 0.01 and torch.equal(repeated, undisturbed)
