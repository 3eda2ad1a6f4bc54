"""The size, prompt and reference nodes in front of other video models of ComfyUI, with tiny random weights."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from support import random_ltx
from support.graphs import Prompt, complete, node, saved_latents
from support.random_ltx import random_weights
from support.workflows import WORKFLOWS, api_of, made_small

if TYPE_CHECKING:
    from support.comfyui import Executor
    from support.server import TestServer

pytestmark = pytest.mark.comfy

COGVIDEOX = {"num_attention_heads": 1, "time_embed_dim": 32, "text_embed_dim": 64, "num_layers": 1}


def save_cogvideox(folder: Path) -> bool:
    """A tiny CogVideoX; False where this ComfyUI does not know it (before 0.30)."""
    import comfy.ops

    try:
        from comfy.ldm.cogvideo.model import CogVideoXTransformer3DModel
    except ImportError:
        return False
    settings = COGVIDEOX | {"use_rotary_positional_embeddings": True, "dtype": torch.float32, "device": "cpu"}
    network = CogVideoXTransformer3DModel(**settings, operations=comfy.ops.disable_weight_init)
    save_file(random_weights(network), folder / "tiny-cogvideox.safetensors")
    return True


def graph(model: str, empty: dict[str, Any], positive: list[Any], negative: list[Any]) -> Prompt:
    """Our size and reference nodes in front of core's loader and KSampler."""

    def sampler(latent: str, seed: int) -> dict[str, Any]:
        links = {"model": ["model", 0], "positive": positive, "negative": negative, "latent_image": [latent, 0]}
        settings = {"steps": 3, "cfg": 3.0, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0}
        return node("KSampler", **links, **settings, seed=seed)

    reference = {"placement": "at position", "position_unit": "latent frame"}
    return {
        "size": node("OSoraSize", version="1.3", resolution="144p", length="custom", custom_frames=17),
        "words": node("OSoraPromptBuilder", prompt="a wave"),
        "model": node("UNETLoader", unet_name=f"tiny-{model}.safetensors", weight_dtype="default"),
        "empty": empty,
        "start": sampler("empty", 1),
        "cut": node("LatentCut", samples=["start", 0], dim="t", index=0, amount=1),
        "reference": node("OSoraReference", clip_latent=["empty", 0], latent=["cut", 0], **reference),
        "placed": node("OSoraPlaceReferences", references=["reference", 0], latent=["empty", 0], method="frame mask"),
        "made": sampler("placed", 2),
    }


def empty_video(kind: str) -> dict[str, Any]:
    """Core's empty latent at the size our node chose."""
    return node(kind, width=["size", 1], height=["size", 0], length=["size", 2], batch_size=1)


def check(made: Tensor, start: Tensor, channels: int) -> None:
    """A clip of the model's own that starts with the frame it was given."""
    assert made.shape == start.shape and made.shape[1] == channels
    assert bool(made.isfinite().all()) and float(made.std()) > 1e-3
    torch.testing.assert_close(made[:, :, :1], start[:, :, :1], atol=1e-3, rtol=1e-3)
    assert not torch.allclose(made[:, :, 1:], start[:, :, 1:], atol=1e-2)


@pytest.mark.server
def test_our_nodes_feed_cogvideox(
    server: TestServer, object_info: dict[str, Any], comfy: Path, tiny_models: Path
) -> None:
    if not save_cogvideox(tiny_models / "diffusion_models"):
        pytest.skip("this ComfyUI has no CogVideoX")
    text = {
        "clip": node("OSoraTextEncoderLoader", text_encoder_name="random-t5.safetensors"),
        "text": node("OSoraTextEncode", clip=["clip", 0], prompt=["words", 0], negative_prompt="calm"),
    }
    prompt = text | graph("cogvideox", empty_video("EmptyHunyuanLatentVideo"), ["text", 0], ["text", 1])
    found = saved_latents(server, object_info, prompt, "start", "made")
    check(found["made"], found["start"], 16)


RELEASED_NAMES = {
    r"^blocks\.": "transformer_blocks.", r"\.([qkv])\.": r".attn1.to_\1.", r"\.attn_out\.": ".attn1.to_out.0.",
    r"\.(norm_[qk])\.": r".attn1.\1.", r"\.ff_proj\.": ".ff.net.0.proj.", r"\.ff_out\.": ".ff.net.2.",
    r"^time_embedding_": "time_embedding.",
}  # fmt: skip
"""What CogVideoX's files call their weights, by the names ComfyUI has for them."""


def test_cogvideox_is_loaded_under_comfyuis_names_only(comfy: Path, tmp_path: Path) -> None:
    """README and the help page say so. Where this fails, ComfyUI has learned it and a template can be made."""
    import comfy.sd

    if not save_cogvideox(tmp_path):
        pytest.skip("this ComfyUI has no CogVideoX")
    weights = load_file(tmp_path / "tiny-cogvideox.safetensors")
    released = {}
    for name, weight in weights.items():
        for ours, theirs in RELEASED_NAMES.items():
            name = re.sub(ours, theirs, name)
        released[name] = weight
    assert len(released) == len(weights) and not set(released) <= set(weights)
    assert comfy.sd.load_diffusion_model_state_dict(released) is None
    assert comfy.sd.load_diffusion_model_state_dict(weights) is not None


def test_our_nodes_feed_ltx_video(executor: Executor, tiny_models: Path) -> None:
    import nodes

    random_ltx.save_network(tiny_models / "diffusion_models" / "tiny-ltx.safetensors")
    add_tiny_ltx_clip(tiny_models)
    info = {name: {"input": kind.INPUT_TYPES()} for name, kind in nodes.NODE_CLASS_MAPPINGS.items() if "OSora" in name}
    text = {
        "clip": node("TinyLTXClip"),
        "positive": node("CLIPTextEncode", clip=["clip", 0], text=["words", 0]),
        "negative": node("CLIPTextEncode", clip=["clip", 0], text="calm"),
    }
    prompt = text | graph("ltx", empty_video("EmptyLTXVLatentVideo"), ["positive", 0], ["negative", 0])
    ours = complete({name: each for name, each in prompt.items() if each["class_type"] in info}, info)
    start, made = executor.run(prompt | ours, ("start", 0), ("made", 0))
    check(made["samples"], start["samples"], 128)


def test_the_template_of_ltx_video_runs_made_small(executor: Executor, tiny_models: Path) -> None:
    """Everything but the text encoder is as shipped; the video keeps the given picture and goes on."""
    (template,) = WORKFLOWS.glob("*LTX-Video.json")
    prompt = made_small(api_of(template))
    add_tiny_ltx_clip(tiny_models)
    by_kind = {each["class_type"]: key for key, each in prompt.items()}
    (tiny_models / "checkpoints").mkdir(exist_ok=True)
    random_ltx.save_checkpoint(
        tiny_models / "checkpoints" / prompt[by_kind["CheckpointLoaderSimple"]]["inputs"]["ckpt_name"]
    )
    prompt[by_kind["CLIPLoader"]] = node("TinyLTXClip")
    picture = prompt[by_kind["LoadImage"]]
    picture |= node("EmptyImage", width=96, height=64, batch_size=1, color=0x3060C0)
    asked = [
        (by_kind[kind], slot) for kind, slot in (("VAEDecode", 0), ("SamplerCustom", 0), ("OSoraPlaceReferences", 0))
    ]
    frames, made, given = executor.run(prompt, *asked)
    assert frames.shape == (17, 64, 64, 3) and bool(frames.isfinite().all()) and float(frames.std()) > 0
    torch.testing.assert_close(made["samples"][:, :, :1], given["samples"][:, :, :1], atol=1e-3, rtol=1e-3)
    assert float(made["samples"][:, :, 1:].std()) > 1e-3
    assert given["noise_mask"].unique().tolist() == [0, 1]


def add_tiny_ltx_clip(tiny_models: Path) -> None:
    """A node TinyLTXClip. LTX-Video needs the conditioning of its own CLIP, whose loader only takes the full T5."""
    import nodes

    clip = ltx_clip(tiny_models / "text_encoders" / "random-t5.safetensors")

    class TinyLTXClip:
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})
        RETURN_TYPES, FUNCTION, CATEGORY = ("CLIP",), "load", "test"

        def load(self) -> tuple[Any]:
            return (clip,)

    nodes.NODE_CLASS_MAPPINGS["TinyLTXClip"] = TinyLTXClip


def ltx_clip(path: Path) -> Any:
    """LTX-Video's own CLIP around the tiny T5."""
    import comfy.sd
    import comfy.supported_models_base
    import comfy.text_encoders.lt
    import comfy.text_encoders.sd3_clip

    from opensora.opensora_models.text.t5_config import t5_config

    weights = load_file(path)
    config = t5_config({name: tuple(tensor.shape) for name, tensor in weights.items()}, path.name)
    kind = comfy.text_encoders.lt.ltxv_te(**comfy.text_encoders.sd3_clip.t5_xxl_detect(weights))
    target = comfy.supported_models_base.ClipTarget(comfy.text_encoders.lt.LTXVT5Tokenizer, kind)
    options = {"t5xxl_model_config": config.as_options()}
    return comfy.sd.CLIP(target, parameters=1, state_dict=[weights], model_options=options)
