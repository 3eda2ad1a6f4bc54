"""The autoencoders of Open-Sora 2.0 in ComfyUI: core's nodes and ours, names, settings, guards, memory."""

from __future__ import annotations

from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from support import random_vaes
from support.comfyui import Executor, NodeError
from support.graphs import Prompt, node
from support.saving import saved

pytestmark = pytest.mark.comfy

KINDS = {"v2.0": ("2.0", 9, 9, 3), "v2.0-hc": ("2.0 high compression", 8, 8, 2)}
"""By the name of the tiny file: release, frames that go in and come out, and latent frames."""
CLOSE = {"atol": 1e-4, "rtol": 0.0}


def loaded(kind: str, frames: int, **options: Any) -> Prompt:
    """A VAE, a clip of 64 x 32 pixels, and its latents by core's node."""
    name = f"random-vae-{kind}.safetensors"
    return {
        "vae": node(
            "OSoraVAELoader", vae_name=name, spatial_vae="none", dtype="fp32", temporal_overlap=True, **options
        ),
        "clip": node("EmptyImage", width=64, height=32, batch_size=frames, color=0x30A0E0),
        "encoded": node("VAEEncode", pixels=["clip", 0], vae=["vae", 0]),
    }


def decode(kind: str, **inputs: Any) -> dict[str, Any]:
    return node(kind, samples=["encoded", 0], vae=["vae", 0], **inputs)


def streamed(**changes: Any) -> dict[str, Any]:
    inputs = {"tile_size": "auto", "filename_prefix": "latents/v2", "num_frames": 0, "save_latent": False}
    return decode("OSoraDecode", **(inputs | changes))


def load(path: Path, **options: Any) -> Any:
    from opensora.opensora_models.native.vae.vae import load_vae

    return load_vae(path, dtype=torch.float32, **options)


def file_of(models: Path, kind: str) -> Path:
    return models / "vae" / f"random-vae-{kind}.safetensors"


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


# -- Nodes -----------------------------------------------------------------------------------------------------------


@pytest.mark.compat
@pytest.mark.parametrize("kind", KINDS)
def test_core_nodes_and_ours_agree(kind: str, executor: Executor) -> None:
    release, frames, back, latents = KINDS[kind]
    prompt = loaded(kind, frames) | {
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
    vae, encoded, tiled, ours, core, *others = executor.run(
        prompt, ("vae", 0), ("encoded", 0), ("core encode tiled", 0), ("our encode", 0), *((name, 0) for name in names)
    )
    network = vae.network
    assert (network.version, network.release.id) == (release, release)
    assert core.shape == (back, 32, 64, 3) and core.std() > 0.001
    for images in others:
        torch.testing.assert_close(images, core, **CLOSE)
    space = network.space_factor
    assert encoded["samples"].shape == (1, network.latent_channels, latents, 32 // space, 64 // space)
    for other in (tiled, ours):
        torch.testing.assert_close(other["samples"], encoded["samples"], **CLOSE)
    assert ours["opensora_release"] == release


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_they_compute_what_the_plain_networks_do(kind: str, comfy: Path, tiny_models: Path) -> None:
    from opensora.opensora_models.checkpoint.opening import open_checkpoint
    from opensora.opensora_models.vae.recognition import plain_network, recognise

    path = file_of(tiny_models, kind)
    plain, vae = plain_network(recognise(open_checkpoint(path))).float(), load(path)
    latents = noise(1, plain.latent_channels, 3, 2, 3)
    images = vae.decode(latents)
    torch.testing.assert_close(images[0].movedim(-1, 0), (plain.decode(latents)[0] + 1).div(2).clamp(0, 1), **CLOSE)
    pixels = torch.rand(plain.frames_of(3), 64, 96, 3, generator=torch.Generator().manual_seed(1))
    encoded = plain.encode(pixels.movedim(-1, 0)[None] * 2 - 1)
    torch.testing.assert_close(vae.encode(pixels), encoded, **CLOSE)


@pytest.mark.parametrize("kind", KINDS)
def test_what_core_asks_of_a_vae(kind: str, comfy: Path, tiny_models: Path) -> None:
    vae = load(file_of(tiny_models, kind))
    _, frames, back, latents = KINDS[kind]
    space = {"v2.0": 8, "v2.0-hc": 32}[kind]
    assert (vae.downscale_ratio[0](frames), vae.upscale_ratio[0](latents)) == (latents, back)
    assert vae.upscale_ratio[0](1) == vae.downscale_ratio[0](1) == 1
    assert vae.spacial_compression_decode() == vae.spacial_compression_encode() == space
    assert vae.temporal_compression_decode() == 4
    assert vae.latent_channels == {"v2.0": 16, "v2.0-hc": 128}[kind] and vae.latent_dim == 3
    function, arguments = vae.patcher.cached_patcher_init
    assert type(function(*arguments).model) is type(vae.network)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_partly_offloaded_weights_give_the_same(kind: str, comfy: Path, tiny_models: Path) -> None:
    vae = load(file_of(tiny_models, kind))
    latents = noise(1, vae.latent_channels, 3, 2, 2)
    expected = vae.decode(latents)
    for module in vae.network.modules():
        if hasattr(module, "comfy_cast_weights"):
            module.comfy_cast_weights = True
            module.half()
    with vae.using(vae.tile_plan(16, 16)):
        torch.testing.assert_close(vae.decode(latents), expected, atol=2e-3, rtol=0.0)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_half_precision(kind: str, comfy: Path, tiny_models: Path) -> None:
    from opensora.opensora_models.native.vae.vae import load_vae

    path = file_of(tiny_models, kind)
    exact, half = load(path), load_vae(path, dtype=torch.bfloat16)
    latents = noise(1, exact.latent_channels, 2, 2, 2)
    difference = (half.decode(latents) - exact.decode(latents)).abs()
    assert half.vae_dtype == torch.bfloat16 and difference.mean() < 0.02


# -- Names and settings ----------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_three_sets_of_names_are_one_model(comfy: Path, tiny_models: Path, tmp_path: Path) -> None:
    weights = load_file(file_of(tiny_models, "v2.0"))
    latents = noise(1, 16, 2, 2, 3)
    expected = load(file_of(tiny_models, "v2.0")).decode(latents)
    for name, renamed in {"core": random_vaes.core_names, "old": random_vaes.old_names}.items():
        save_file(
            {key: value.contiguous() for key, value in renamed(weights).items()}, tmp_path / f"{name}.safetensors"
        )
        assert torch.equal(load(tmp_path / f"{name}.safetensors").decode(latents), expected)


@pytest.mark.parametrize("kind", KINDS)
@torch.inference_mode()
def test_a_saved_vae_is_the_same_with_its_choices(kind: str, executor: Executor) -> None:
    import comfy.sd

    options = {"tiling": "one piece", "scaling_factor": "0.493"} if kind == "v2.0-hc" else {"tiling": "temporal too"}
    (vae,) = executor.run(loaded(kind, 1, **options), ("vae", 0))
    path = saved("VAESave", f"vae/{kind}", vae=vae)
    again = load(path)
    assert again.network.tiling == vae.network.tiling and again.configs == vae.configs
    latents = noise(1, vae.latent_channels, 1, 1, 1)
    assert torch.equal(again.decode(latents), vae.decode(latents))
    core = comfy.sd.VAE(sd=load_file(path))
    assert type(core) is type(again) and core.network.tiling == again.network.tiling


def test_cores_loader_keeps_its_class_for_hunyuanvideos_vae(comfy: Path, tiny_models: Path) -> None:
    """The released file is HunyuanVideo's; core has a class for it, of one width. Narrower ones are ours."""
    import comfy.sd

    from opensora.opensora_models.native.core.parts import CORES_WIDTH, HUNYUAN_IN, vae_recipe

    narrow = load_file(file_of(tiny_models, "v2.0"))
    released = narrow | {HUNYUAN_IN: torch.zeros(CORES_WIDTH, 3, 3, 3, 3)}
    for names in (dict, random_vaes.core_names):
        assert vae_recipe(names(released), None) is None
        recipe = vae_recipe(names(narrow), None)
        assert recipe is not None and recipe.version == "2.0"
    core = comfy.sd.VAE(sd=load_file(file_of(tiny_models, "v2.0-hc")))
    assert core.network.version == "2.0 high compression"


@torch.inference_mode()
def test_scaling_factor_of_the_high_compression_vae(comfy: Path, tiny_models: Path) -> None:
    path = file_of(tiny_models, "v2.0-hc")
    one, trained = load(path), load(path, scale=0.493)
    latents = noise(1, 128, 1, 1, 1)
    torch.testing.assert_close(trained.decode(latents / 0.493), one.decode(latents), **CLOSE)
    image = torch.rand(1, 32, 32, 3, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(trained.encode(image) * 0.493, one.encode(image), **CLOSE)


@torch.inference_mode()
def test_tilings(comfy: Path, tiny_models: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = file_of(tiny_models, "v2.0")
    released, whole, both = (load(path, tiling=name) for name in ("as released", "one piece", "temporal too"))
    assert [(vae.network.tiling.spatial, vae.network.tiling.temporal) for vae in (released, whole, both)] == [
        (True, False), (False, False), (True, True),
    ]  # fmt: skip
    assert both.network.decode_layout((30, 8, 8)).parts == 3
    load(path.with_name("random-vae-v1.3.safetensors"), tiling="one piece", scale=1.0)
    assert "has no use for tiling 'one piece'" in caplog.text and "has no use for scaling_factor 1" in caplog.text


# -- What is refused and told ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ["1.2", "1.3", "2.0-hc"])
def test_latents_of_another_release_are_refused_by_channels_and_told_by_their_word(
    version: str, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    """A word may be another sampler's, which copied it along; the VAE is believed."""
    told = node("OSoraEncode", images=["clip", 0], vae=["vae", 0], tile_size="auto", posterior="mode", seed=0)
    prompt = loaded("v2.0", 9) | {"told": told, "other": loaded(f"v{version}", 1)["vae"], "images": streamed()}
    prompt["images"]["inputs"] |= {"vae": ["other", 0], "samples": ["told", 0]}
    title = {"1.2": "1.2", "1.3": "1.3", "2.0-hc": "2.0 high compression"}[version]
    if version == "1.3":
        executor.run(prompt, ("images", 0))
        assert "say that they are Open-Sora 2.0's and are decoded as Open-Sora 1.3's" in caplog.text
        return
    for samples in ("told", "encoded"):
        prompt["images"]["inputs"]["samples"] = [samples, 0]
        with pytest.raises(
            NodeError, match=rf"16 channels as Open-Sora 1.3 has them \(2.0 as well\), the Open-Sora {title} VAE"
        ):
            executor.run(prompt, ("images", 0))


@pytest.mark.parametrize(
    ("kind", "frames", "num_frames", "sentence"),
    [("v2.0", 9, 10, "nearest good value is 9"), ("v2.0-hc", 8, 7, "nearest good value is 8"),
     ("v2.0-hc", 9, 0, "1 frame or a multiple of 4, 9 were given; the nearest good value is 8")],
)  # fmt: skip
def test_impossible_lengths_are_refused(
    kind: str, frames: int, num_frames: int, sentence: str, executor: Executor
) -> None:
    with pytest.raises(NodeError, match=sentence):
        executor.run(loaded(kind, frames) | {"images": streamed(num_frames=num_frames)}, ("images", 0))


def test_frames_that_do_not_come_back_are_told(executor: Executor, caplog: pytest.LogCaptureFixture) -> None:
    latent, images = executor.run(loaded("v2.0", 11) | {"images": streamed()}, ("encoded", 0), ("images", 0))
    assert latent["samples"].shape[2] == 3 and len(images) == 9
    assert "11 frames become 3 latent frames of Open-Sora 2.0, which stand for 9: the last 2 do not come" in caplog.text


@torch.inference_mode()
def test_lost_frames_of_the_high_compression_vae_are_told(
    comfy: Path, tiny_models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from opensora.opensora_models.native.vae.decoding import decode_images

    vae = load(file_of(tiny_models, "v2.0-hc"))
    latents = noise(1, 128, 13, 1, 1)
    assert len(decode_images(vae, latents, 52, "auto")) == vae.decode(latents).shape[1] == 49
    assert "13 latent frames of Open-Sora 2.0 high compression decode to 49 frames, 3 fewer than usual" in caplog.text
    assert not any(vae.network.lost_frames(count) for count in (12, 14, 32))
    assert all(vae.network.lost_frames(count) == 3 for count in (19, 25, 31))
    with pytest.raises(ValueError, match="nearest good value is 52"):
        decode_images(vae, latents, 49, "auto")


@torch.inference_mode()
def test_numbers_that_are_none_are_refused(comfy: Path, tiny_models: Path) -> None:
    from opensora.opensora_models.native.vae.decoding import decode_images

    for kind in KINDS:
        vae = load(file_of(tiny_models, kind))
        latents = torch.full((1, vae.latent_channels, 1, 1, 1), float("nan"))
        for work in (vae.decode, lambda latents: decode_images(vae, latents, None, "auto")):  # noqa: B023
            with pytest.raises(ValueError, match="not numbers"):
                work(latents)


FOREIGN = {
    "HunyuanVideo 1.5": {"encoder.conv_in.conv.weight": (8, 3, 3, 3, 3), "encoder.down.0.block.0.norm1.gamma": (8, 1),
                         "decoder.conv_in.conv.weight": (8, 32, 3, 3, 3), "decoder.up.0.block.0.norm1.gamma": (8, 1)},
    "Wan": {"encoder.conv1.weight": (8, 3, 3, 3, 3), "decoder.conv1.weight": (8, 16, 3, 3, 3),
            "decoder.middle.0.residual.0.gamma": (8, 1, 1, 1)},
    "CogVideoX": {"encoder.conv_in.conv.weight": (8, 3, 3, 3, 3), "decoder.conv_in.conv.weight": (8, 16, 3, 3, 3),
                  "decoder.mid_block.resnets.0.norm1.norm_layer.weight": (8,), "decoder.up_blocks.0.x": (1,)},
    "LTX-Video": {"encoder.conv_in.conv.weight": (8, 48, 3, 3, 3), "decoder.up_blocks.0.res_blocks.0.conv1.conv.weight":
                  (8, 8, 3, 3, 3)},
    "Flux": {"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_in.weight": (8, 16, 3, 3)},
}  # fmt: skip


@pytest.mark.parametrize("model", FOREIGN)
def test_vaes_of_other_models_are_named(model: str, comfy: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({name: torch.zeros(shape) for name, shape in FOREIGN[model].items()}, path)
    with pytest.raises(ValueError, match=f"looks like an? {model} (video|image)? ?VAE") as refusal:
        load(path)
    assert "expected a video VAE of Open-Sora 1.2, 1.3 or 2.0." in str(refusal.value)
    if model == "Flux":
        assert "loaded with ComfyUI's Load VAE" in str(refusal.value)


# -- Memory ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_memory_told_to_core_does_not_grow_with_the_size_of_the_picture(
    kind: str, comfy: Path, tiny_models: Path
) -> None:
    """Beside the tiles only the frames they are joined to."""
    vae = load(file_of(tiny_models, kind))
    side = 256 // vae.network.space_factor
    frames = vae.network.tiling.frames // 4
    tile = vae.memory_used_decode((1, vae.latent_channels, frames, side, side), torch.float32)
    large = vae.memory_used_decode((1, vae.latent_channels, frames, 3 * side, 4 * side), torch.float32)
    result = 4 * 3 * vae.network.frames_of(frames) * (3 * 256) * (4 * 256)
    assert tile < large < tile + 2 * result
    if kind == "v2.0-hc":
        longer = vae.memory_used_decode((1, vae.latent_channels, 9 * frames, side, side), torch.float32)
        assert longer < 1.2 * tile


@torch.inference_mode()
def test_a_need_that_exceeds_the_memory_is_told_before(
    comfy: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from opensora.opensora_models.native.vae.decoding import decode_images

    vae = load(file_of(tiny_models, "v2.0"))
    decode_images(vae, noise(1, 16, 2, 1, 1), None, "auto")
    assert "are free; " not in caplog.text
    monkeypatch.setattr(type(vae.patcher), "get_free_memory", lambda *_: 1000)
    decode_images(vae, noise(1, 16, 2, 1, 1), None, "auto")
    assert "0.0 GB are free; a tile holds all frames of the clip: choose tiling 'temporal too'" in caplog.text


# -- Continuing ------------------------------------------------------------------------------------------------------


class Cut(BaseException):
    """As sudden as a killed process."""


def video_frames(path: Path) -> list[bytes]:
    import av

    with av.open(str(path)) as file:
        return [frame.to_ndarray(format="rgb24").tobytes() for frame in file.decode(video=0)]


@pytest.mark.parametrize("tiling", ["as released", "temporal too"])
@torch.inference_mode()
def test_a_video_is_continued_at_the_first_missing_row_of_tiles(
    tiling: str, comfy: Path, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any
) -> None:
    """Also under another amount of free memory: the strips are those the video was begun with."""
    import folder_paths

    from opensora.opensora_models.native.outputs import OutputFile
    from opensora.opensora_models.native.vae import decoding, plans
    from opensora.opensora_models.vae.strips import Strips

    vae = load(file_of(tiny_models, "v2.0"), tiling=tiling)
    vae.network.tiling = replace(vae.network.tiling, size=32, frames=16)
    latents = noise(1, 16, 6, 7, 5)
    pieces = len(vae.network.decode_layout(latents.shape).pieces)
    done: list[int] = []
    plain = type(vae.network).decode_piece

    def piece(self: Any, *args: Any, limit: int, **options: Any) -> Tensor:
        if len(done) == limit:
            raise Cut
        done.append(1)
        return plain(self, *args, **options)

    def video(name: str, limit: int = 999) -> Path:
        monkeypatch.setattr(type(vae.network), "decode_piece", partialmethod(piece, limit=limit))
        monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / name))
        (tmp_path / name).mkdir(exist_ok=True)
        done.clear()
        kept = OutputFile(tmp_path / name, "clip.latent", "")
        return decoding.decode_to_video(vae, latents, None, 24.0, "mp4 (h264)", 5, "auto", kept, None).path

    whole = video_frames(video("whole"))
    assert len(whole) == 21 and len(done) == pieces
    with pytest.raises(Cut):
        video("cut", limit=5)
    monkeypatch.setattr(plans, "fitting", lambda *_, **__: Strips(1, lean=True))
    assert video_frames(video("cut")) == whole
    columns = len(vae.network.decode_layout(latents.shape).columns.takes)
    assert len(done) == pieces - 5 // columns * columns
    assert "some rows of tiles are there" in caplog.text
    assert not list((tmp_path / "cut" / "opensora_unfinished").iterdir())
