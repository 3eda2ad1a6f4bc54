"""A real server that is killed while its workers compute: nothing of it is left, and the next server works."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from support.graphs import Prompt, complete, node, saved_latents
from support.native import relative
from support.processes import children, gone

pytestmark = [
    pytest.mark.server,
    pytest.mark.slow,
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="children are found in /proc"),
]
SAME = 2e-5


def sampled(model: str, steps: int) -> dict[str, Any]:
    return node(
        "OSoraSampler", model=[model, 0], positive=["text", 0], negative=["text", 1], latent=["empty", 0],
        steps=steps, cfg=4.0, seed=3,
    )  # fmt: skip


def graph(**samplers: dict[str, Any]) -> Prompt:
    return {
        "model": node("OSoraModelLoader", model_name="random-v1.2.safetensors"),
        "shared": node("OSoraParallel", model=["model", 0], devices="cpu x 3"),
        "clip": node("OSoraTextEncoderLoader", text_encoder_name="random-t5.safetensors"),
        "text": node("OSoraTextEncode", clip=["clip", 0], prompt="a cat", negative_prompt="", model=["model", 0]),
        "empty": node("OSoraEmptyLatent", version="1.2", height=64, width=64, frames=17, batch_size=1),
        **samplers,
    }


def test_a_server_killed_in_mid_run_leaves_no_worker_and_the_next_one_works(
    tmp_path: Path, tiny_models: Path, object_info: dict[str, Any]
) -> None:
    from support.server import TestServer

    (tmp_path / "base").mkdir()
    server = TestServer(tmp_path / "base", tiny_models)
    save = {"save": node("SaveLatent", samples=["endless", 0], filename_prefix="never")}
    endless = complete(graph(endless=sampled("shared", 1000)) | save, object_info)
    server.start()
    process, workers = server._process, list[int]()
    assert process is not None
    before = set(children(process.pid))

    def kill(event: str, data: dict[str, Any]) -> None:
        """At the second step, when the workers are computing."""
        if event == "progress" and data["node"] == "endless" and data["value"] >= 2 and not workers:
            workers.extend(set(children(server.pid)) - before)
            os.kill(server.pid, signal.SIGKILL)

    try:
        with pytest.raises(Exception):  # noqa: B017 (the connection breaks in one of several ways)
            server.watch(endless, kill)
        assert process.wait(60) == -signal.SIGKILL
    finally:
        server.stop()
    assert len(workers) == 2 and gone(workers)
    again = TestServer(tmp_path / "base", tiny_models)
    said = again.log_size()
    again.start()
    try:
        assert "', left by a ComfyUI that was killed, is removed." in again.log(said)
        both = graph(together=sampled("shared", 3), alone=sampled("model", 3))
        latents = saved_latents(again, object_info, both, "together", "alone")
        assert relative(latents["together"], latents["alone"]) < SAME and latents["alone"].std() > 0.1
        workers = list(set(children(again.pid)) - before)
    finally:
        assert again.stop() == 0
    assert gone(workers)
