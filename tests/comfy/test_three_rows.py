"""Three rows of Open-Sora 2.0 on its MODEL: how many are computed, and that this changes nothing; write-back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.releases.guidance import PRESETS, Guidance
from opensora.opensora_models.sampling.schedule import sigmas
from support.native import conditioning, load, model_file, randn, spy

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

FRAMES, SIDE = 12, 2
GIVEN: dict[str, tuple[list[int], list[int]]] = {
    "text": ([], []),
    "picture": ([0], [0]),
    "loop": ([0, FRAMES - 1], [0, FRAMES - 1]),
    "clip": (list(range(9)), []),
}
"""Given latent frames, and those of them that are pictures."""
PRESET = {
    "text": "2.0 text to video", "picture": "2.0 given pictures", "loop": "2.0 given pictures",
    "clip": "2.0 given clip",
}  # fmt: skip


@pytest.fixture(scope="module")
def native(comfy: Path, tiny_models: Path) -> SimpleNamespace:
    """The parts under test, and the tiny 2.0."""
    import comfy.samplers

    from opensora.opensora_models.native.model import written_back
    from opensora.opensora_models.native.sampling import guiders, samplers

    return SimpleNamespace(
        core=comfy.samplers, guiders=guiders, samplers=samplers, written_back=written_back,
        model=load(tiny_models, "2.0"), models=tiny_models,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def prompts(native: SimpleNamespace, kind: str, batch: int = 1) -> tuple[Any, Any, Tensor]:
    """Positive with given frames, negative, and the given latents."""
    latent = randn(batch, 16, FRAMES, SIDE, SIDE, seed=5)
    positive, (frames, pictures) = conditioning(6), GIVEN[kind]
    if frames:
        positive = native.guiders.with_given_frames(positive, latent, frames, pictures)
    return positive, conditioning(6, seed=2), latent


def run(native: SimpleNamespace, guider: Any, steps: int, batch: int = 1, levels: Tensor | None = None) -> Tensor:
    noise = randn(batch, 16, FRAMES, SIDE, SIDE, seed=1)
    return guider.sample(
        noise, torch.zeros_like(noise), native.core.sampler_object("euler"),
        sigmas(steps, 3.0) if levels is None else levels, disable_pbar=True, seed=1,
    )  # fmt: skip


def ours(native: SimpleNamespace, kind: str, settings: Guidance, batch: int = 1) -> Any:
    guider = native.guiders.OpenSoraGuider(native.model, settings)
    guider.set_conds(*prompts(native, kind, batch)[:2])
    return guider


def patched(native: SimpleNamespace, kind: str, settings: Guidance, model: Any = None) -> Any:
    guider = native.core.CFGGuider(native.guiders.patch_guidance(model or native.model, settings))
    guider.set_cfg(settings.text_scale)
    guider.set_conds(*prompts(native, kind)[:2])
    return guider


def every_row(native: SimpleNamespace, kind: str, settings: Guidance) -> Any:
    """A guider that computes all three rows in every step and mixes them by the formula of 2.0, written anew here."""
    positive, negative, _ = prompts(native, kind)
    given = native.guiders.given_values(positive)
    image = [[negative[0][0], {**negative[0][1], **given}]]
    nothing = [[negative[0][0], {**negative[0][1], **({**given, "opensora_given_drop": True} if given else {})}]]

    class Full(native.core.CFGGuider):
        step = -1

        def predict_noise(self, x: Tensor, sigma: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
            self.step += 1
            rows = [self.conds[name] for name in ("positive", "image", "negative")]
            c, u, w = native.core.calc_cond_batch(self.inner_model, rows, x, sigma, model_options)
            on = self.step < 10 or self.step % 2 == 0
            text, pull = (settings.text_scale, settings.image_scale) if on else (1.0, 1.0)
            along = torch.full((FRAMES,), pull)
            if settings.fade_image and on:
                top = pull + (1 - pull) * self.step / 50
                along = 1 + (top - 1) * torch.arange(FRAMES) / (FRAMES - 1)
            return w + along.reshape(1, 1, -1, 1, 1) * (u - w) + text * (c - u)

    guider = Full(native.model)
    guider.inner_set_conds({"positive": positive, "image": image, "negative": nothing})
    return guider


@pytest.mark.parametrize("way", [ours, patched], ids=["guider", "patch"])
@pytest.mark.parametrize(("kind", "rows"), [("text", 80), ("picture", 110), ("loop", 110), ("clip", 110)])
def test_only_rows_that_count_are_computed_and_nothing_changes(
    native: SimpleNamespace, kind: str, rows: int, way: Any
) -> None:
    settings = PRESETS[PRESET[kind]]
    with spy() as calls:
        few = run(native, way(native, kind, settings), 50)
    assert sum(call["x"].shape[0] for call in calls) == rows
    with spy() as calls:
        full = run(native, every_row(native, kind, settings), 50)
    assert sum(call["x"].shape[0] for call in calls) == 150
    torch.testing.assert_close(few, full, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("way", [ours, patched], ids=["guider", "patch"])
def test_the_row_without_references_sees_no_mask(native: SimpleNamespace, way: Any) -> None:
    with spy() as calls:
        run(native, way(native, "loop", PRESETS["2.0 given pictures"]), 1)
    shown = sorted(tuple(row[0, :, 0, 0].int().tolist()) for row in torch.cat([call["reference"] for call in calls]))
    given = tuple(int(frame in GIVEN["loop"][0]) for frame in range(FRAMES))
    assert shown == [(0,) * FRAMES, given, given]
    empty_rows = [row for call in calls for row in call["reference"] if not row[0].any()]
    assert len(empty_rows) == 1 and not empty_rows[0].any()


def ksampler(native: SimpleNamespace, kind: str, batch: int = 1) -> Any:
    """What core's KSampler makes of the MODEL as it is loaded."""
    guider = native.core.CFGGuider(native.model)
    guider.set_cfg(3.0)
    guider.set_conds(*prompts(native, kind, batch)[:2])
    return guider


def by_guider(native: SimpleNamespace, kind: str, batch: int = 1) -> Any:
    return ours(native, kind, PRESETS["2.0 given pictures"], batch)


@pytest.mark.parametrize("way", [ksampler, by_guider], ids=["KSampler", "guider"])
@pytest.mark.parametrize("kind", GIVEN)
def test_pictures_are_written_back_into_every_sample_and_clips_are_not(
    native: SimpleNamespace, way: Any, kind: str
) -> None:
    done = run(native, way(native, kind, 3), 2, batch=3)
    given = prompts(native, kind, 3)[2]
    equal = [bool((done[:, :, frame] == given[:, :, frame]).all()) for frame in range(FRAMES)]
    assert [frame for frame, same in enumerate(equal) if same] == GIVEN[kind][1]


def test_a_model_from_cores_own_loaders_writes_back_as_well(native: SimpleNamespace, tmp_path: Path) -> None:
    import comfy.sd
    from safetensors.torch import load_file, save_file

    from opensora.opensora_models.native.core import detection

    path = model_file(native.models, "2.0")
    checkpoint = tmp_path / "checkpoint.safetensors"
    save_file({f"model.diffusion_model.{name}": value for name, value in load_file(path).items()}, checkpoint)
    before = detection.is_registered()
    detection.register()
    try:
        loaded = [
            comfy.sd.load_diffusion_model(str(path)),
            comfy.sd.load_checkpoint_guess_config(str(checkpoint), output_vae=False, output_clip=False)[0],
        ]
    finally:
        if not before:
            detection.unregister()
    for model in loaded:
        guider = native.core.CFGGuider(model)
        guider.set_conds(*prompts(native, "picture")[:2])
        assert torch.equal(run(native, guider, 2)[:, :, 0], prompts(native, "picture")[2][:, :, 0])


@pytest.mark.parametrize("way", [ksampler, by_guider], ids=["KSampler", "guider"])
def test_the_denoised_latents_of_the_last_step_hold_the_pictures_too(native: SimpleNamespace, way: Any) -> None:
    """SamplerCustomAdvanced gives them as its second output."""
    told: list[Tensor] = []
    noise, given = randn(3, 16, FRAMES, SIDE, SIDE, seed=1), prompts(native, "loop", 3)[2]
    for levels, written in ((sigmas(2, 3.0), True), (sigmas(4, 3.0)[:3], False)):
        way(native, "loop", 3).sample(
            noise, torch.zeros_like(noise), native.core.sampler_object("euler"), levels,
            callback=lambda step, denoised, x, total: told.append(denoised), disable_pbar=True, seed=1,
        )  # fmt: skip
        denoised = native.model.model.process_latent_out(told[-1].cpu())
        equal = [torch.allclose(denoised[:, :, frame], given[:, :, frame], atol=1e-5) for frame in range(FRAMES)]
        assert [frame for frame, same in enumerate(equal) if same] == (GIVEN["loop"][1] if written else [])


def test_a_run_that_stops_early_is_not_written_back(native: SimpleNamespace) -> None:
    levels = sigmas(4, 3.0)
    done = run(native, ksampler(native, "picture"), 4, levels=levels[:3])
    assert not torch.equal(done[:, :, 0], prompts(native, "picture")[2][:, :, 0])


def test_only_the_ends_are_written_back(native: SimpleNamespace) -> None:
    positive, negative, latent = prompts(native, "picture")
    positive = native.guiders.with_given_frames(positive, latent, [0, 5], [0, 5])
    guider = native.core.CFGGuider(native.model)
    guider.set_conds(positive, negative)
    done = run(native, guider, 2)
    assert torch.equal(done[:, :, 0], latent[:, :, 0]) and not torch.equal(done[:, :, 5], latent[:, :, 5])


def test_a_batch_of_clips_shares_a_single_reference(native: SimpleNamespace) -> None:
    guider = native.core.CFGGuider(native.model)
    guider.set_conds(*prompts(native, "picture", 1)[:2])
    done = run(native, guider, 2, batch=2)
    assert torch.equal(done[:, :, 0], prompts(native, "picture", 1)[2][:, :, 0].expand(2, -1, -1, -1))


def test_13_keeps_what_it_made(native: SimpleNamespace) -> None:
    model = load(native.models, "1.3")
    latent = randn(1, 16, 5, 4, 4, seed=5)
    positive = native.guiders.with_given_frames(conditioning(6), latent, [0], [0])
    guider = native.guiders.OpenSoraGuider(model, PRESETS["1.3 given frames"])
    guider.set_conds(positive, conditioning(6, seed=2))
    done = guider.sample(
        randn(1, 16, 5, 4, 4), torch.zeros(1, 16, 5, 4, 4), native.samplers.sampler(), sigmas(2), disable_pbar=True,
        seed=1,
    )  # fmt: skip
    assert not torch.equal(done[:, :, 0], latent[:, :, 0])


def test_the_wrapper_is_put_once(native: SimpleNamespace) -> None:
    from comfy.patcher_extension import WrappersMP

    twice = native.guiders.patch_guidance(native.guiders.patch_guidance(native.model, Guidance()), Guidance())
    assert len(twice.get_wrappers(WrappersMP.OUTER_SAMPLE, native.written_back.KEY)) == 1
