"""Templates for released weights: right as they are, and run with tiny files under the released names.

The weights themselves fit into no test. What a file of them can be wrong in is held here: every file is offered for
download under the name its loader has, ComfyUI accepts the graph as it stands once those files are there, and the same
graph makes a video with size, length and steps made small.
"""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import numpy as np
import pytest

from support import random_ltx
from support.pack import PACK_ROOT
from support.patience import until
from support.random_flux import save_flux
from support.server import PromptFailed
from support.videos import frames_and_rate
from support.workflows import NOTES, api_of, every_node, made_small, offered, read, released_workflows

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = [pytest.mark.server]

STAND_INS = {
    "diffusion_models/opensora-v1.2.safetensors": "diffusion_models/random-v1.2.safetensors",
    "diffusion_models/opensora-v1.3.safetensors": "diffusion_models/random-v1.3.safetensors",
    "diffusion_models/opensora-v1.3-i2v.safetensors": "diffusion_models/random-v1.3.safetensors",
    "diffusion_models/Open_Sora_v2.safetensors": "diffusion_models/random-v2.0.safetensors",
    "vae/opensora-vae-v1.2.safetensors": "vae/random-vae-v1.2.safetensors",
    "vae/opensora-vae-v1.3.safetensors": "vae/random-vae-v1.3.safetensors",
    "vae/hunyuan_vae.safetensors": "vae/random-vae-v2.0.safetensors",
    "text_encoders/t5xxl_fp16.safetensors": "text_encoders/random-t5.safetensors",
    "text_encoders/clip_l.safetensors": "text_encoders/random-clip-l.safetensors",
}
FLUX = ("diffusion_models/flux1-dev.safetensors", "vae/ae.safetensors")
LTX = "checkpoints/ltx-video-2b-v0.9.safetensors"
FILES = {*STAND_INS, *FLUX, LTX}

HOSTS = ("https://huggingface.co/", "https://civitai.com/")
ENDINGS = (".safetensors", ".sft", ".ckpt", ".pth", ".pt")
"""Where the page downloads from, and what: pages 1.47.12 and 1.58.1 refuse the rest."""
MODEL_FILE = re.compile(r".+\.(?:safetensors|sft|ckpt|pth?|bin|onnx|gguf)", re.I)

README = (PACK_ROOT / "README.md").read_text(encoding="utf-8")
FRAMES = 17
ENDLESS = 1000
"""Steps of a run that others wait behind until it is stopped."""

WORKFLOWS = {path.stem: path for path in released_workflows()}
OTHERS = ("Open-Sora 61 LTX-Video",)
"""Other models, whose text encoders ComfyUI reads only whole; run made small in test_other_models.py."""
each = pytest.mark.parametrize("name", WORKFLOWS)


def note_of(workflow: dict[str, Any]) -> str:
    """The text of a template's note, without the marks for bold."""
    (note,) = [node for node in workflow["nodes"] if node["type"] in NOTES]
    return str(note["widgets_values"][0]).replace("**", "")


@pytest.fixture(scope="module")
def stand_ins(comfy: Path, tiny_models: Path, running_server: TestServer) -> None:
    """Tiny files under every released name."""
    for target, source in STAND_INS.items():
        shutil.copyfile(tiny_models / source, tiny_models / target)
    save_flux(*(tiny_models / name for name in FLUX))
    (tiny_models / LTX).parent.mkdir(exist_ok=True)
    random_ltx.save_checkpoint(tiny_models / LTX)


def test_there_is_one_for_every_release_and_job() -> None:
    jobs = [name.split("Released ")[1] for name in WORKFLOWS if name not in OTHERS]
    assert jobs == [
        "1.2 text to video", "1.3 text to video", "1.3 image to video", "2.0 text to video, 256px",
        "2.0 text to video, 768px", "2.0 text to image to video, Flux", "2.0 low memory",
    ]  # fmt: skip


@each
def test_every_file_is_offered_under_the_name_its_loader_has(name: str) -> None:
    workflow = read(WORKFLOWS[name])
    models = offered(workflow)
    named = {value for node in every_node(workflow) if node["type"] not in NOTES for value in node["widgets_values"]
             if isinstance(value, str) and MODEL_FILE.fullmatch(value)}  # fmt: skip
    assert {model["name"] for model in models} == named
    for model in models:
        assert f"{model['directory']}/{model['name']}" in FILES
        assert model["url"].startswith(HOSTS) and model["url"].endswith(ENDINGS)
        assert "/resolve/" in model["url"]


@each
def test_what_has_to_be_renamed_is_said(name: str) -> None:
    """A browser saves a file under the last part of its address, whatever the page asks for."""
    workflow = read(WORKFLOWS[name])
    note, renamed = note_of(workflow), False
    for model in offered(workflow):
        path = urlsplit(model["url"]).path
        repository, arrives = "/".join(path.split("/")[1:3]), path.rsplit("/", 1)[1]
        place = f"models/{model['directory']}"
        target = place if arrives == model["name"] else f"{place}/{model['name']}"
        assert f"- {arrives} of [{repository}](https://huggingface.co/{repository}) → {target}\n" in note
        renamed = renamed or arrives != model["name"]
        if repository.startswith("hpcai-tech/"):
            assert f"| {repository} | `{place}/{model['name']}` |" in README
    assert ("Rename" in note) == renamed
    assert ("Nothing has to be renamed" in note) != renamed


def test_each_is_accepted_as_it_is(stand_ins: None, server: TestServer) -> None:
    """Queued behind a run that is stopped once all of them were judged, and taken off again before one begins."""
    answers: dict[str, Any] = {}

    def queue(event: str, data: dict[str, Any]) -> None:
        if event != "progress" or answers:
            return
        for name, path in WORKFLOWS.items():
            answers[name] = server.post("/prompt", {"prompt": api_of(path)})
        server.post("/queue", {"delete": [answer["prompt_id"] for answer in answers.values()]})
        server.interrupt(data["prompt_id"])

    with pytest.raises(PromptFailed, match="interrupted"):
        first = next(path for name, path in WORKFLOWS.items() if name not in OTHERS)
        server.watch(made_small(api_of(first), ENDLESS), queue)
    assert {name: answer["node_errors"] for name, answer in answers.items()} == dict.fromkeys(WORKFLOWS, {})
    until(lambda: not server.get("/queue")["queue_running"])  # what was stopped is told before it leaves the list
    assert server.get("/queue")["queue_pending"] == []
    assert not any(server.get(f"/history/{answer['prompt_id']}") for answer in answers.values())


@pytest.mark.parametrize("name", [name for name in WORKFLOWS if name not in OTHERS])
def test_it_runs_made_small(name: str, stand_ins: None, server: TestServer, tmp_path: Path) -> None:
    run = server.watch(made_small(api_of(WORKFLOWS[name])))
    (video,) = [item for item in run.files() if item["filename"].endswith(".mp4")]
    file = tmp_path / video["filename"]
    file.write_bytes(server.file(video))
    frames, rate = frames_and_rate(file)
    assert (frames.shape, rate) == ((FRAMES, 64, 64, 3), 24)
    assert frames.std() > 0 and np.abs(np.diff(frames.astype(np.int16), axis=0)).mean() > 0
