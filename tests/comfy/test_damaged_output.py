"""Anything in the place of what the nodes keep in the output folder, at every level: the next run ends right."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import pytest
import torch

from support.damage import ANYWHERE, IN_FILES
from support.native import randn
from support.runs import Run, rooms

pytestmark = [pytest.mark.comfy, pytest.mark.skipif(os.name == "nt", reason="pipes, sockets and links of Unix")]


@pytest.fixture(scope="module")
def native(comfy: Path) -> SimpleNamespace:
    return rooms()


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Every bit is compared, and the last ones of a convolution depend on the number of threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def long_video(native: SimpleNamespace, models: Path, output: Path) -> bytes:
    return Run.make(native, models).result(resume=True)[0].numpy().tobytes()


def decoded(native: SimpleNamespace, models: Path, output: Path) -> bytes:
    """A video of three groups whose latents are saved first, as the node does it."""
    from opensora.opensora_models.native.outputs import next_output

    vae = native.vae.load_vae(models / "vae" / "random-vae-v1.2.safetensors")
    latents = randn(1, 4, 15, 2, 2)
    hidden = SimpleNamespace(prompt=None, extra_pnginfo=None)
    kept = native.decoding.keep_latent(
        vae, {"samples": latents}, lambda: next_output("a/clip", ".latent", hidden), {}, None
    )
    file = native.decoding.decode_to_video(vae, latents, None, 24.0, "mp4 (h264)", 18, "auto", kept, None)
    with av.open(str(file.path)) as video:
        return b"".join(frame.to_ndarray(format="rgb24").tobytes() for frame in video.decode(video=0))


KINDS: dict[str, Callable[[SimpleNamespace, Path, Path], bytes]] = {
    "opensora_segments": long_video,
    "opensora_unfinished": decoded,
}


@pytest.fixture(scope="module", params=KINDS)
def whole(
    request: pytest.FixtureRequest, native: SimpleNamespace, tiny_models: Path, tmp_path_factory: Any
) -> tuple[str, Path, bytes]:
    """The store's name, an output folder with all its pieces, and the result."""
    import folder_paths

    output = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch, torch.inference_mode():
        patch.setattr(folder_paths, "get_output_directory", lambda: str(output))
        patch.setattr("opensora.opensora_models.vae.video_file.VideoJob.finish", lambda job: None)
        result = KINDS[request.param](native, tiny_models, output)
    shutil.rmtree(output / "a", ignore_errors=True)
    return request.param, output, result


def levels(store: Path) -> dict[str, Path]:
    """One path of every kind in a store: the folders and a file of each name."""
    found = {"": store}
    for path in sorted(store.rglob("*")):
        kind = str(len(path.relative_to(store).parts)) if path.is_dir() else path.name.rstrip("0123456789")
        found.setdefault(kind, path)
    return found


# Each kind of damage to a file is tried in tests/unit/test_damaged_stores.py.
@pytest.mark.parametrize("damage", [*ANYWHERE, "half", "other values"])
def test_the_next_run_ends_right(
    damage: str,
    whole: tuple[str, Path, bytes],
    native: SimpleNamespace,
    tiny_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import folder_paths

    name, good, result = whole
    for number, path in enumerate(levels(good / name).values()):
        if damage not in ANYWHERE and (path.is_dir() or path.name == "lock"):
            continue  # nothing is read from a lock
        output, outside = tmp_path / str(number) / "output", tmp_path / str(number) / "outside"
        outside.mkdir(parents=True)
        shutil.copytree(good, output)
        IN_FILES[damage](output / path.relative_to(good), outside)
        left = sorted(outside.rglob("*"))
        monkeypatch.setattr(folder_paths, "get_output_directory", lambda output=output: str(output))
        assert KINDS[name](native, tiny_models, output) == result, path
        assert sorted(outside.rglob("*")) == left or not path.relative_to(good / name).parts, "nothing outside changes"
        assert not list(output.rglob(".opensora-*"))
        if name == "opensora_unfinished":
            assert not list((output / name).glob("*/*")) or damage == "full folder", "a finished video leaves nothing"
            assert len(list((output / "a").iterdir())) == 2
