"""Open-Sora 2.0 as ComfyUI's MODEL: what reaches the network, and that nothing of 1.x's frame masks does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from support.native import conditioning, empty, load, model_file, randn, sample, spy

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

RELEASES = ("2.0", "2.0 high compression")
EVERY = pytest.mark.parametrize("release", RELEASES)


@pytest.fixture(scope="module")
def models(comfy: Path, tiny_models: Path) -> dict[str, Any]:
    return {release: load(tiny_models, release) for release in RELEASES}


@EVERY
def test_the_model_knows_its_release(models: dict[str, Any], release: str) -> None:
    from opensora.opensora_models.native.model.base_model import opensora_config, release_of
    from opensora.opensora_models.native.model.stdit3_model import null_text

    model = models[release]
    assert release_of(model).id == release and release_of(object()) is None
    assert opensora_config(model).channels == release_of(model).latents.channels
    assert null_text(model) is None, "its empty text is the encoded empty prompt"
    assert type(model.model).__name__ == "MMDiTModel"


@EVERY
def test_text_time_and_latents_reach_the_network(models: dict[str, Any], release: str) -> None:
    latent, noise = empty(release, 3, 6, 8), randn(1, models[release].model.latent_format.latent_channels, 3, 6, 8)
    positive = conditioning(9)
    with spy() as calls:
        done = sample(models[release], latent, positive, noise=noise, steps=2, cfg=1.0)
    assert done.shape == latent.shape and bool(done.isfinite().all())
    assert [round(float(call["timestep"]), 3) for call in calls] == [1.0, 0.5]
    assert torch.equal(calls[0]["x"], noise)
    assert torch.equal(calls[0]["text"], positive[0][0])
    assert torch.equal(calls[0]["pooled"], positive[0][1]["pooled_output"])
    assert calls[0]["reference"] is None


@EVERY
def test_core_reads_the_file_and_makes_the_same_model(models: dict[str, Any], tiny_models: Path, release: str) -> None:
    import comfy.sd

    from opensora.opensora_models.native.core import detection

    before = detection.is_registered()
    detection.register()
    try:
        with torch.inference_mode():
            core = comfy.sd.load_diffusion_model(str(model_file(tiny_models, release)))
    finally:
        if not before:
            detection.unregister()
    assert type(core.model).__name__ == "MMDiTModel" and core.model.release.id == release
    latent = empty(release, 2, 4, 4)
    assert torch.equal(sample(core, latent, steps=2), sample(models[release], latent, steps=2))


def given_of(model: Any, frames: int = 3, **more: Any) -> dict[str, Any]:
    """A conditioning's entries for references on the first latent frame."""
    latent = randn(1, model.model.latent_format.latent_channels, frames, 4, 4, seed=8)
    return {"opensora_given_latent": latent, "opensora_given_frames": [0], **more}


@EVERY
def test_references_reach_the_network_masked_and_scaled(models: dict[str, Any], release: str) -> None:
    model = models[release]
    given = given_of(model)
    rows = conditioning(5, **given), conditioning(5, seed=2, **given, opensora_given_drop=True)
    with spy() as calls:
        sample(model, empty(release, 3, 4, 4), *rows, steps=1, cfg=2.0)
    assert len(calls) == 1, "both rows in one call"
    dropped, shown = calls[0]["reference"]  # ComfyUI computes the negative first
    assert not dropped.any(), "mask included"
    assert torch.equal(shown[0, :, 0, 0], torch.tensor([1.0, 0.0, 0.0]))
    scaled = model.model.latent_format.process_in(given["opensora_given_latent"])[0]
    assert torch.equal(shown[1:, 0], scaled[:, 0]) and not shown[1:, 1:].any()


@EVERY
def test_no_reference_is_the_same_as_zeros(models: dict[str, Any], release: str) -> None:
    channels = models[release].model.latent_format.latent_channels
    zeros = {"opensora_given_latent": torch.zeros(1, channels, 2, 4, 4), "opensora_given_frames": []}
    latent = empty(release, 2, 4, 4)
    plain = sample(models[release], latent, conditioning(5), steps=2, cfg=1.0)
    torch.testing.assert_close(sample(models[release], latent, conditioning(5, **zeros), steps=2, cfg=1.0), plain)


def test_odd_latents_are_filled_up_to_patches(models: dict[str, Any]) -> None:
    with spy() as calls:
        done = sample(models["2.0"], empty("2.0", 2, 5, 7), steps=1)
    assert calls[0]["x"].shape[-2:] == (6, 8) and done.shape[-2:] == (5, 7)


@EVERY
def test_a_noise_mask_is_cores_inpainting(models: dict[str, Any], release: str) -> None:
    """Kept frames are as noisy as the others while the network sees them, and come out as they were."""
    latent = randn(1, models[release].model.latent_format.latent_channels, 3, 4, 4, seed=3)
    mask = torch.ones(1, 1, 3, 4, 4)
    mask[:, :, 0] = 0
    with spy() as calls:
        done = sample(models[release], latent, conditioning(5), noise=randn(*latent.shape), mask=mask, steps=2, cfg=1.0)
    inside = models[release].model.latent_format.process_in(latent)
    half = 0.5 * randn(*latent.shape) + 0.5 * inside
    torch.testing.assert_close(calls[1]["x"][:, :, 0], half[:, :, 0])
    assert not {"frame_mask", "given"} & set(calls[0])
    torch.testing.assert_close(done[:, :, 0], latent[:, :, 0])


BAD = {
    "no text": ([[None, {}]], "no text.*T5 encoder"),
    "another T5": ([[torch.zeros(1, 5, 32), {"pooled_output": torch.zeros(1, 16)}]], r"text of shape \[1, 5, 32\]"),
    "no CLIP-L": ([[torch.zeros(1, 5, 64), {"pooled_output": None}]], "no pooled text state.*CLIP-L"),
    "another CLIP": ([[torch.zeros(1, 5, 64), {"pooled_output": torch.zeros(1, 20)}]], r"shape \[1, 20\].*CLIP-L"),
    "frames outside": (conditioning(5, opensora_given_frames=[7]), r"\[7\] are not all among latent frames 0 to 1"),
    "another size": (
        conditioning(5, opensora_given_frames=[0], opensora_given_latent=torch.zeros(1, 16, 2, 8, 8)),
        "encode the references at the size",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_conditionings_that_do_not_fit_are_refused(models: dict[str, Any], name: str) -> None:
    positive, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        sample(models["2.0"], empty("2.0", 2, 4, 4), positive, positive, steps=1)


@EVERY
def test_latents_of_another_release_are_refused(models: dict[str, Any], release: str) -> None:
    space = {"2.0": 8, "2.0 high compression": 32}[release]
    with pytest.raises(ValueError, match=rf"height/{space}.*Empty Open-Sora Latent"):
        sample(models[release], torch.zeros(1, 7, 2, 4, 4), steps=1)


def test_text_of_another_length_is_told(models: dict[str, Any]) -> None:
    from opensora.opensora_models.native.messages import speaking

    with speaking() as said:
        sample(models["2.0"], empty("2.0", 2, 4, 4), conditioning(512), conditioning(512, seed=4), steps=1)
    assert not said
    with speaking() as said:
        sample(models["2.0"], empty("2.0", 2, 4, 4), conditioning(256), conditioning(512, seed=4), steps=1)
    assert len(said) == 1 and "256 tokens where Open-Sora 2.0 was trained with 512" in said[0]


def test_memory_is_told_to_comfyui(models: dict[str, Any]) -> None:
    from opensora.opensora_models.mmdit.memory import activation_bytes

    model, shape = models["2.0"].model, [2, 16, 5, 24, 42]
    assert model.memory_required(shape) == activation_bytes(model.opensora, shape, 512, 4, "cpu")
    shorter = model.memory_required(shape, cond_shapes={"text": [[1, 100, 64], [1, 20, 64]]})
    assert shorter == activation_bytes(model.opensora, shape, 100, 4, "cpu")
