"""Prompt Builder for every release: the words of each, the MODEL before the menu, and one fault marks one widget."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from support.comfyui import COLLECTOR, NodeError

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = [pytest.mark.comfy, pytest.mark.compat]


def built(
    prompt: str = "raining, sea", version: str = "2.0", aesthetic: str = "", motion: str = "", **more: Any
) -> str:
    from opensora.nodes.prompts import PromptBuilder

    more = {"camera_motion": "off", **more}
    return PromptBuilder.execute(prompt, version, aesthetic, motion, **more).result[0]


@pytest.mark.parametrize(
    ("settings", "prompt"),
    [
        ({}, "raining, sea. 24 FPS. 4 motion score."),
        ({"motion": "strong"}, "raining, sea. 24 FPS. 7 motion score."),
        ({"motion": "static", "frame_rate": 16.0}, "raining, sea. 16 FPS. 1 motion score."),
        ({"motion": "off"}, "raining, sea. 24 FPS."),
        ({"motion": "15"}, "raining, sea. 24 FPS. 15 motion score."),
        ({"version": "2.0 high compression"}, "raining, sea. 24 FPS. 4 motion score."),
        ({"version": "1.2", "motion": "4"}, "raining, sea motion score: 4.0."),
        ({"prompt": "|0| a |2| b."}, "|0|a. 24 FPS. 4 motion score.|2|b. 24 FPS. 4 motion score."),
    ],
)
def test_words_of_a_release_go_on_once(comfy: Path, settings: dict[str, Any], prompt: str) -> None:
    once = built(**settings)
    assert once == prompt == built(**{**settings, "prompt": once})


def test_the_model_decides(comfy: Path, tiny_models: Path, caplog: pytest.LogCaptureFixture) -> None:
    from comfy.model_patcher import ModelPatcher

    from opensora.opensora_models.native.model.loading import load_model

    model = load_model(tiny_models / "diffusion_models" / "random-v2.0.safetensors")
    with caplog.at_level(logging.INFO, logger="opensora"):
        assert built(version="1.2", model=model) == "raining, sea. 24 FPS. 4 motion score."
    assert "The MODEL is Open-Sora 2.0, so the version 1.2 of the menu is not used" in caplog.text
    other = ModelPatcher(torch.nn.Linear(1, 1), load_device=torch.device("cpu"), offload_device=torch.device("cpu"))
    with pytest.raises(ValueError, match="not an Open-Sora diffusion model"):
        built(model=other)


def test_what_a_release_has_no_words_for_is_told(comfy: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger="opensora"):
        assert built(aesthetic="6.5", camera_motion="pan left") == "raining, sea. 24 FPS. 4 motion score."
    assert "without aesthetic scores; '6.5' is left out" in caplog.text
    assert "without camera sentences; 'pan left' is left out" in caplog.text


def graph(**inputs: Any) -> dict[str, Any]:
    values = {"prompt": "x", "version": "1.2", "aesthetic": "", "motion": "", "camera_motion": "off"}
    return {
        "built": {"class_type": "OSoraPromptBuilder", "inputs": values | inputs},
        "end": {"class_type": COLLECTOR, "inputs": {"value": ["built", 0], "name": "x"}},
    }


@pytest.mark.parametrize(
    ("fault", "value"),
    [("aesthetic", "excelent"), ("motion", "fasst"), ("version", "9"), ("camera_motion", "up"), ("frame_rate", 0)],
)
@pytest.mark.parametrize("version", ["1.2", "1.3", "2.0"])
def test_one_fault_marks_no_other_widget(executor: Executor, version: str, fault: str, value: Any) -> None:
    """Refused before the run at this widget alone, or by the node itself in a sentence that names it."""
    prompt = graph(**{"version": version, fault: value})
    marked = [error["extra_info"]["input_name"] for error in executor.errors(prompt).get("built", [])]
    assert marked in ([], [fault])
    if not marked:
        with pytest.raises(NodeError, match=fault):
            executor.run(prompt)


def test_nodes_are_listed_without_instructions(
    executor: Executor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opensora.nodes.prompts import PromptRequest
    from opensora.opensora_models.text import refinement

    (tmp_path / "empty.md").write_text("nothing here")
    monkeypatch.setattr(refinement, "INSTRUCTIONS", tmp_path / "empty.md")
    refinement.tasks.cache_clear()
    try:
        info = PromptRequest.GET_NODE_INFO_V1()
        assert info["input"]["required"]["task"][1]["options"] == [refinement.NO_TASK]
        request = {"class_type": "OSoraPromptRequest", "inputs": {"task": refinement.NO_TASK, "prompt": "a cat"}}
        with pytest.raises(NodeError, match="no instructions for a language model"):
            executor.run({"request": request}, ("request", 0))
    finally:
        monkeypatch.undo()
        refinement.tasks.cache_clear()
        PromptRequest.GET_NODE_INFO_V1()  # the class keeps the schema it was last asked for


@pytest.mark.parametrize(("version", "motion"), [("1.2", "strong"), ("1.3", "strong"), ("2.0", "16")])
def test_a_bad_score_is_refused_before_the_text_encoder_is_loaded(
    executor: Executor, version: str, motion: str
) -> None:
    loader = {"text_encoder_name": "random-t5.safetensors", "precision": "default", "device": "cpu"}
    prompt = graph(version=version, motion=motion) | {
        "clip": {"class_type": "OSoraTextEncoderLoader", "inputs": loader},
        "text": {"class_type": "OSoraTextEncode", "inputs": {
            "clip": ["clip", 0], "prompt": ["built", 0], "negative_prompt": "x", "clean": True,
        }},
    }  # fmt: skip
    prompt["end"]["inputs"]["value"] = ["text", 0]
    executor.reset()
    with pytest.raises(NodeError, match=f"The motion score is '{motion}'.*(nearest good value|number for)") as error:
        executor.run(prompt)
    assert error.value.node_id == "built" and "clip" not in executor.executed()
