"""Encoded text on its way into a sampler: what another release or another node encoded is refused or told."""

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from pathlib import Path

    from support.comfyui import Executor

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

Conditioning = list[list[Any]]


def text(tokens: int = 512, pooled: bool = True, **marks: Any) -> Conditioning:
    state = torch.zeros(1, 16) if pooled else None
    return [[torch.zeros(1, tokens, 64), {"pooled_output": state, **marks}]]


def ours(release: str = "2.0") -> Conditioning:
    return text(opensora_text=release)


@pytest.fixture
def model(comfy: Path) -> Any:
    """What the check asks of a 2.0 MODEL."""
    from opensora.opensora_models.releases.known import release_named

    return SimpleNamespace(model=SimpleNamespace(release=release_named("2.0")))


def told(caplog: pytest.LogCaptureFixture, model: Any, *conditionings: Conditioning) -> list[str]:
    from opensora.opensora_models.native.text.reaching import check_text

    caplog.clear()
    with caplog.at_level(logging.INFO, logger="opensora"):
        check_text(model, *conditionings)
    return caplog.messages


def test_our_own_text_says_nothing(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, model, ours(), ours()) == []
    assert told(caplog, model, ours("2.0 high compression"), ours()) == [], "the same rules"


def test_text_of_core_nodes_is_accepted_and_told(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    for tokens in (256, 512, 700):
        (sentence,) = set(told(caplog, model, text(tokens), ours()))
        assert "does not come from Open-Sora Text Encode" in sentence and "(parentheses)" in sentence


def test_text_without_clip_is_refused_with_the_loader(model: Any) -> None:
    from opensora.opensora_models.native.text.reaching import check_text

    for pair in ((text(pooled=False), ours()), (ours(), text(pooled=False))):
        with pytest.raises(ValueError, match="no state of CLIP-L.*clip_l.safetensors chosen as clip_l_name"):
            check_text(model, *pair)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_text_of_2_0_is_refused_by_a_1x_model(executor: Executor, version: str) -> None:
    from opensora.opensora_models.native.sampling.guiders import OpenSoraGuider
    from opensora.opensora_models.releases.known import RELEASES

    loader = {"model_name": f"random-v{version}.safetensors", "weight_dtype": "default", "rounding": "accurate",
              "window": 0, "spatial_rotary": "automatic"}  # fmt: skip
    (model,) = executor.run({"model": {"class_type": "OSoraModelLoader", "inputs": loader}}, ("model", 0))
    guider = OpenSoraGuider(model, RELEASES[version].guidance.presets["text"])
    guider.set_conds(text(3, pooled=False), text(300))
    with pytest.raises(ValueError, match=f"encoded for Open-Sora 2.0, but the MODEL is Open-Sora {version}.*Text Enc"):
        guider.set_conds(ours(), text(3, pooled=False))


def test_a_foreign_model_is_left_alone(comfy: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, SimpleNamespace(model=None), text(pooled=False)) == []
