"""Whole graphs of Open-Sora 2.0 with references, from files to pictures, in ComfyUI's executor."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = [pytest.mark.comfy]

Prompt = dict[str, dict[str, Any]]
RELEASES = {"2.0": ("v2.0", 32, 45), "2.0 high compression": ("v2.0-hc", 64, 48)}
"""Ending of the tiny files, side in pixels, and frames of twelve latent frames."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def start(release: str) -> Prompt:
    """Files, prompts, an empty clip and a picture."""
    ending, side, frames = RELEASES[release]
    return {
        "model": node("OSoraModelLoader", model_name=f"random-{ending}.safetensors", weight_dtype="default",
                      rounding="accurate", window=0, spatial_rotary="automatic"),
        "vae": node("OSoraVAELoader", vae_name=f"random-vae-{ending}.safetensors", spatial_vae="none", dtype="default",
                    temporal_overlap=True),
        "clip": node("OSoraTextEncoderLoader", text_encoder_name="random-t5.safetensors", precision="default",
                     device="default", clip_l_name="random-clip-l.safetensors"),
        "text": node("OSoraTextEncode", clip=["clip", 0], prompt="a red kite", negative_prompt="", clean=True,
                     model=["model", 0]),
        "latent": node("OSoraEmptyLatent", version="1.2", height=side, width=side, frames=frames, batch_size=1,
                       model=["model", 0]),
        "image": node("EmptyImage", width=side + 10, height=side + 6, batch_size=1, color=0xFF8000),
        "film": node("EmptyImage", width=side, height=side, batch_size=40, color=0x0080FF),
    }  # fmt: skip


def reference(placement: str, picture: str = "image", **more: Any) -> dict[str, Any]:
    values = {
        "vae": ["vae", 0], "clip_latent": ["latent", 0], "image": [picture, 0], "placement": placement, "position": 0,
        "frames": 0, "strength": 0.0, "position_unit": "frame", "resize": "crop", "segment": 0,
    }  # fmt: skip
    return node("OSoraReference", **{**values, **more})


def sampler(kind: str = "OSoraSampler", **more: Any) -> dict[str, Any]:
    values = {
        "model": ["model", 0], "positive": ["text", 0], "negative": ["text", 1], "latent": ["latent", 0], "steps": 2,
        "cfg": 7.5, "seed": 1, "guidance": "automatic", "image_cfg": 3.0, "renoise_given": True,
    }  # fmt: skip
    return node(kind, **{**values, **more})


@pytest.mark.parametrize("release", RELEASES)
def test_first_and_last_picture_to_video(executor: Executor, release: str) -> None:
    _, side, frames = RELEASES[release]
    graph = start(release) | {
        "references": reference("first and last frame", second_image=["film", 0]),
        "sampled": sampler(references=["references", 0], denoise=1.0),
        "images": node("OSoraDecode", samples=["sampled", 0], vae=["vae", 0], tile_size="auto", num_frames=0,
                       filename_prefix="x", save_latent=False),
    }  # fmt: skip
    chain, done, report, images = executor.run(graph, ("references", 0), ("sampled", 0), ("sampled", 1), ("images", 0))
    first, last = chain.references
    assert torch.equal(done["samples"][0, :, 0], first.latent[:, 0]), "written back"
    assert torch.equal(done["samples"][0, :, -1], last.latent[:, 0])
    assert done["opensora_release"] == release and "experiment" not in report
    assert tuple(images.shape) == (frames, side, side, 3) and bool(images.isfinite().all())


@pytest.mark.parametrize("release", RELEASES)
def test_a_clip_goes_on_and_a_long_video_after_it(executor: Executor, release: str) -> None:
    graph = start(release) | {
        "references": reference("extend forwards", "film"),
        "sampled": sampler(references=["references", 0], denoise=1.0),
        "long": sampler("OSoraLongVideo", references=["references", 0], segments=2, overlap=1, overlap_strength=0.0,
                        drift_control=0.0, seeds="new for every segment", method="automatic", resume=False,
                        vae=["vae", 0]),
    }  # fmt: skip
    chain, done, report, whole, _ = executor.run(
        graph, ("references", 0), ("sampled", 0), ("sampled", 1), ("long", 0), ("long", 1)
    )
    given = chain.references[0].latent
    count = {"2.0": 9, "2.0 high compression": 8}[release]
    assert given.shape[1] == count and f"fills latent frames 0 to {count - 1}" in report
    assert not torch.equal(done["samples"][0, :, :count], given), "clips are not written back"
    assert whole["samples"].shape[2] == 23 and bool(whole["samples"].isfinite().all())
