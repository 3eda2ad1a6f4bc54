"""Decode to Video writes a part while the next is decoded: the same file, and what goes wrong comes out."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from support.native import randn

pytestmark = pytest.mark.comfy
SOON = 60.0
GROUPS = 3


@pytest.fixture
def job(comfy: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Decodes three groups into a file of a folder below ``tmp_path``; gives its bytes."""
    import folder_paths

    from opensora.opensora_models.native.outputs import OutputFile
    from opensora.opensora_models.native.vae import decoding
    from opensora.opensora_models.native.vae.vae import load_vae
    from opensora.opensora_models.vae.video_file import GroupedVideo

    vae = load_vae(tiny_models / "vae" / "random-vae-v1.2.safetensors")
    latents = randn(1, 4, 5 * GROUPS, 4, 4)

    def run(name: str) -> bytes:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folder))
        kept = OutputFile(folder, "clip.latent", "")
        made = decoding.decode_to_video(vae, latents, None, 24.0, "mp4 (h264)", 18, "auto", kept, None)
        return made.path.read_bytes()

    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # the last bits depend on their number
    with torch.inference_mode():
        yield SimpleNamespace(run=run, vae=vae, video=GroupedVideo, output=tmp_path)
    torch.set_num_threads(threads)


def parts_in(folder: Path) -> list[str]:
    """Parts and rows of tiles that are kept, and whatever else a writer left."""
    names = [path.name for path in folder.rglob("*") if path.is_file() and "opensora_unfinished" in path.parts]
    return sorted(name for name in names if not name.startswith(("check_", "plan")) and "lock" not in name)


def test_a_part_is_written_while_the_next_is_decoded_and_the_file_is_the_same(
    job: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = job.run("one after the other")
    write, decode = job.video.write, type(job.vae.network).decode_piece
    going_on = [threading.Event() for _ in range(GROUPS + 1)]
    decoded = 0

    def patient(video: Any, number: int, frames: Tensor) -> None:
        if number < GROUPS - 1:
            assert going_on[number + 1].wait(SOON), f"part {number + 1} was not decoded while part {number} was written"
        write(video, number, frames)

    def noted(network: Any, *args: Any, **options: Any) -> Tensor:
        nonlocal decoded
        going_on[decoded].set()
        decoded += 1
        return decode(network, *args, **options)

    monkeypatch.setattr(job.video, "write", patient)
    monkeypatch.setattr(type(job.vae.network), "decode_piece", noted)
    assert job.run("beside") == expected
    assert decoded == GROUPS and parts_in(job.output) == []


def test_what_the_writer_raises_comes_out_and_the_next_run_goes_on(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management

    expected = job.run("whole")
    write = job.video.write
    for error in (ValueError("the disk is full"), comfy.model_management.InterruptProcessingException()):

        def failing(video: Any, number: int, frames: Tensor, error: BaseException = error) -> None:
            if number == 1:
                raise error
            write(video, number, frames)

        monkeypatch.setattr(job.video, "write", failing)
        name = type(error).__name__
        with pytest.raises(type(error)):
            job.run(name)
        assert parts_in(job.output / name) == ["00000.mp4"]
        assert [path.name for path in (job.output / name).glob("*.mp4")] == []
        monkeypatch.setattr(job.video, "write", write)
        assert job.run(name) == expected


def test_an_interrupted_decode_keeps_the_part_that_was_being_written(job: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    write = job.video.write
    interrupted = threading.Event()

    def patient(video: Any, number: int, frames: Tensor) -> None:
        assert interrupted.wait(SOON)
        write(video, number, frames)

    decode = type(job.vae.network).decode_piece
    calls: list[int] = []

    def stopped(network: Any, *args: Any, **options: Any) -> Tensor:
        calls.append(1)
        if len(calls) == 2:
            interrupted.set()
            raise management.InterruptProcessingException
        return decode(network, *args, **options)

    monkeypatch.setattr(job.video, "write", patient)
    monkeypatch.setattr(type(job.vae.network), "decode_piece", stopped)
    with pytest.raises(management.InterruptProcessingException):
        job.run("cut")
    assert parts_in(job.output) == ["00000.mp4"]
    assert not [name for name in os.listdir(job.output / "cut") if name.endswith((".mp4", ".part"))]
