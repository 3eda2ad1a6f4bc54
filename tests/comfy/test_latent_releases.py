"""A LATENT tells the release it was made for: who is believed, what our nodes write, what is told where re-read."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from support import native as tiny

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

EVERY = ("1.2", "1.3", "2.0", "2.0 high compression")
KEY = "opensora_release"


@pytest.fixture(scope="module")
def native(comfy: Path) -> SimpleNamespace:
    from opensora.opensora_models.native import messages
    from opensora.opensora_models.native.sampling import clips

    return SimpleNamespace(clips=clips, messages=messages)


@pytest.fixture(scope="module")
def models(comfy: Path, tiny_models: Path) -> dict[str, Any]:
    return {version: tiny.load(tiny_models, version) for version in EVERY}


def vae_of(version: str | None) -> Any:
    return SimpleNamespace(network=SimpleNamespace(version=version))


def believed(native: SimpleNamespace, latent: dict[str, Any], **known: Any) -> tuple[Any, list[str]]:
    with native.messages.speaking() as said:
        return native.clips.clip_size(latent, **known).version, said


def test_the_model_is_believed_before_the_vae_and_that_before_the_latent(
    native: SimpleNamespace, models: dict[str, Any]
) -> None:
    latent = {"samples": tiny.empty("2.0"), KEY: "2.0"}
    for model in ("1.3", "2.0"):
        for vae in (None, "1.3", "2.0", "a stranger's"):
            assert believed(native, latent, model=models[model], vae=vae_of(vae))[0] == model
    assert believed(native, latent, vae=vae_of("1.3")) == ("1.3", [])
    assert believed(native, latent, vae=object()) == ("2.0", [])
    assert believed(native, latent) == ("2.0", [])


@pytest.mark.parametrize("word", [None, 7, ["2.0"], "3.0", "1.2", "2.0 high compression"])
def test_a_word_that_cannot_be_leaves_the_channels(native: SimpleNamespace, word: Any) -> None:
    assert believed(native, {"samples": tiny.empty("1.2"), KEY: word}) == ("1.2", [])
    if word != "2.0 high compression":  # 128 channels are LTX-Video's as well
        assert believed(native, {"samples": tiny.empty("2.0 high compression"), KEY: word}) == (None, [])
    # As it was when 1.3 alone had 16 channels; told, since it is a guess; a picture is 1 frame in all.
    found, said = believed(native, {"samples": tiny.empty("1.3"), KEY: word})
    assert found == "1.3" and len(said) == 1 and "Open-Sora 2.0" in said[0]
    assert believed(native, {"samples": tiny.empty("1.3", frames=1)}) == ("1.3", [])
    assert believed(native, {"samples": torch.zeros(1, 12, 5, 8, 8)}) == (None, [])


@pytest.mark.parametrize(
    ("version", "size"),
    [("1.2", (64, 80, 34, 10)), ("1.3", (64, 80, 33, 10)), ("2.0", (64, 80, 37, 10)),
     ("2.0 high compression", (256, 320, 40, 10))],
)  # fmt: skip
def test_sizes_follow_the_release(
    native: SimpleNamespace, models: dict[str, Any], version: str, size: tuple[int, ...]
) -> None:
    latent = {"samples": tiny.empty(version, frames=10), KEY: version}
    for clip in (native.clips.clip_size(latent), native.clips.clip_size(latent, models[version])):
        assert (clip.height, clip.width, clip.frames, clip.latent_frames) == size
        assert clip.release.id == clip.version == clip.opensora_version == version


@pytest.mark.parametrize("model", EVERY)
@pytest.mark.parametrize("made", EVERY)
def test_an_empty_clip_of_another_release_is_told_with_both_meanings(
    native: SimpleNamespace, models: dict[str, Any], made: str, model: str
) -> None:
    latent = {"samples": tiny.empty(made, frames=10), KEY: made}
    with native.messages.speaking() as said:
        fitted = native.clips.latent_for(latent, models[model])
    assert fitted[KEY] == model and fitted["samples"].shape[1] == tiny.CHANNELS[model]
    if made == model:
        assert said == []
        return
    before, after = native.clips.clip_size(latent), native.clips.clip_size(fitted)
    (sentence,) = said
    assert f"made for Open-Sora {made}," in sentence and f"the model is Open-Sora {model}" in sentence
    for clip in (before, after):
        assert f"{clip.frames} frames of {clip.height}×{clip.width}" in sentence


def test_content_that_says_another_release_is_taken_as_the_models_and_told(
    native: SimpleNamespace, models: dict[str, Any]
) -> None:
    latent = {"samples": torch.ones_like(tiny.empty("1.3")), KEY: "1.3"}
    with native.messages.speaking() as said:
        fitted = native.clips.latent_for(latent, models["2.0"])
    assert fitted[KEY] == "2.0" and torch.equal(fitted["samples"], latent["samples"]) and latent[KEY] == "1.3"
    assert len(said) == 1 and "Open-Sora 1.3's" in said[0] and "Open-Sora 2.0's" in said[0]
    with pytest.raises(ValueError, match="encode or make the latent for 1.2"):
        native.clips.latent_for(latent, models["1.2"])


@pytest.mark.parametrize("model", ["1.3", "2.0"])
def test_our_sampler_writes_the_models_release(native: SimpleNamespace, models: dict[str, Any], model: str) -> None:
    stale = {"samples": tiny.empty("2.0"), KEY: "1.3" if model == "2.0" else "2.0"}
    text = tiny.conditioning()
    done = native.clips.sample_clip(models[model], text, text, stale, native.clips.ClipRun(1, 0, 1.0))
    assert done[KEY] == model and done["samples"].any()


def test_every_node_that_gives_a_latent_is_tried_here(comfy: Path) -> None:
    from opensora.nodes import NODES

    giving = {
        schema.node_id
        for schema in (node.define_schema() for node in NODES)
        if any(output.get_io_type() == "LATENT" for output in schema.outputs)
    }
    written = {"OSoraEmptyLatent", "OSoraEncode", "OSoraLoadLatent", "OSoraSampler", "OSoraLongVideo"}
    carried = {"OSoraPlaceReferences"}
    assert giving == written | carried


def test_long_videos_and_placed_references_keep_the_word(native: SimpleNamespace, models: dict[str, Any]) -> None:
    from opensora.opensora_models.native.sampling import long_video, reference_inputs

    text, stale = tiny.conditioning(), {"samples": tiny.empty("2.0"), KEY: "1.3"}
    chain = reference_inputs.ReferenceChain()
    video = long_video.LongVideo(2, 1, native.clips.ClipRun(1, 0, 1.0), resume=False)
    done, _ = long_video.sample_long_video(long_video.Inputs(models["2.0"], text, text, stale, chain), video)
    assert done[KEY] == "2.0" and done["samples"].shape[2] == 9
    clip = native.clips.clip_size(stale)
    assert reference_inputs.place_references(chain, stale, clip, text, text).latent[KEY] == "1.3"


def test_empty_latents_say_their_release(executor: Executor) -> None:
    inputs = {"height": 64, "width": 64, "frames": 17, "batch_size": 1}
    for version in ("1.2", "1.3"):
        prompt = {"1": {"class_type": "OSoraEmptyLatent", "inputs": {"version": version, **inputs}}}
        (latent,) = executor.run(prompt, ("1", 0))
        assert latent[KEY] == version


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_encoded_saved_and_loaded_latents_say_their_release(executor: Executor, version: str) -> None:
    prompt = {
        "vae": {"class_type": "OSoraVAELoader", "inputs": {"vae_name": f"random-vae-v{version}.safetensors",
                "spatial_vae": "none", "dtype": "default", "temporal_overlap": True}},
        "image": {"class_type": "EmptyImage", "inputs": {"width": 16, "height": 16, "batch_size": 1, "color": 0}},
        "encode": {"class_type": "OSoraEncode", "inputs": {"images": ["image", 0], "vae": ["vae", 0],
                   "tile_size": "auto", "posterior": "mode", "seed": 0}},
        "decode": {"class_type": "OSoraDecode", "inputs": {"samples": ["encode", 0], "vae": ["vae", 0],
                   "tile_size": "auto", "filename_prefix": f"latents/word-{version}", "num_frames": 0,
                   "save_latent": True}},
    }  # fmt: skip
    latent, _ = executor.run(prompt, ("encode", 0), ("decode", 0))
    assert latent[KEY] == version
    from opensora.opensora_models.native.files import LATENTS

    name = next(name for name in LATENTS.names() if f"word-{version}" in name)
    load = {"load": {"class_type": "OSoraLoadLatent", "inputs": {"file": name}}}
    (loaded,) = executor.run(load, ("load", 0))
    assert loaded[KEY] == version


def test_a_word_that_a_sampler_copied_does_not_stop_decoding(
    executor: Executor, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Made empty for 1.3, sampled by core with 2.0's MODEL, decoded with 2.0's VAE, saved and loaded again."""
    loading = {"rounding": "accurate", "window": 0, "spatial_rotary": "automatic", "weight_dtype": "default"}
    vae = {"spatial_vae": "none", "dtype": "default", "temporal_overlap": True}
    prompt = {
        "model": node("OSoraModelLoader", model_name="random-v2.0.safetensors", **loading),
        "vae": node("OSoraVAELoader", vae_name="random-vae-v2.0.safetensors", **vae),
        "empty": node("OSoraEmptyLatent", version="1.3", height=32, width=32, frames=17, batch_size=1),
        "text": node("OSoraTestText"),
        "done": node("KSampler", model=["model", 0], positive=["text", 0], negative=["text", 0],
                     latent_image=["empty", 0], seed=1, steps=1, cfg=1.0, sampler_name="euler", scheduler="simple",
                     denoise=1.0),
        "images": node("OSoraDecode", samples=["done", 0], vae=["vae", 0], tile_size="auto",
                       filename_prefix="latents/stale", num_frames=0, save_latent=True),
    }  # fmt: skip
    import nodes as core
    from opensora.opensora_models.native.files import LATENTS

    class Text:
        RETURN_TYPES, FUNCTION, CATEGORY = ("CONDITIONING",), "text", "test"

        @classmethod
        def INPUT_TYPES(cls) -> dict[str, Any]:
            return {"required": {}}

        def text(self) -> tuple[Any]:
            return (tiny.conditioning(),)

    monkeypatch.setitem(core.NODE_CLASS_MAPPINGS, "OSoraTestText", Text)
    latent, images = executor.run(prompt, ("done", 0), ("images", 0))
    assert latent[KEY] == "1.3" and images.shape[0] == 17
    assert "say that they are Open-Sora 1.3's and are decoded as Open-Sora 2.0's" in caplog.text
    name = next(name for name in LATENTS.names() if "stale" in name)
    (loaded,) = executor.run({"load": node("OSoraLoadLatent", file=name)}, ("load", 0))
    assert loaded[KEY] == "2.0"


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def test_latents_saved_before_they_said_anything_still_load(executor: Executor, tmp_path: Path) -> None:
    import folder_paths

    from opensora.opensora_models.vae.latent_file import save_latent

    name = "opensora-old-latents.latent"
    path = Path(folder_paths.get_input_directory()) / name
    for channels, notes in ((16, {}), (16, {"version": 7}), (16, {"version": "9"}), (4, {"version": "2.0"}), (128, {})):
        save_latent(path, torch.zeros(1, channels, 2, 2, 2), notes, None)
        (loaded,) = executor.run({"1": {"class_type": "OSoraLoadLatent", "inputs": {"file": name}}}, ("1", 0))
        assert KEY not in loaded
        path.unlink()


def test_a_further_release_is_a_description(native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Empty latents, sizes and times of a release nobody has heard of, from its entry alone."""
    from dataclasses import replace

    from opensora.nodes.size import EmptyLatent, Size
    from opensora.opensora_models.releases.known import RELEASES
    from opensora.opensora_models.releases.sizes import Computed

    known = RELEASES["2.0"]
    new = replace(
        known,
        id="9.9",
        title="Open-Sora 9.9",
        latents=replace(known.latents, channels=24, space=16, cell=32),
        sizes=Computed(32, ("512px",)),
        times=replace(known.times, shift=lambda frames, height, width: frames + height / width),
    )
    monkeypatch.setitem(RELEASES, "9.9", new)
    shape = {"resolution": "512px", "aspect_ratio": "1:2 (wide)", "length": "custom", "custom_frames": 9}
    height, width, frames, latents, summary = Size.execute.__wrapped__(Size, "9.9", **shape).args
    assert (height, width, frames, latents) == (352, 704, 9, 3) and "latent 24×3×22×44" in summary
    (latent,) = EmptyLatent.execute.__wrapped__(EmptyLatent, "9.9", height, width, frames, 1).args
    assert latent[KEY] == "9.9" and latent["downscale_ratio_spacial"] == 16
    clip = native.clips.clip_size(latent)
    assert (clip.height, clip.width, clip.frames) == (height, width, frames)
    assert native.clips.clip_shift(clip) == 9 + height / width
    with pytest.raises(ValueError, match="Open-Sora 9.9 makes clips of 1 or 5, 9, 13"):
        EmptyLatent.execute.__wrapped__(EmptyLatent, "9.9", height, width, 10, 1)
    assert EmptyLatent.define_schema().inputs[0].options[-1] == "9.9"
