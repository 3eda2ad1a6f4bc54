"""Two servers that share an output folder run the same graph at the same time."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest
import torch

from support.graphs import Prompt, complete, node

if TYPE_CHECKING:
    from support.server import Run, TestServer

pytestmark = pytest.mark.server

SEGMENTS = 3


def graph() -> Prompt:
    """A long video, its conditioning and its latents saved, decoded into a file."""
    return {
        "model": node("OSoraModelLoader", model_name="random-v1.2.safetensors"),
        "clip": node("OSoraTextEncoderLoader", text_encoder_name="random-t5.safetensors"),
        "text": node("OSoraTextEncode", clip=["clip", 0], prompt="a cat", negative_prompt="", model=["model", 0]),
        "saved": node("OSoraSaveConditioning", positive=["text", 0], negative=["text", 1], filename_prefix="two/text"),
        "empty": node("OSoraEmptyLatent", version="1.2", height=64, width=64, frames=51, batch_size=1),
        "long": node(
            "OSoraLongVideo", model=["model", 0], positive=["text", 0], negative=["text", 1], latent=["empty", 0],
            segments=SEGMENTS, steps=4, cfg=4.0, seed=21,
        ),
        "report": node("PreviewAny", source=["long", 1]),
        "vae": node("OSoraVAELoader", vae_name="random-vae-v1.2.safetensors"),
        "video": node("OSoraDecodeToVideo", samples=["long", 0], vae=["vae", 0], filename_prefix="two/clip"),
    }  # fmt: skip


def frames_of(path: Path) -> torch.Tensor:
    with av.open(str(path)) as file:
        return torch.stack([torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in file.decode(video=0)])


def test_both_end_right(tmp_path: Path, tiny_models: Path, server: TestServer, object_info: dict[str, Any]) -> None:
    from support.server import TestServer

    output = server.base / "output"
    (tmp_path / "base").mkdir()
    second = TestServer(tmp_path / "base", tiny_models)
    second.arguments += ["--output-directory", str(output)]
    second.start()
    prompt = complete(graph(), object_info)

    def run(each: TestServer) -> Run:
        return each.watch(prompt)

    try:
        with ThreadPoolExecutor(2) as pool:
            runs = list(pool.map(run, (server, second)))
    finally:
        second.stop()
    second.check_log()
    videos, latents, texts = (sorted(output.glob(f"two/*{ending}")) for ending in (".mp4", ".latent", ".safetensors"))
    assert [len(found) for found in (videos, latents, texts)] == [2, 2, 2]
    assert torch.equal(*map(frames_of, videos)) and len(frames_of(videos[0])) == 3 * 51 - 2 * 17
    # One of them made the segments, the other waited and took them.
    reports = [run.outputs["report"]["text"][0] for run in runs]
    assert sum("Made by an earlier run" in report for report in reports) == 1
    assert not list((output / "opensora_unfinished").glob("*")) and not list(output.rglob(".opensora-*"))
