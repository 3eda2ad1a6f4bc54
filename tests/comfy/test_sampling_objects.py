"""Sampler, guider, patches, schedule and shift as ComfyUI's own objects, with tiny weights, in this process."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.releases.guidance import PRESETS, Guidance

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

STEPS = 8


@pytest.fixture(scope="module")
def native(comfy: Path) -> SimpleNamespace:
    """The pack's ComfyUI side, imported once ComfyUI is there."""
    import comfy.patcher_extension
    import comfy.sample
    import comfy.samplers

    from opensora.opensora_models.native.model import loading as model_loading
    from opensora.opensora_models.native.sampling import clips, guiders, samplers
    from opensora.opensora_models.sampling import guidance

    return SimpleNamespace(
        clips=clips,
        core=comfy.samplers,
        guidance=guidance,
        guiders=guiders,
        load=model_loading.load_model,
        noise=comfy.sample.prepare_noise,
        samplers=samplers,
        wrappers=comfy.patcher_extension.WrappersMP,
    )


@pytest.fixture(scope="module")
def models(native: SimpleNamespace, tiny_models: Path) -> dict[str, Any]:
    return {
        version: native.load(tiny_models / "diffusion_models" / f"random-v{version}.safetensors")
        for version in ("1.2", "1.3")
    }


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def randn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def text(tokens: int, seed: int) -> list[list[Any]]:
    return [[randn(seed, 1, tokens, 64), {"pooled_output": None}]]


POSITIVE, NEGATIVE = 9, 6
"""Tokens of the two prompts; different on purpose."""


def clip_of(version: str, batch: int = 1, frames: int = 5) -> Tensor:
    return randn(0, batch, {"1.2": 4, "1.3": 16}[version], frames, 8, 8)


def mask_of(*ratios: float) -> Tensor:
    return torch.tensor(ratios, dtype=torch.float32).reshape(1, 1, -1, 1, 1)


class Bench:
    """One model with prompts, ready to be sampled in several ways."""

    def __init__(self, native: SimpleNamespace, model: Any, version: str, batch: int = 1, given: bool = False) -> None:
        self.native, self.model, self.latent = native, model, clip_of(version, batch)
        self.positive, self.negative = text(POSITIVE, 1), text(NEGATIVE, 2)
        if given:
            self.positive = native.guiders.with_given_frames(self.positive, clip_of(version, batch), [0])
        size = native.clips.clip_size({"samples": self.latent}, model)
        self.sigmas = native.clips.clip_sigmas(size, STEPS)

    def ours(self, settings: Any, model: Any = None, schedule: Tensor | None = None) -> Any:
        guider = self.native.guiders.OpenSoraGuider(model or self.model, settings, schedule)
        guider.set_conds(self.positive, self.negative)
        return guider

    def core(self, cfg: float, model: Any = None) -> Any:
        guider = self.native.core.CFGGuider(model or self.model)
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(cfg)
        return guider

    def run(
        self, guider: Any, sampler: Any = "ours", mask: Tensor | None = None, seed: int = 5, **options: Any
    ) -> Tensor:
        if sampler == "ours":
            sampler = self.native.samplers.sampler(renoise_given=options.pop("renoise_given", False))
        elif isinstance(sampler, str):
            sampler = self.native.core.sampler_object(sampler)
        latent = options.pop("latent", self.latent)
        noise = options.pop("noise", self.native.noise(latent, seed))
        sigmas = options.pop("sigmas", self.sigmas)
        # Some of ComfyUI's samplers write into the schedule they are given.
        return guider.sample(noise, latent, sampler, sigmas.clone(), denoise_mask=mask, seed=seed, **options)


@pytest.fixture
def bench(native: SimpleNamespace, models: dict[str, Any]) -> Any:
    return lambda version, **options: Bench(native, models[version], version, **options)


def close(a: Tensor, b: Tensor, tolerance: float = 2e-4) -> None:
    torch.testing.assert_close(a, b, atol=tolerance, rtol=1e-4)


def counting(native: SimpleNamespace, model: Any) -> tuple[Any, list[int]]:
    """A copy of ``model`` that notes how many rows each call of the network has."""
    rows: list[int] = []
    patched = model.clone()

    def note(executor: Any, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        rows.append(x.shape[0])
        return executor(x, *args, **kwargs)

    patched.add_wrapper(native.wrappers.DIFFUSION_MODEL, note)
    return patched, rows


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("mask", [None, mask_of(0, 0.5, 1, 1, 0.3), mask_of(1, 1, 1, 1, 1)])
def test_our_sampler_equals_cores_euler_masks_included(bench: Any, version: str, mask: Tensor | None) -> None:
    here = bench(version)
    settings = Guidance(text_scale=4.0)
    close(here.run(here.ours(settings), mask=mask), here.run(here.core(4.0), "euler", mask=mask))


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m", "uni_pc", "euler_ancestral", "lcm", "res_multistep"])
def test_kept_frames_come_out_right_with_every_core_sampler(bench: Any, sampler: str) -> None:
    here = bench("1.2")
    done = here.run(here.core(4.0), sampler, mask=mask_of(0, 1, 1, 1, 1))
    # uni_pc stops at sigma 0.001 and hands back what is left over there.
    close(done[:, :, 0], here.latent[:, :, 0], 2e-2 if sampler == "uni_pc" else 2e-4)
    assert (done[:, :, 1] - here.latent[:, :, 1]).abs().max() > 0.1


@pytest.mark.parametrize("sampler", ["euler", "heun", "dpmpp_2m"])
def test_our_guider_works_with_core_samplers(bench: Any, sampler: str) -> None:
    here = bench("1.2")
    settings = Guidance(text_scale=4.0)
    close(here.run(here.ours(settings), sampler), here.run(here.core(4.0), sampler))


@pytest.mark.parametrize("given", [False, True])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("oscillate_image", [False, True])
def test_the_patch_guides_like_the_guider(bench: Any, given: bool, cfg: float, oscillate_image: bool) -> None:
    here = bench("1.3", given=given)
    settings = Guidance(
        text_scale=cfg,
        image_scale=3.0,
        oscillate_text=True,
        oscillate_image=oscillate_image,
        force_steps=2,
        fade_image=True,
        flaw_fix=True,
    )
    patched = here.native.guiders.patch_guidance(here.model, settings)
    close(here.run(here.core(cfg, patched), "euler"), here.run(here.ours(settings)), 1e-3)


def test_without_image_guidance_the_patch_leaves_given_frames_to_cfg(bench: Any) -> None:
    here = bench("1.3", given=True)
    settings = Guidance(flaw_fix=False)
    patched = here.native.guiders.patch_guidance(here.model, settings)
    here.negative = here.native.guiders.with_given_frames(here.negative, here.latent, [0])
    assert torch.equal(here.run(here.core(3.0, patched), "euler"), here.run(here.core(3.0), "euler"))


@pytest.mark.parametrize(
    ("preset", "given", "needed", "full"),
    [
        ("1.3 text to video", False, 50, 60),
        ("1.3 given frames", True, 70, 90),
    ],
)
@pytest.mark.parametrize("patch", [False, True])
def test_released_settings_compute_only_the_rows_that_count(
    bench: Any, preset: str, given: bool, needed: int, full: int, patch: bool
) -> None:
    here = bench("1.3", given=given)
    settings = PRESETS[preset]
    model, rows = counting(here.native, here.model)
    if patch:
        guider = here.core(settings.text_scale, here.native.guiders.patch_guidance(model, settings))
    else:
        guider = here.ours(settings, model)
    sigmas = here.native.clips.clip_sigmas(here.native.clips.clip_size({"samples": here.latent}, model), 30)
    done = here.run(guider, "euler", sigmas=sigmas)
    assert sum(rows) == needed < full
    complete = _every_row(here, settings, sigmas, given)
    assert (done - complete).norm() / complete.norm() < 1e-3


def _every_row(here: Bench, settings: Any, sigmas: Tensor, given: bool) -> Tensor:
    """The same run with the published formula and no row left out."""
    guidance, model, core = here.native.guidance, here.ours(settings), here.native.core

    class Complete(here.native.guiders.OpenSoraGuider):
        def predict_noise(self, x, timestep, model_options=None, seed=None):
            step = guidance.step_of(float(timestep[0]), sigmas.tolist())
            scales = guidance.step_scales(settings, step, len(sigmas) - 1, float(timestep[0]), x.shape[2])
            names = ["positive", "image", "negative"] if given else ["positive", "negative"]
            rows = core.calc_cond_batch(self.inner_model, [self.conds[n] for n in names], x, timestep, model_options)
            if not given:
                mixed = rows[1] + scales.text * (rows[0] - rows[1])
                return guidance.rescale_to_prompt(x, timestep, mixed, rows[0])
            image = torch.tensor(scales.image * (x.shape[2] // len(scales.image))).reshape(1, 1, -1, 1, 1)
            return rows[2] + image * (rows[1] - rows[2]) + scales.text * (rows[0] - rows[1])

    guider = Complete(model.model_patcher, settings)
    guider.set_conds(here.positive, here.negative)
    return here.run(guider, "euler", sigmas=sigmas)


def test_given_frames_of_the_positive_reach_every_row_and_are_dropped_in_the_last(bench: Any) -> None:
    here = bench("1.3", given=True)
    guider = here.ours(PRESETS["1.3 given frames"])
    rows = guider.original_conds
    assert set(rows) == {"positive", "image", "negative"}
    assert [rows[name][0].get("opensora_given_drop", False) for name in ("positive", "image", "negative")] == [
        False,
        False,
        True,
    ]
    assert all(rows[name][0]["opensora_given_frames"] == [0] for name in rows)


def test_renoising_changes_given_frames_only_through_fresh_noise(bench: Any) -> None:
    here = bench("1.3", given=True)
    settings = PRESETS["1.3 given frames"]
    on, again, off = (here.run(here.ours(settings), renoise_given=flag) for flag in (True, True, False))
    assert torch.equal(on, again)
    assert not torch.allclose(on, off, atol=1e-3)


@pytest.mark.parametrize("given", [False, True])
def test_a_sample_of_a_batch_equals_the_sample_alone(bench: Any, given: bool) -> None:
    both, version = bench("1.3", batch=2, given=given), "1.3"
    settings = PRESETS["1.3 given frames" if given else "1.3 text to video"]
    noise = randn(7, 2, *both.latent.shape[1:])
    together = both.run(both.ours(settings), noise=noise, renoise_given=given)
    for index in range(2):
        alone = Bench(both.native, both.model, version)
        if given:
            latent = both.latent[index : index + 1]
            alone.positive = both.native.guiders.with_given_frames(text(POSITIVE, 1), latent, [0])
        done = alone.run(
            alone.ours(settings),
            noise=noise[index : index + 1],
            latent=both.latent[index : index + 1],
            renoise_given=given,
        )
        close(done[0], together[index], 2e-3)


def test_split_sigmas_with_a_mask_and_the_full_schedule_equal_one_run(bench: Any) -> None:
    here = bench("1.2")
    settings = Guidance(text_scale=4.0, oscillate_text=True, force_steps=2)
    mask = mask_of(0, 0.6, 1, 1, 0)
    whole = here.run(here.ours(settings), mask=mask)
    cut = 5
    first = here.run(here.ours(settings, schedule=here.sigmas), mask=mask, sigmas=here.sigmas[: cut + 1])
    second = here.run(
        here.ours(settings, schedule=here.sigmas),
        mask=mask,
        sigmas=here.sigmas[cut:],
        latent=first,
        noise=torch.zeros_like(first),
    )
    close(second, whole, 1e-3)


def test_without_the_full_schedule_the_second_part_counts_its_steps_from_zero(bench: Any) -> None:
    here = bench("1.2")
    settings = Guidance(text_scale=4.0, oscillate_text=True, force_steps=2)
    parts = [
        here.run(here.ours(settings, schedule=schedule), sigmas=here.sigmas[5:]) for schedule in (None, here.sigmas)
    ]
    assert not torch.allclose(*parts, atol=1e-2)


def test_the_schedule_is_the_same_by_node_by_name_and_by_cores_simple(bench: Any) -> None:
    here = bench("1.2")
    native = here.native
    native.samplers.register_scheduler()
    native.samplers.register_scheduler()
    assert native.core.KSampler.SCHEDULERS.count("opensora") == 1
    size = native.clips.clip_size({"samples": here.latent}, here.model)
    patched = native.samplers.patch_shift(here.model, native.clips.clip_shift(size))
    sampling = patched.get_model_object("model_sampling")
    exact = native.clips.clip_sigmas(size, 10)
    for name in ("opensora", "simple"):
        got = native.core.calculate_sigmas(sampling, name, 10)
        torch.testing.assert_close(got, exact, atol=3e-7, rtol=0)
    odd = native.core.calculate_sigmas(sampling, "opensora", 30)
    torch.testing.assert_close(odd, native.clips.clip_sigmas(size, 30), atol=3e-7, rtol=0)


def test_a_schedule_as_released_rounds_like_the_original(native: SimpleNamespace) -> None:
    """One frame of 166x221, whose shift is below 0.5: the original's times, recorded in tests/unit/test_schedule.py."""
    clip = native.clips.ClipSize(native.clips.RELEASES["1.2"], 166, 221, 1, 1)
    levels = native.clips.clip_sigmas(clip, 5, dtype=torch.bfloat16)
    times = torch.tensor([994.79, 596.88, 358.13, 198.96, 85.27, 0.0])
    torch.testing.assert_close(levels * 1000, times, atol=0.01, rtol=0)
    assert native.clips.clip_sigmas(clip, 5)[0] == 1.0


def test_denoise_takes_the_end_of_a_longer_schedule(bench: Any) -> None:
    here = bench("1.2")
    size = here.native.clips.clip_size({"samples": here.latent}, here.model)
    half = here.native.clips.clip_sigmas(size, 4, denoise=0.5)
    assert torch.equal(half, here.native.clips.clip_sigmas(size, 8)[-5:])
    assert half[0] < 1.0


def test_core_samplers_follow_the_shift_on_the_model(bench: Any) -> None:
    here = bench("1.2")
    native = here.native
    size = native.clips.clip_size({"samples": here.latent}, here.model)
    patched = native.samplers.patch_shift(here.model, native.clips.clip_shift(size))
    sampler = native.core.KSampler(patched, 4, "cpu", "euler", "opensora", 1.0, model_options=patched.model_options)
    done = sampler.sample(native.noise(here.latent, 5), here.positive, here.negative, 4.0, here.latent, seed=5)
    settings = Guidance(text_scale=4.0)
    close(done, here.run(here.ours(settings), sigmas=native.clips.clip_sigmas(size, 4)))


def test_every_step_reports_progress_and_can_be_interrupted(bench: Any) -> None:
    here = bench("1.2")
    seen: list[int] = []

    def stop(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        seen.append(step)
        assert total == STEPS and denoised.shape == x.shape == here.latent.shape
        if step == 3:
            raise KeyboardInterrupt

    settings = Guidance(text_scale=4.0)
    with pytest.raises(KeyboardInterrupt):
        here.run(here.ours(settings), callback=stop)
    assert seen == [0, 1, 2, 3]
    assert here.model.model_options.get("transformer_options", {}).get("sample_sigmas") is None


def test_a_bf16_model_is_sampled_with_float32_latents(native: SimpleNamespace, tiny_models: Path) -> None:
    model = native.load(tiny_models / "diffusion_models" / "random-v1.2.safetensors", weight_dtype="bf16")
    model.set_model_compute_dtype(torch.bfloat16)
    here = Bench(native, model, "1.2")
    kinds: list[torch.dtype] = []
    settings = Guidance(text_scale=4.0)
    done = here.run(here.ours(settings), callback=lambda step, denoised, x, total: kinds.append(x.dtype))
    assert set(kinds) == {torch.float32}
    assert bool(done.isfinite().all())


def test_the_models_own_options_are_untouched_by_patches(bench: Any) -> None:
    here = bench("1.3")
    before = here.run(here.core(4.0), "euler")
    settings = PRESETS["1.3 text to video"]
    here.native.guiders.patch_guidance(here.native.samplers.patch_shift(here.model, 5.0), settings)
    assert torch.equal(here.run(here.core(4.0), "euler"), before)


def test_guidance_over_an_empty_part_of_the_run_is_refused(bench: Any) -> None:
    here = bench("1.2")
    with pytest.raises(ValueError, match="the whole run is 0 to 1"):
        here.native.guiders.limited_to(Guidance(), here.model, 0.6, 0.6)


def test_guidance_interval_counts_like_core(bench: Any) -> None:
    here = bench("1.2")
    native, model = here.native, here.model
    limited = native.guiders.limited_to(Guidance(text_scale=4.0), model, 0.25, 0.75)
    assert (limited.sigma_start, limited.sigma_end) == (0.75, 0.25)
    counted, rows = counting(native, model)
    here.run(here.ours(limited, counted), "euler", sigmas=native.clips.schedule.sigmas(8))
    # Levels 1, .875, (.75 … .25), .125: five of eight steps lie inside.
    assert sum(rows) == 2 * 5 + 3


def test_a_latent_of_the_other_version_is_refused(bench: Any, models: dict[str, Any]) -> None:
    here = bench("1.2")
    with pytest.raises(ValueError, match="encode or make the latent for 1.3"):
        here.native.clips.clip_size({"samples": here.latent}, models["1.3"])
    empty = torch.zeros_like(here.latent)
    assert here.native.clips.clip_size({"samples": empty}, models["1.3"]).version == "1.3"


def test_every_step_of_our_sampler_node_shows_a_preview(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.utils
    import latent_preview
    from comfy.cli_args import LatentPreviewMethod, args

    here = bench("1.2")
    shown: list[Any] = []
    monkeypatch.setattr(args, "preview_method", LatentPreviewMethod.Latent2RGB)
    monkeypatch.setattr(latent_preview, "args", args)
    monkeypatch.setattr(
        comfy.utils.ProgressBar, "update_absolute", lambda self, value, total=None, preview=None: shown.append(preview)
    )
    run = here.native.clips.ClipRun(steps=3, seed=1, cfg=4.0)
    here.native.clips.sample_clip(here.model, here.positive, here.negative, {"samples": here.latent * 0}, run)
    assert len(shown) == 3
    assert all(preview is not None for preview in shown)


def test_two_parts_of_cores_euler_show_waiting_frames_with_noise(bench: Any) -> None:
    # What the help page of Place References says of KSampler (Advanced); our sampler repairs it, see above.
    here = bench("1.2")
    mask = mask_of(0, 1, 1, 1, 0)
    whole = here.run(here.core(4.0), "euler", mask=mask)
    first = here.run(here.core(4.0), "euler", mask=mask, sigmas=here.sigmas[:6])
    second = here.run(
        here.core(4.0), "euler", mask=mask, sigmas=here.sigmas[5:], latent=first, noise=torch.zeros_like(first)
    )
    assert (second[:, :, 0] - here.latent[:, :, 0]).abs().max() > 0.05
    assert (second - whole).abs().max() > 0.05


def test_an_interrupted_run_lets_go_of_its_latents(bench: Any) -> None:
    here = bench("1.2")
    held: list[weakref.ref[Tensor]] = []

    def stop(step: int, denoised: Tensor, x: Tensor, total: int) -> None:
        held.extend(weakref.ref(each) for each in (denoised, x))
        if step == 2:
            raise KeyboardInterrupt

    def interrupted() -> None:
        with contextlib.suppress(KeyboardInterrupt):
            here.run(here.ours(Guidance()), callback=stop, mask=mask_of(0, 0.5, 1, 1, 1))

    interrupted()
    gc.collect()
    assert len(held) == 6
    assert all(reference() is None for reference in held)
