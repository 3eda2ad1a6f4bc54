"""Text → image → video of 2.0 as one graph on the real server: core's Flux with our sizes and times, then ours."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import pytest

from support.random_flux import save_flux

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = [pytest.mark.server]

FRAMES, HEIGHT, WIDTH = 5, 192, 336


@pytest.fixture(scope="module")
def flux(comfy: Path, tiny_models: Path) -> None:
    """A tiny Flux and its tiny autoencoder, random, in the models folder."""
    save_flux(
        tiny_models / "diffusion_models" / "random-flux.safetensors", tiny_models / "vae" / "random-flux-ae.safetensors"
    )


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def size(version: str) -> dict[str, Any]:
    return node("OSoraSize", version=version, resolution="256px", aspect_ratio="9:16 (wide)", length="custom",
                custom_frames=FRAMES, **({"model": ["model", 0]} if version != STAGE else {}))  # fmt: skip


STAGE = "2.0 image stage"
PROMPT = "a red square moves right"


def graph() -> dict[str, Any]:
    """Everything from the words to the video file; MODEL tells the release, the menus of video nodes stay at 1.2."""
    encoders = {"clip_name1": "random-clip-l.safetensors", "clip_name2": "random-t5.safetensors"}
    loading = {"rounding": "accurate", "window": 0, "spatial_rotary": "automatic", "weight_dtype": "default"}
    picture = {
        "flux": node("UNETLoader", unet_name="random-flux.safetensors", weight_dtype="default"),
        "clip": node("DualCLIPLoader", **encoders, type="flux", device="default"),
        "words": node("CLIPTextEncodeFlux", clip=["clip", 0], clip_l=PROMPT, t5xxl=PROMPT, guidance=4.0),
        "image size": size(STAGE),
        "canvas": node("EmptySD3LatentImage", height=["image size", 0], width=["image size", 1], batch_size=1),
        "times": node("OSoraSigmas", model=["flux", 0], latent=["canvas", 0], steps=2, denoise=1.0, discrete=False,
                      transform_scale=1.0, count_frames=True, rounding="exact", stage=STAGE),
        "noise": node("RandomNoise", noise_seed=7),
        "guider": node("BasicGuider", model=["flux", 0], conditioning=["words", 0]),
        "euler": node("KSamplerSelect", sampler_name="euler"),
        "picture": node("SamplerCustomAdvanced", noise=["noise", 0], guider=["guider", 0], sampler=["euler", 0],
                        sigmas=["times", 0], latent_image=["canvas", 0]),
        "flux vae": node("VAELoader", vae_name="random-flux-ae.safetensors"),
        "image": node("VAEDecode", samples=["picture", 0], vae=["flux vae", 0]),
    }  # fmt: skip
    video = {
        "model": node("OSoraModelLoader", model_name="random-v2.0.safetensors", **loading),
        "vae": node("OSoraVAELoader", vae_name="random-vae-v2.0.safetensors", spatial_vae="none", dtype="default",
                    temporal_overlap=True),
        "text": node("OSoraTextEncoderLoader", text_encoder_name="random-t5.safetensors", precision="default",
                     device="default", clip_l_name="random-clip-l.safetensors"),
        "prompt": node("OSoraPromptBuilder", prompt=PROMPT, version="1.2", aesthetic="", motion="",
                       camera_motion="off", model=["model", 0]),
        "states": node("OSoraTextEncode", clip=["text", 0], prompt=["prompt", 0], negative_prompt="",
                       model=["model", 0], clean=True),
        "video size": size("1.2"),
        "empty": node("OSoraEmptyLatent", version="1.2", height=["video size", 0], width=["video size", 1],
                      frames=["video size", 2], batch_size=1, model=["model", 0]),
        "first": node("OSoraReference", vae=["vae", 0], clip_latent=["empty", 0], image=["image", 0],
                      placement="first frame", position=0, frames=0, strength=0.0, position_unit="frame",
                      resize="crop", segment=0),
        "clip made": node("OSoraSampler", model=["model", 0], positive=["states", 0], negative=["states", 1],
                          latent=["empty", 0], steps=2, cfg=7.5, seed=3, references=["first", 0], denoise=1.0,
                          guidance="automatic", image_cfg=3.0, renoise_given=True),
        "file": node("OSoraDecodeToVideo", samples=["clip made", 0], vae=["vae", 0], tile_size="auto",
                     filename_prefix="video/stage", num_frames=0, frame_rate=24.0, format="mp4 (h264)", quality=18),
    }  # fmt: skip
    return {**picture, **video}


def test_words_become_a_picture_and_the_picture_a_video(flux: None, server: TestServer, tmp_path: Path) -> None:
    run = server.watch(graph())
    (video,) = [item for item in run.files() if item["filename"].endswith(".mp4")]
    path = tmp_path / video["filename"]
    path.write_bytes(server.file(video))
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert [frame.shape for frame in frames] == [(HEIGHT, WIDTH, 3)] * FRAMES
