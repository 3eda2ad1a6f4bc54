"""Prompts written by a language model through core's text generation node, with a tiny one of random weights."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = pytest.mark.comfy

WRITER = "OpenSoraTestWriter"
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def tiny_writer() -> Any:
    """A CLIP of ComfyUI's Qwen3 classes, which can write text."""
    import comfy.sd
    import comfy.supported_models_base
    from comfy.text_encoders import z_image

    target = comfy.supported_models_base.ClipTarget(z_image.ZImageTokenizer, z_image.te())
    clip = comfy.sd.CLIP(target, parameters=1, model_options={"qwen3_4b_model_config": SIZES})
    generator = torch.Generator().manual_seed(0)
    weights = clip.cond_stage_model.state_dict()
    filled = {name: 0.1 * torch.randn(weight.shape, generator=generator) for name, weight in weights.items()}
    clip.cond_stage_model.load_state_dict(filled)
    return clip


@pytest.fixture
def writer(executor: Executor) -> Iterator[str]:
    """The name of a node that gives the tiny writer."""
    import nodes

    class Writer:
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})
        RETURN_TYPES = ("CLIP",)
        FUNCTION = "load"
        CATEGORY = "test"

        def load(self) -> tuple[Any]:
            return (tiny_writer(),)

    nodes.NODE_CLASS_MAPPINGS[WRITER] = Writer
    yield WRITER
    del nodes.NODE_CLASS_MAPPINGS[WRITER]


def test_request_answer_prompt_conditioning(executor: Executor, writer: str) -> None:
    graph = {
        "writer": {"class_type": writer, "inputs": {}},
        "request": {"class_type": "OSoraPromptRequest", "inputs": {"task": "refine", "prompt": "a cat"}},
        "generate": {
            "class_type": "TextGenerate",
            "inputs": {"clip": ["writer", 0], "prompt": ["request", 0], "max_length": 6, "sampling_mode": "off"},
        },
        "built": {
            "class_type": "OSoraPromptBuilder",
            "inputs": {
                "prompt": ["generate", 0],
                "version": "1.2",
                "aesthetic": "6.5",
                "motion": "",
                "camera_motion": "off",
            },
        },
        "clip": {
            "class_type": "OSoraTextEncoderLoader",
            "inputs": {
                "text_encoder_name": "random-t5.safetensors",
                "precision": "default",
                "device": "default",
            },
        },
        "text": {
            "class_type": "OSoraTextEncode",
            "inputs": {"clip": ["clip", 0], "prompt": ["built", 0], "negative_prompt": "blurry", "clean": True},
        },
    }
    answer, built, positive = executor.run(graph, ("generate", 0), ("built", 0), ("text", 0))
    assert answer and built == f"{answer.strip()} aesthetic score: 6.5."
    assert positive[0][0].shape[1] > 5 and bool(positive[0][0].isfinite().all())
