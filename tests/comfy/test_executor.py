"""The executor in the test process: values come back, failures are told, core nodes are there."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = pytest.mark.comfy


def test_values_come_back(executor: Executor) -> None:
    prompt = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 32, "height": 16, "batch_size": 2, "color": 0xFF0000}}
    }
    (image,) = executor.run(prompt, ("1", 0))
    assert tuple(image.shape) == (2, 16, 32, 3)
    assert image[..., 0].min() == 1.0 and image[..., 1].max() == 0.0


def test_a_refused_prompt_raises(executor: Executor) -> None:
    from support.comfyui import NodeError

    prompt = {"1": {"class_type": "EmptyImage", "inputs": {"width": 0, "height": 16, "batch_size": 2, "color": 0}}}
    with pytest.raises(NodeError, match="smaller than min"):
        executor.run(prompt, ("1", 0))


def test_extra_nodes_are_loaded_when_named(executor: Executor) -> None:
    prompt = {"1": {"class_type": "ManualSigmas", "inputs": {"sigmas": "1.0, 0.5, 0.0"}}}
    (sigmas,) = executor.run(prompt, ("1", 0))
    assert sigmas.tolist() == [1.0, 0.5, 0.0]
