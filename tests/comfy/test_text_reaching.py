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


@pytest.fixture(scope="module")
def model(comfy: Path, tiny_models: Path) -> Any:
    """The tiny MODEL of 2.0."""
    from opensora.opensora_models.native.model.loading import load_model

    return load_model(tiny_models / "diffusion_models" / "random-v2.0.safetensors")


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


def test_the_guidance_of_flux_is_told_to_be_unread(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    (sentence,) = told(caplog, model, text(guidance=3.5), ours())
    assert sentence.endswith("The guidance written into it (Flux) is not read.")


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


def test_ksampler_with_a_1x_model_refuses_it_too(executor: Executor) -> None:
    from support.comfyui import NodeError

    graph = loaders() | {
        "old": node("OSoraModelLoader", model_name="random-v1.3.safetensors", weight_dtype="default",
                    rounding="accurate", window=0, spatial_rotary="automatic"),
        "a": sampled("text", ["text", 1]),
    }  # fmt: skip
    graph["a"]["inputs"]["model"] = ["old", 0]
    graph["latent"] = node("OSoraEmptyLatent", version="1.3", height=32, width=32, frames=17, batch_size=1)
    with pytest.raises(NodeError, match="encoded for Open-Sora 2.0, but the MODEL is Open-Sora 1.3"):
        executor.run(graph, ("a", 0))


def test_a_foreign_model_is_left_alone(comfy: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert told(caplog, SimpleNamespace(model=None), text(pooled=False)) == []


Prompt = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def loaders() -> Prompt:
    return {
        "model": node("OSoraModelLoader", model_name="random-v2.0.safetensors", weight_dtype="default",
                      rounding="accurate", window=0, spatial_rotary="automatic"),
        "clip": node("OSoraTextEncoderLoader", text_encoder_name="random-t5.safetensors", precision="default",
                     device="default", clip_l_name="random-clip-l.safetensors"),
        "core": node("DualCLIPLoader", clip_name1="random-t5.safetensors", clip_name2="random-clip-l.safetensors",
                     type="flux"),
        "latent": node("EmptyHunyuanLatentVideo", height=32, width=32, length=5, batch_size=1),
        "text": node("OSoraTextEncode", clip=["clip", 0], prompt="a red kite", negative_prompt="", clean=True,
                     model=["model", 0]),
    }  # fmt: skip


def sampled(positive: str, negative: list[Any]) -> dict[str, Any]:
    return node("KSampler", model=["model", 0], positive=[positive, 0], negative=negative, latent_image=["latent", 0],
                seed=1, steps=2, cfg=3.0, sampler_name="euler", scheduler="simple", denoise=1.0)  # fmt: skip


def test_every_way_to_the_same_text_samples_the_same_clip(executor: Executor) -> None:
    """Ours, core's encode nodes with our loader and with core's, and a text that lay on disk."""
    flux = {"clip_l": "a red kite", "t5xxl": "a red kite", "guidance": 3.5}
    graph = loaders() | {
        "plain": node("CLIPTextEncode", clip=["clip", 0], text="a red kite"),
        "empty": node("CLIPTextEncode", clip=["core", 0], text=""),
        "flux": node("CLIPTextEncodeFlux", clip=["core", 0], **flux),
        "save": node("OSoraSaveConditioning", positive=["text", 0], negative=["text", 1], filename_prefix="two/x",
                     note=""),
        "a": sampled("text", ["text", 1]),
        "b": sampled("plain", ["empty", 0]),
        "c": sampled("flux", ["empty", 0]),
    }  # fmt: skip
    *clips, name = executor.run(graph, ("a", 0), ("b", 0), ("c", 0), ("save", 0))
    again = loaders() | {"text": node("OSoraLoadConditioning", file=name), "a": sampled("text", ["text", 1])}
    (loaded,) = executor.run(again, ("a", 0))
    assert bool(clips[0]["samples"].isfinite().all())
    for other in (*clips[1:], loaded):
        torch.testing.assert_close(other["samples"], clips[0]["samples"], atol=1e-5, rtol=1e-5)


def test_core_text_in_our_sampler_is_told(executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
    graph = loaders() | {
        "plain": node("CLIPTextEncode", clip=["core", 0], text="a (red:1.4) kite"),
        "ours": node("OSoraSampler", model=["model", 0], positive=["plain", 0], negative=["text", 1],
                     latent=["latent", 0], steps=1, cfg=7.0, seed=1, denoise=1.0, guidance="automatic", image_cfg=3.0,
                     renoise_given=False),
    }  # fmt: skip
    with caplog.at_level(logging.WARNING, logger="opensora"):
        executor.run(graph, ("ours", 0))
    assert "does not come from Open-Sora Text Encode" in caplog.text
