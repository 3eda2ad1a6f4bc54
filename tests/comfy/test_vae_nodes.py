"""The VAE in ComfyUI: core's own nodes on it, our streaming nodes beside them, files, interruption, memory."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch import Tensor

from support.comfyui import Executor, NodeError

pytestmark = pytest.mark.comfy

Prompt = dict[str, dict[str, Any]]
VERSIONS = ("1.2", "1.3")
CLOSE = {"atol": 1e-4, "rtol": 0.0}


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def loaded(version: str, frames: int = 20, width: int = 48) -> Prompt:
    """A VAE, a clip, and its latents by core's node.

    The clip is grained: what a flat one becomes behind a norm is rounding, which depends on the order of sums.
    """
    name = f"random-vae-v{version}.safetensors"
    return {
        "vae": node("OSoraVAELoader", vae_name=name, spatial_vae="none", dtype="fp32", temporal_overlap=True),
        "flat": node("EmptyImage", width=width, height=32, batch_size=frames, color=0x30A0E0),
        "clip": node("ImageAddNoise", image=["flat", 0], seed=0, strength=0.2),
        "encoded": node("VAEEncode", pixels=["clip", 0], vae=["vae", 0]),
    }


def decode(kind: str, **inputs: Any) -> dict[str, Any]:
    return node(kind, **{"samples": ["encoded", 0], "vae": ["vae", 0], **inputs})


def streamed(**changes: Any) -> dict[str, Any]:
    inputs = {"tile_size": "auto", "filename_prefix": "latents/test", "num_frames": 0, "save_latent": False}
    return decode("OSoraDecode", **(inputs | changes))


def to_video(**changes: Any) -> dict[str, Any]:
    inputs = {"tile_size": "auto", "filename_prefix": "video/test", "num_frames": 0}
    inputs |= {"frame_rate": 12.5, "format": "mp4 (h264)", "quality": 5}
    return decode("OSoraDecodeToVideo", **(inputs | changes))


@pytest.mark.compat
@pytest.mark.parametrize("version", VERSIONS)
def test_core_nodes_and_ours_agree(version: str, executor: Executor) -> None:
    prompt = loaded(version) | {
        "core": decode("VAEDecode"),
        "core tiled": decode("VAEDecodeTiled", tile_size=64, overlap=16, temporal_size=8, temporal_overlap=4),
        "ours": streamed(),
        "small": streamed(tile_size="128"),
        "core encode tiled": node("VAEEncodeTiled", pixels=["clip", 0], vae=["vae", 0], tile_size=64, overlap=16,
                                  temporal_size=8, temporal_overlap=4),
        "our encode": node("OSoraEncode", images=["clip", 0], vae=["vae", 0], tile_size="128", posterior="mode",
                           seed=0),
    }  # fmt: skip
    names = ("core", "core tiled", "ours", "small")
    latents, tiled, ours, core, *others = executor.run(
        prompt, ("encoded", 0), ("core encode tiled", 0), ("our encode", 0), *((name, 0) for name in names)
    )
    frames = {"1.2": 18, "1.3": 17}[version]
    assert core.shape == (frames, 32, 48, 3) and core.std() > 0.01
    for images in others:
        torch.testing.assert_close(images, core, **CLOSE)
    assert latents["samples"].shape == (1, {"1.2": 4, "1.3": 16}[version], {"1.2": 6, "1.3": 6}[version], 4, 6)
    for other in (tiled, ours):
        torch.testing.assert_close(other["samples"], latents["samples"], **CLOSE)


@pytest.mark.parametrize("version", VERSIONS)
def test_inpaint_nodes_take_it(version: str, executor: Executor) -> None:
    prompt = loaded(version, frames=1) | {
        "mask": node("SolidMask", value=1.0, width=48, height=32),
        "inpaint": node("VAEEncodeForInpaint", pixels=["clip", 0], vae=["vae", 0], mask=["mask", 0], grow_mask_by=6),
        "masked": node("SetLatentNoiseMask", samples=["encoded", 0], mask=["mask", 0]),
    }
    inpaint, masked = executor.run(prompt, ("inpaint", 0), ("masked", 0))
    assert inpaint["samples"].shape[2:] == (1, 4, 6) and "noise_mask" in masked


def test_true_length_and_its_refusal(executor: Executor) -> None:
    prompt = loaded("1.2", frames=20) | {"images": streamed(num_frames=20)}
    (images,) = executor.run(prompt, ("images", 0))
    assert len(images) == 20
    with pytest.raises(NodeError, match="nearest good value is 21"):
        executor.run(loaded("1.2", frames=20) | {"images": streamed(num_frames=40)}, ("images", 0))


def test_a_refused_decode_leaves_no_unfinished_video(executor: Executor) -> None:
    import folder_paths

    store = Path(folder_paths.get_output_directory()) / "opensora_unfinished"
    refused = {"num_frames": loaded("1.2", frames=20) | {"video": to_video(num_frames=40)}}
    refused["latents"] = loaded("1.3", frames=1) | {"other": loaded("1.2")["vae"], "video": to_video(vae=["other", 0])}
    for name, prompt in refused.items():
        with pytest.raises(NodeError, match={"num_frames": "nearest good value is 21", "latents": "16 channels"}[name]):
            executor.run(prompt, ("video", 0))
        assert not list(store.glob("*")), name


def test_latents_of_another_version_are_refused(executor: Executor) -> None:
    prompt = loaded("1.3", frames=1) | {"other": loaded("1.2")["vae"]}
    for kind in (streamed(), decode("VAEDecode")):
        kind["inputs"]["vae"] = ["other", 0]
        with pytest.raises(NodeError, match="16 channels as Open-Sora 1.3 has them"):
            executor.run(prompt | {"images": kind}, ("images", 0))


def test_every_clip_of_a_batch_becomes_a_video(executor: Executor) -> None:
    prompt = loaded("1.3", frames=17)
    prompt |= {
        "dark": node("EmptyImage", width=48, height=32, batch_size=17, color=0x200000),
        "second": node("VAEEncode", pixels=["dark", 0], vae=["vae", 0]),
        "both": node("LatentBatch", samples1=["encoded", 0], samples2=["second", 0]),
        "images": streamed(samples=["both", 0]),
        "video": to_video(samples=["both", 0]),
    }
    images, files, latent = executor.run(prompt, ("images", 0), ("video", 0), ("video", 1))
    first, second = files.splitlines()
    assert first != second and Path(latent).is_file()
    for file, wanted in zip((first, second), images.chunk(2), strict=True):
        with av.open(file) as video:
            frames = torch.stack([torch.from_numpy(each.to_ndarray(format="rgb24")) for each in video.decode(video=0)])
        assert frames.shape == (17, 32, 48, 3)
        assert (frames / 255 - wanted).abs().mean() < 0.05


def test_a_video_file_of_the_same_frames(executor: Executor) -> None:
    prompt = loaded("1.3", frames=33) | {"images": streamed(), "video": to_video()}
    images, file, latent = executor.run(prompt, ("images", 0), ("video", 0), ("video", 1))
    with av.open(file) as video:
        assert video.streams.video[0].average_rate == pytest.approx(12.5)
        assert json.loads(video.metadata["prompt"])["video"]["class_type"] == "OSoraDecodeToVideo"
        frames = torch.stack([torch.from_numpy(f.to_ndarray(format="rgb24")) for f in video.decode(video=0)])
    assert frames.shape == images.shape
    # Chroma has half the resolution in the file, so only means of 8 x 8 blocks can agree.
    blocks = [x.float().movedim(-1, 1) for x in (frames / 255, images)]
    small = [torch.nn.functional.avg_pool2d(block, 8) for block in blocks]
    assert (small[0] - small[1]).abs().mean() < 0.03
    assert Path(latent).with_suffix(".mp4") == Path(file)
    assert not list((Path(file).parents[1] / "opensora_unfinished").glob("*"))


def test_what_is_left_of_other_latents_stays_and_is_told(executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
    import folder_paths

    store = Path(folder_paths.get_output_directory()) / "opensora_unfinished"
    other = store / "clip" / "settings" / "00000.mp4"
    other.parent.mkdir(parents=True)
    other.write_bytes(bytes(2_000_000))
    caplog.set_level("INFO", "opensora")
    try:
        executor.run(loaded("1.2", frames=1) | {"video": to_video(filename_prefix="video/other")}, ("video", 0))
        assert [path for path in store.rglob("*") if path.is_file()] == [other]
    finally:
        shutil.rmtree(store)
    assert "Unfinished videos of other latents: 1, 2 MB in" in caplog.text


def test_saved_latents_come_back(executor: Executor) -> None:
    prompt = loaded("1.2", frames=17) | {"video": to_video(frame_rate=30.0, filename_prefix="video/again")}
    latents, file = executor.run(prompt, ("encoded", 0), ("video", 1))
    prompt = {"load": node("OSoraLoadLatent", file=f"video/{Path(file).name} [output]")}
    again, frames, rate = executor.run(prompt, ("load", 0), ("load", 1), ("load", 2))
    assert torch.equal(again["samples"], latents["samples"].float()) and (frames, rate) == (0, 30.0)


def test_report_of_a_reconstruction(executor: Executor) -> None:
    prompt = loaded("1.2", frames=5) | {
        "images": streamed(),
        "report": node("OSoraReconstruction", original=["clip", 0], decoded=["images", 0]),
        "same": node("OSoraReconstruction", original=["clip", 0], decoded=["clip", 0]),
    }
    plot, ratio, text, perfect = executor.run(prompt, ("report", 0), ("report", 1), ("report", 3), ("same", 1))
    assert plot.ndim == 4 and plot.std() > 0.01 and 0 < ratio < 40 and perfect == 100.0
    assert text.count("\n") == 5


@pytest.fixture
def vae(comfy: Path, tiny_models: Path) -> Any:
    from opensora.opensora_models.native.vae.vae import load_vae

    return load_vae(tiny_models / "vae" / "random-vae-v1.2.safetensors", dtype=torch.float32)


@torch.inference_mode()
def test_running_out_of_memory_falls_back_exactly(vae: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = torch.randn(1, 4, 5, 4, 6, generator=torch.Generator().manual_seed(0))
    expected = vae.decode(latents)
    whole = type(vae.network).decode
    calls = []

    def first_fails(self: Any, *args: Any, **options: Any) -> Tensor:
        calls.append(self.plan)
        if len(calls) == 1:
            raise torch.OutOfMemoryError("pretended")
        return whole(self, *args, **options)

    monkeypatch.setattr(type(vae.network), "decode", first_fails)
    torch.testing.assert_close(vae.decode(latents), expected, **CLOSE)
    assert calls[0] is None and calls[1].lean and vae.network.plan is None


@torch.inference_mode()
def test_an_interrupt_stops_between_groups(vae: Any) -> None:
    import comfy.model_management as management

    from opensora.opensora_models.native.vae.decoding import decoded_groups

    groups = decoded_groups(vae, torch.zeros(1, 4, 15, 2, 2), None, None)
    assert next(groups).shape == (1, 17, 16, 16, 3)
    management.interrupt_current_processing(True)
    try:
        with pytest.raises(management.InterruptProcessingException):
            next(groups)
    finally:
        management.interrupt_current_processing(False)


@torch.inference_mode()
def test_nan_latents_and_foreign_vaes_are_refused(vae: Any) -> None:
    from opensora.opensora_models.native.vae.decoding import decode_images, encode_images, own_vae

    with pytest.raises(ValueError, match="not numbers"):
        decode_images(vae, torch.full((1, 4, 1, 2, 2), float("nan")), None, "auto")
    with pytest.raises(ValueError, match="at least 8 x 8"):
        encode_images(vae, torch.zeros(1, 4, 4, 3), "auto", None)
    with pytest.raises(ValueError, match="pictures hold values that are not numbers"):
        encode_images(vae, torch.full((1, 64, 64, 3), float("nan")), "auto", None)
    with pytest.raises(ValueError, match="was given a dict"):
        own_vae({})


@torch.inference_mode()
def test_what_core_asks_of_a_vae(vae: Any, tiny_models: Path) -> None:
    from opensora.opensora_models.native.vae.vae import load_vae_patcher

    assert [vae.downscale_ratio[0](f) for f in (1, 17, 18, 34, 51)] == [1, 5, 6, 10, 15]
    assert [vae.upscale_ratio[0](z) for z in (1, 5, 6, 10, 15)] == [1, 17, 18, 34, 51]
    assert vae.spacial_compression_decode() == vae.spacial_compression_encode() == 8
    assert "spatial_vae.module.encoder.conv_in.weight" in vae.get_sd()
    function, arguments = vae.patcher.cached_patcher_init
    assert function is load_vae_patcher and type(function(*arguments).model) is type(vae.network)
    assert vae.memory_used_decode((1, 4, 15, 60, 106), torch.bfloat16) == vae.memory_used_decode(
        (1, 4, 120, 60, 106), torch.bfloat16
    )
    assert vae.decode(torch.zeros(1, 4, 6, 2, 2), vae_options={"num_frames": 20}).shape[1] == 20


@torch.inference_mode()
def test_seeded_encoding(vae: Any) -> None:
    from opensora.opensora_models.native.vae.decoding import encode_images

    images = torch.rand(17, 16, 16, 3, generator=torch.Generator().manual_seed(0))
    once, again, other = (encode_images(vae, images, "auto", seed) for seed in (1, 1, 2))
    assert torch.equal(once, again) and not torch.allclose(once, other, atol=1e-3)


@torch.inference_mode()
def test_partly_offloaded_weights_give_the_same(vae: Any) -> None:
    """Core may leave layers on another device and cast them when used; the strips ask norms for their weights too."""
    latents = torch.randn(1, 4, 5, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = vae.decode(latents)
    for module in vae.network.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True
            module.half()
    with vae.using(vae.tile_plan(16, 16)):
        torch.testing.assert_close(vae.decode(latents), expected, atol=2e-3, rtol=0.0)
