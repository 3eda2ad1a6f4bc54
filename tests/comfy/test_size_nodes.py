"""The size nodes inside ComfyUI: numbers out, bad ones refused before anything runs, linked ones checked when known."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

Prompt = dict[str, dict[str, Any]]


def size(**changed: Any) -> Prompt:
    inputs = {
        "version": "1.2",
        "resolution": "480p",
        "aspect_ratio": "9:16 (wide)",
        "length": "2s",
        "custom_frames": 51,
        **changed,
    }
    return {"size": {"class_type": "OSoraSize", "inputs": inputs}}


def empty(**changed: Any) -> Prompt:
    inputs = {"version": "1.2", "height": 240, "width": 424, "frames": 51, "batch_size": 2, **changed}
    return {"empty": {"class_type": "OSoraEmptyLatent", "inputs": inputs}}


@pytest.mark.parametrize(
    ("changed", "numbers"),
    [
        ({}, [480, 848, 51, 15]),
        ({"version": "1.3", "resolution": "720p", "length": "4s"}, [720, 1280, 97, 30]),
        ({"version": "1.3", "resolution": "256", "aspect_ratio": "1:1 (square)", "length": "image"}, [256, 256, 1, 1]),
        ({"aspect_ratio": "16:9 (tall)", "length": "custom", "custom_frames": 34}, [848, 480, 34, 10]),
        ({"version": "2.0", "resolution": "256px", "length": "5s"}, [192, 336, 129, 33]),
        ({"version": "2.0", "resolution": "768px", "length": "image"}, [576, 1024, 1, 1]),
        ({"version": "2.0 high compression", "resolution": "768px", "length": "5s"}, [576, 1024, 128, 32]),
        ({"version": "2.0 image stage", "resolution": "768px", "aspect_ratio": "1:2 (wide)"}, [544, 1088, 1, 1]),
    ],
)
def test_size_gives_numbers_the_model_fills(executor: Executor, changed: dict[str, Any], numbers: list[int]) -> None:
    assert executor.run(size(**changed), *(("size", output) for output in range(4))) == numbers


def test_the_published_width_is_told(executor: Executor) -> None:
    (summary,) = executor.run(size(), ("size", 4))
    assert "published 480×854" in summary


@pytest.mark.parametrize(
    ("version", "frames", "shape"),
    [
        ("1.2", 51, (2, 4, 15, 30, 53)),
        ("1.3", 49, (2, 16, 15, 30, 52)),
        ("2.0", 9, (2, 16, 3, 30, 52)),
        ("2.0 high compression", 8, (2, 128, 2, 8, 12)),
    ],
)
def test_empty_latent_has_the_shape_of_the_version(
    executor: Executor, version: str, frames: int, shape: tuple[int, ...]
) -> None:
    height, width = (side * (32 if "high" in version else 8) for side in shape[-2:])
    (latent,) = executor.run(empty(version=version, frames=frames, height=height, width=width), ("empty", 0))
    assert latent["opensora_release"] == version
    assert tuple(latent["samples"].shape) == shape
    assert not latent["samples"].any()


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (empty(frames=50), "the nearest good value is 51"),
        (empty(version="1.3", frames=51), "the nearest good value is 49"),
        (size(length="custom", custom_frames=60), "the nearest good value is 68"),
    ],
)
def test_a_bad_length_is_refused_before_anything_runs(executor: Executor, prompt: Prompt, words: str) -> None:
    prompt = {**prompt, "shown": {"class_type": "PreviewAny", "inputs": {"source": [next(iter(prompt)), 0]}}}
    assert words in str(executor.validate(prompt))


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        (empty(version="1.3", width=424, frames=49), "the nearest good size is 240×432"),
        (empty(height=243), "the nearest good size is 240×424"),
        (size(resolution="256"), "the nearest good value is 1:2 (wide)"),
    ],
)
def test_a_bad_size_is_refused_by_the_node_itself(executor: Executor, prompt: Prompt, words: str) -> None:
    from support.comfyui import NodeError

    with pytest.raises(NodeError, match=re.escape(words)):
        executor.run(prompt, (next(iter(prompt)), 0))


@pytest.mark.parametrize("prompt", [empty(frames=50), size(length="custom", custom_frames=60)])
def test_one_mistake_marks_one_widget_with_one_sentence(executor: Executor, prompt: Prompt) -> None:
    prompt = {**prompt, "shown": {"class_type": "PreviewAny", "inputs": {"source": [next(iter(prompt)), 0]}}}
    ((error,),) = executor.errors(prompt).values()
    assert error["extra_info"]["input_name"] in {"frames", "custom_frames"}


def test_more_ratios_count_where_they_are_asked_for(executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
    cinema = {"aspect_ratio": "more", "more_ratios": "1:2.39 (wide)"}
    sizes = [executor.run(size(version="2.0", resolution="256px", **changed), ("size", 0), ("size", 1))
             for changed in (cinema, {"aspect_ratio": "1:2.39 (wide)"})]  # fmt: skip
    assert sizes[0] == sizes[1] and sizes[0][1] > 2.2 * sizes[0][0] and caplog.text.count("more_ratios") == 0
    executor.run(size(more_ratios="1:2.39 (wide)"), ("size", 0))
    assert "more_ratios is 1:2.39 (wide) and not used" in caplog.text


def test_limits_hold_for_the_widgets_a_rule_names(executor: Executor) -> None:
    for changed in ({"frames": 10**6}, {"frames": 0}, {"version": "9.9"}):
        prompt = {**empty(**changed), "shown": {"class_type": "PreviewAny", "inputs": {"source": ["empty", 0]}}}
        assert next(iter(changed)) in str(executor.validate(prompt))


def test_a_linked_number_is_checked_when_it_arrives(executor: Executor) -> None:
    from support.comfyui import NodeError

    linked = {**size(length="custom", custom_frames=34), **empty(frames=["size", 2])}
    (latent,) = executor.run(linked, ("empty", 0))
    assert latent["samples"].shape[2] == 10
    number = {"class_type": "PrimitiveInt", "inputs": {"value": 35}}
    with pytest.raises(NodeError, match="nearest good value is 34"):
        executor.run({**size(length="custom", custom_frames=["n", 0]), "n": number}, ("size", 0))


LOADING = {"rounding": "accurate", "window": 0, "spatial_rotary": "automatic"}
FILES = {"1.2": "random-v1.2", "1.3": "random-v1.3", "2.0": "random-v2.0", "2.0 high compression": "random-v2.0-hc"}


def with_model(prompt: Prompt, version: str) -> Prompt:
    """The prompt with a MODEL on its node, whose menu stays at 1.2."""
    (name, node), *_ = prompt.items()
    wired = {**node, "inputs": {**node["inputs"], "model": ["m", 0]}}
    loader = {"model_name": f"{FILES[version]}.safetensors", "weight_dtype": "default", **LOADING}
    return {name: wired, "m": {"class_type": "OSoraModelLoader", "inputs": loader}}


@pytest.mark.parametrize(
    ("version", "frames", "shape"),
    [("1.3", 17, (1, 16, 5, 8, 8)), ("2.0", 9, (1, 16, 3, 8, 8)), ("2.0 high compression", 8, (1, 128, 2, 2, 2))],
)
def test_a_model_makes_the_version_unnecessary(
    executor: Executor, version: str, frames: int, shape: tuple[int, ...], caplog: pytest.LogCaptureFixture
) -> None:
    prompt = with_model(empty(height=64, width=64, frames=frames, batch_size=1), version)
    with caplog.at_level("INFO", logger="opensora"):
        (latent,) = executor.run(prompt, ("empty", 0))
    assert tuple(latent["samples"].shape) == shape and latent["opensora_release"] == version
    assert f"The MODEL is Open-Sora {version}, so the version 1.2" in caplog.text


def test_a_linked_model_is_asked_when_it_is_known(executor: Executor) -> None:
    from support.comfyui import NodeError

    shown = {"shown": {"class_type": "PreviewAny", "inputs": {"source": ["empty", 0]}}}
    good = {**with_model(empty(frames=9, height=64, width=64), "2.0"), **shown}
    assert executor.errors(good) == {}  # 9 frames are no length of 1.2, which the menu says
    with pytest.raises(NodeError, match="nearest good value is 9"):
        executor.run(with_model(empty(frames=10, height=64, width=64), "2.0"), ("empty", 0))
    prompt = with_model(size(resolution="768px", length="5s"), "2.0")
    assert executor.run(prompt, *(("size", output) for output in range(4))) == [576, 1024, 129, 33]
    with pytest.raises(NodeError, match="nearest good value is 768px"):
        executor.run(with_model(size(resolution="720p"), "2.0"), ("size", 0))


def test_the_summary_of_2_tells_memory_and_the_longest_clip(
    executor: Executor, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from opensora.nodes import size as node

    (summary,) = executor.run(with_model(size(length="4s", resolution="256px"), "2.0"), ("size", 4))
    assert "GB with this MODEL's weights" in summary and "bf16" not in summary
    (summary,) = executor.run(size(version="2.0", resolution="256px", length="4s"), ("size", 4))
    assert "ComfyUI uses no graphics card here" in summary
    monkeypatch.setattr(node, "card_bytes", lambda: 16.0 * 2**30)
    (summary,) = executor.run(size(version="2.0", resolution="256px", length="8s"), ("size", 4))
    assert "16.0 GB to use: bf16 streams" in summary and "fp8 fits" in summary
    assert "released for clips of up to 129 frames, this one has 193" in caplog.text


def test_a_length_that_comes_back_short_is_told_before_the_run(
    executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    version = "2.0 high compression"
    for frames, said in ((48, False), (52, True), (56, False)):  # 12, 13 and 14 latent frames
        caplog.clear()
        executor.run(empty(version=version, frames=frames, height=64, width=64), ("empty", 0))
        assert (f"{frames} frames of Open-Sora {version} will come back as {frames - 3}" in caplog.text) == said
        caplog.clear()
        executor.run(size(version=version, resolution="768px", length="custom", custom_frames=frames), ("size", 0))
        assert ("48 or 56 come back whole" in caplog.text) == said


def test_the_image_stage_takes_any_model_that_has_one(executor: Executor) -> None:
    from support.comfyui import NodeError

    stage = size(version="2.0 image stage", resolution="768px", aspect_ratio="1:2 (wide)")
    for version in ("2.0", "2.0 high compression"):  # Flux's cells are 16 pixels whatever the video's are
        assert executor.run(with_model(stage, version), *(("size", output) for output in range(2))) == [544, 1088]
    with pytest.raises(NodeError, match=re.escape("Open-Sora 1.3 has no image stage; choose version 1.3")):
        executor.run(with_model(stage, "1.3"), ("size", 0))
