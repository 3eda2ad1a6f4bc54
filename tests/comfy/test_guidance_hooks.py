"""Open-Sora's guidance together with what other nodes hang into ComfyUI's: neither replaces the other unnoticed."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.native import conditioning, empty, load, randn, relative, spy

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

STEPS = 6


class Bench:
    """A tiny model with three rows, two prompts and, where wanted, a given frame."""

    def __init__(self, model: Any, given: bool) -> None:
        from opensora.opensora_models.native.sampling import guiders

        self.model, self.latent = model, empty(model.model.release.id, 3)
        self.positive, self.negative = conditioning(9), conditioning(4, seed=2)
        if given:
            self.positive = guiders.with_given_frames(self.positive, randn(*self.latent.shape, seed=7), [0], [0])

    def guided(self, settings: dict[str, Any], model: Any = None) -> Tensor:
        """Through our guider."""
        from opensora.opensora_models.native.sampling.guiders import OpenSoraGuider
        from opensora.opensora_models.releases.guidance import Guidance

        guider = OpenSoraGuider(model or self.model, Guidance(text_scale=4.0, **settings))
        guider.set_conds(self.positive, self.negative)
        return self._run(guider)

    def patched(self, settings: dict[str, Any], *after: Callable[[Any], None], model: Any = None) -> Tensor:
        """Through core's guider and our patch; ``after`` are other nodes behind it."""
        import comfy.samplers

        from opensora.opensora_models.native.sampling.guiders import patch_guidance
        from opensora.opensora_models.releases.guidance import Guidance

        patched = patch_guidance(model or self.model, Guidance(text_scale=1.0, **settings))
        for change in after:
            change(patched)
        guider = comfy.samplers.CFGGuider(patched)
        guider.set_conds(self.positive, self.negative)
        guider.set_cfg(4.0)
        return self._run(guider)

    def _run(self, guider: Any) -> Tensor:
        import comfy.samplers

        sampler, noise = comfy.samplers.sampler_object("euler"), randn(*self.latent.shape, seed=5)
        with torch.inference_mode():
            return guider.sample(
                noise, self.latent, sampler, torch.linspace(1, 0, STEPS + 1), disable_pbar=True, seed=5
            )

    def with_hook(self, *changes: Callable[[Any], None]) -> Any:
        """The model with functions of other nodes on it."""
        model = self.model.clone()
        for change in changes:
            change(model)
        return model


@pytest.fixture(scope="module", params=["1.3", "2.0"])
def model(comfy: Path, tiny_models: Path, request: pytest.FixtureRequest) -> Any:
    return load(tiny_models, request.param)


@pytest.fixture(params=[False, True], ids=["text", "given frames"])
def bench(model: Any, request: pytest.FixtureRequest) -> Bench:
    return Bench(model, request.param)


def watch(seen: list[dict[str, Any]]) -> Callable[[Any], None]:
    """A function behind the guidance that only looks."""

    def look(call: dict[str, Any]) -> Tensor:
        seen.append(call)
        return call["denoised"]

    return lambda model: model.set_model_sampler_post_cfg_function(look)


def nudge(model: Any) -> None:
    """One that adds a little of the prompt's own prediction."""
    model.set_model_sampler_post_cfg_function(lambda call: call["denoised"] + 0.1 * call["cond_denoised"])


def half_formula(model: Any) -> None:
    """A formula in place of ComfyUI's: half of the guidance."""

    def formula(call: dict[str, Any]) -> Tensor:
        return call["uncond"] + 0.5 * call["cond_scale"] * (call["cond"] - call["uncond"])

    model.set_model_sampler_cfg_function(formula)


def other_rows(model: Any) -> None:
    """Rows computed by another node: the base row is halved."""

    def rows(call: dict[str, Any]) -> list[Tensor]:
        import comfy.samplers

        first, base = comfy.samplers.calc_cond_batch(
            call["model"], call["conds"], call["input"], call["sigma"], call["model_options"]
        )
        return [first, 0.5 * base]

    model.set_model_sampler_calc_cond_batch_function(rows)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "flaw fix": {"flaw_fix": True},
    "oscillating": {"oscillate_text": True, "force_steps": 2},
    "image": {"image_scale": 2.0},
    "fading image": {"image_scale": 3.0, "fade_image": True, "oscillate_image": True, "force_steps": 1},
    "all": {"image_scale": 3.0, "oscillate_text": True, "oscillate_image": True, "force_steps": 2, "flaw_fix": True},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_looking_on_changes_nothing_and_costs_no_rows(bench: Bench, name: str) -> None:
    seen: list[dict[str, Any]] = []
    with spy() as plain_calls:
        plain = bench.guided(SETTINGS[name])
    with spy() as calls:
        watched = bench.guided(SETTINGS[name], bench.with_hook(watch(seen)))
    assert len(seen) == STEPS
    assert relative(watched, plain) < 1e-4
    assert sum(len(call["x"]) for call in calls) == sum(len(call["x"]) for call in plain_calls)


@pytest.mark.parametrize("change", [nudge, half_formula, other_rows], ids=lambda change: change.__name__)
@pytest.mark.parametrize("name", ["plain", "flaw fix", "oscillating"])
def test_other_functions_count_as_with_cores_guider(bench: Bench, name: str, change: Any) -> None:
    settings = SETTINGS[name] | {"image_scale": 2.0}
    made = bench.guided(settings, bench.with_hook(change))
    # Our guider's flaw fix comes before what other nodes do behind the guidance.
    want = (
        bench.patched(settings, change) if change is nudge else bench.patched(settings, model=bench.with_hook(change))
    )
    assert relative(made, want) < 1e-4
    assert relative(made, bench.guided(settings)) > 1e-3


@pytest.mark.parametrize("change", [nudge, half_formula], ids=lambda change: change.__name__)
def test_the_patch_and_another_node_keep_one_another_whichever_comes_first(bench: Bench, change: Any) -> None:
    settings = SETTINGS["flaw fix"]
    before, after = bench.patched(settings, model=bench.with_hook(change)), bench.patched(settings, change)
    alone, plain = bench.patched({}, change), bench.patched(settings)
    if change is half_formula:
        assert relative(before, after) < 1e-5
    for made in (before, after):
        assert relative(made, plain) > 1e-3
        if not bench.positive[0][1].get("opensora_given_frames"):  # there the flaw fix is left out
            assert relative(made, alone) > 1e-3


def test_the_settings_of_a_patch_are_told_not_to_count_in_our_guider(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    from opensora.opensora_models.native.sampling.guiders import patch_guidance
    from opensora.opensora_models.releases.guidance import Guidance

    patched = patch_guidance(bench.model, Guidance(text_scale=1.0, **SETTINGS["all"]))
    with caplog.at_level(logging.WARNING, logger="opensora"):
        made = bench.guided({}, patched)
    assert any("Open-Sora Guidance" in record.getMessage() for record in caplog.records)
    assert torch.equal(made, bench.guided({}))


def test_patching_twice_takes_the_last_settings(bench: Bench) -> None:
    from opensora.opensora_models.native.sampling.guiders import patch_guidance
    from opensora.opensora_models.releases.guidance import Guidance

    first = patch_guidance(bench.model, Guidance(text_scale=1.0, **SETTINGS["flaw fix"]))
    assert torch.equal(bench.patched({}, model=first), bench.patched({}))
