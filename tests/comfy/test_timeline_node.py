"""Open-Sora Timeline: what it gives equals what Open-Sora Reference and Open-Sora Prompt Segments give."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from PIL import Image

from opensora.opensora_models.sampling.masks import format_strategy
from opensora.opensora_models.sampling.timeline_use import most_important

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = [pytest.mark.comfy, pytest.mark.compat]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


VAE = node("OSoraVAELoader", vae_name="random-vae-v1.2.safetensors", spatial_vae="none", dtype="default",
           temporal_overlap=True)  # fmt: skip
CLIP = node("OSoraEmptyLatent", version="1.2", height=64, width=64, frames=34, batch_size=1)
RED, BLUE = (node("EmptyImage", width=64, height=64, batch_size=1, color=color) for color in (0xFF0000, 0x0000FF))
PLAN = '{"references": [{"reference": 0}, {"reference": 2, "at": -5, "strength": 0.25}, {"reference": 0, "at": 5}]}'


def graph(**more: Any) -> dict[str, Any]:
    inputs = {"vae": ["vae", 0], "clip_latent": ["clip", 0], "plan": PLAN, "resize": "crop", **more}
    return {"vae": VAE, "clip": CLIP, "red": RED, "blue": BLUE, "plan": node("OSoraTimeline", **inputs)}


def reference(number: int, **more: Any) -> dict[str, Any]:
    inputs = {"placement": "at position", "position": 0, "frames": 0, "strength": 0.0, "position_unit": "latent frame",
              "resize": "crop", "segment": 0, **more}  # fmt: skip
    if number:
        inputs["references"] = [f"r{number - 1}", 0]
    return node("OSoraReference", vae=["vae", 0], clip_latent=["clip", 0], **inputs)


SOCKETS = {"pictures.picture0": ["red", 0], "pictures.picture2": ["blue", 0]}


def test_a_chain_is_that_of_reference_nodes(executor: Executor) -> None:
    prompt = graph(**SOCKETS)
    prompt["r0"] = reference(0, image=["red", 0])
    prompt["r1"] = reference(1, image=["blue", 0], position=-5, strength=0.25)
    prompt["r2"] = reference(2, image=["red", 0], position=5)
    chain, strategy, report, wanted = executor.run(prompt, ("plan", 0), ("plan", 2), ("plan", 3), ("r2", 0))
    assert len(chain.references) == len(wanted.references) == 3
    for ours, theirs in zip(chain.references, wanted.references, strict=True):
        assert torch.equal(ours.latent, theirs.latent)
        assert (ours.target_start, ours.edit_ratio, ours.release) == (
            theirs.target_start, theirs.edit_ratio, theirs.release,
        )  # fmt: skip
    assert strategy == "0,0,0,0,1,0.0;0,2,0,-5,1,0.25;0,0,0,5,1,0.0"
    assert report.splitlines()[-1].startswith("References overlap at latent frames 5;")


@pytest.mark.parametrize(("version", "file"), [("1.3", "v1.3"), ("2.0", "v2.0"), ("2.0 high compression", "v2.0-hc")])
def test_a_clip_and_a_picture_are_given_as_by_reference_nodes(executor: Executor, version: str, file: str) -> None:
    good = 16 if version.endswith("compression") else 17
    prompt = graph(plan="", **{"pictures.picture0": ["film", 0], "pictures.picture1": ["red", 0]})
    prompt["vae"] = node("OSoraVAELoader", **{**VAE["inputs"], "vae_name": f"random-vae-{file}.safetensors"})
    prompt["clip"] = node("OSoraEmptyLatent", **{**CLIP["inputs"], "version": version, "frames": 2 * good - good % 2})
    prompt["film"] = node("EmptyImage", width=64, height=64, batch_size=good + 3, color=0x336699)
    prompt["short"] = node("ImageFromBatch", image=["film", 0], batch_index=0, length=good)
    prompt["r0"] = reference(0, image=["short", 0])
    prompt["r1"] = reference(1, image=["red", 0], position=-1)
    (wanted,) = executor.run(prompt, ("r1", 0))
    places = [each.strategy(number) for number, each in enumerate(wanted.references)]
    prompt["plan"]["inputs"]["plan"] = format_strategy(places)
    chain, report = executor.run(prompt, ("plan", 0), ("plan", 3))
    assert [each.strategy(number) for number, each in enumerate(chain.references)] == places
    for ours, theirs in zip(chain.references, wanted.references, strict=True):
        assert torch.equal(ours.latent, theirs.latent) and ours.release == theirs.release == version
    told = f"Reference 0: Of the {good + 3} frames of the reference, counted from 0, frames 0 to {good - 1} are used."
    assert told in report.splitlines()
    assert ("An experiment" in report) == version.startswith("2.0")


def test_a_chain_before_stays_first(executor: Executor) -> None:
    prompt = graph(references=["r0", 0], **SOCKETS)
    prompt["r0"] = reference(0, image=["blue", 0], position=7)
    chain, before = executor.run(prompt, ("plan", 0), ("r0", 0))
    assert chain.references[0] is before.references[0] and len(chain.references) == 4


def test_a_batch_is_numbered_from_its_first_picture(executor: Executor) -> None:
    prompt = graph(batch=["batch", 0], plan="0,1")
    prompt["batch"] = node("ImageBatch", image1=["red", 0], image2=["blue", 0])
    prompt["other"] = node("OSoraTimeline", **{**graph(**SOCKETS)["plan"]["inputs"], "plan": "0,2"})
    (chain, other) = executor.run(prompt, ("plan", 0), ("other", 0))
    assert torch.equal(chain.references[0].latent, other.references[0].latent)


def test_words_alone_need_neither_vae_nor_pictures(executor: Executor) -> None:
    plan = json.dumps({"prompts": [{"segment": 0, "text": "a forest"}, {"segment": 2, "text": "the sea"}]})
    prompt = {"clip": CLIP, "plan": node("OSoraTimeline", clip_latent=["clip", 0], plan=plan, resize="crop")}
    prompt["lines"] = node("OSoraPromptSegments", lines="a forest\n\nthe sea")
    chain, words, lines = executor.run(prompt, ("plan", 0), ("plan", 1), ("lines", 0))
    assert words == lines and chain.references == ()


def test_the_page_is_told_what_became_of_the_plan_that_ran(executor: Executor) -> None:
    import folder_paths

    prompt = graph(**SOCKETS, **{"pictures.picture3": ["blue", 0]})
    (report,) = executor.run(prompt, ("plan", 3))
    assert report.splitlines()[0] == "Reference 3 is connected and in no place of the plan."
    told = json.loads(executor.shown("plan")["opensora_timeline"][0])
    assert told["plan"] == PLAN and told["said"] == report.splitlines()
    assert (told["release"], told["frames"], told["latent_frames"]) == ("1.2", 34, 10)
    assert told["lengths"] == [1, 0, 1, 1]
    sheet = told["sheet"]
    assert sheet["strips"] == {"0": [0, 1], "2": [1, 1], "3": [2, 1]} and sheet["type"] == "temp"
    with Image.open(Path(folder_paths.get_temp_directory()) / sheet["subfolder"] / sheet["filename"]) as picture:
        cells = [picture.getpixel((sheet["width"] * cell + 5, 5)) for cell in range(3)]
    assert cells == [(255, 0, 0), (0, 0, 255), (0, 0, 255)]


def test_many_spans_are_told_in_few_sentences(executor: Executor) -> None:
    places = [{"reference": 0, "at": 5 * (number % 2)} for number in range(200)]
    (chain, report) = executor.run(graph(plan=json.dumps({"references": places}), **SOCKETS), ("plan", 0), ("plan", 3))
    assert len(chain.references) == 200 and len(report.splitlines()) > 200
    notes = most_important(report.splitlines())
    assert notes[:-1] == report.splitlines()[:20] and notes[-1].startswith("The report has ")
    assert most_important(["one"]) == ["one"]


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"plan": '{"references": ['}, "not readable JSON"),
        ({"plan": "0,1", **SOCKETS}, "nothing is connected to picture1; the nearest good value is 0"),
        ({"plan": "0,3", **SOCKETS}, "asks for reference 3"),
        ({"plan": "0,0,0,10", **SOCKETS}, "outside the clip of 10 latent frames; the nearest good value is 9"),
        ({"plan": "0", "batch": ["red", 0], **SOCKETS}, "both are connected"),
        ({"plan": "0;0,3", "batch": ["red", 0]}, "reference 3, but the batch has 1; the nearest good value is 0"),
        ({"plan": "0"}, "no picture is connected; connect at least 1"),
        ({"plan": "0", "picture3": ["red", 0]}, "no input 'picture3'; the nearest name is pictures.picture3"),
        ({"plan": "0,25", "pictures.picture25": ["red", 0]}, "no input 'pictures.picture25'; the nearest name is pict"),
        ({"plan": '{"prompts": [{"text": "\\ud800"}]}'}, "half a character"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(executor: Executor, inputs: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Exception, match=sentence):
        executor.run(graph(**inputs), ("plan", 0))
