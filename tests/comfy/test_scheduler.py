"""The scheduler ``opensora`` stands in every sampler node, so it meets every kind of model ComfyUI has."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.native import conditioning, empty, load, sample

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

STEPS = (1, 2, 3, 8, 30, 50, 200, 1000, 3000)
SETTINGS: tuple[dict[str, Any], ...] = (
    {}, {"shift": 0.3}, {"shift": 3.0, "multiplier": 1}, {"shift": 6.0, "multiplier": 1000}, {"zsnr": True},
    {"beta_schedule": "sqrt_linear", "timesteps": 400}, {"sigma_min": 0.0002, "sigma_max": 700.0, "sigma_data": 0.5},
)  # fmt: skip


def sampling_classes() -> list[type[Any]]:
    """Every class of ComfyUI that says which noise levels a model knows."""
    import comfy.model_sampling
    import comfy_extras.nodes_model_advanced as more

    found = [
        kind
        for module in (comfy.model_sampling, more)
        for _, kind in inspect.getmembers(module, inspect.isclass)
        if hasattr(kind, "percent_to_sigma") and kind.__module__ == module.__name__
    ]
    assert len(found) >= 7
    return found


class Config:
    """What ComfyUI's classes read from a model's config."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self.sampling_settings = settings


def falls_to_zero(levels: Tensor, steps: int) -> bool:
    return bool(
        levels.shape == (steps + 1,) and levels.isfinite().all() and (levels.diff() < 0).all() and levels[-1] == 0
    )


@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_every_sampling_type_gets_falling_levels_from_its_highest(comfy: Path, settings: dict[str, Any]) -> None:
    from opensora.opensora_models.native.sampling.samplers import opensora_scheduler

    for kind in sampling_classes():
        sampling = kind(Config(settings))
        for steps in STEPS:
            levels = opensora_scheduler(sampling, steps)
            assert falls_to_zero(levels, steps), f"{kind.__name__}, {steps} steps: {levels}"
            assert levels[0] == pytest.approx(float(sampling.sigma_max), rel=1e-6), kind.__name__


@pytest.mark.parametrize("shift", [0.05, 0.34, 1.0, 2.7, 11.0])
def test_a_flow_keeps_open_soras_numbers(comfy: Path, shift: float) -> None:
    import comfy.model_sampling

    from opensora.opensora_models.native.sampling.samplers import opensora_scheduler

    for multiplier in (1, 1000):
        sampling = comfy.model_sampling.ModelSamplingDiscreteFlow()
        sampling.set_parameters(shift=shift, multiplier=multiplier)
        for steps in STEPS:
            time = 1.0 - torch.arange(steps + 1, dtype=torch.float64) / steps
            want = shift * time / (1.0 + (shift - 1.0) * time)
            torch.testing.assert_close(opensora_scheduler(sampling, steps), want.float(), rtol=1e-6, atol=0)


@pytest.mark.parametrize(
    ("node", "inputs"),
    [
        ("ModelSamplingDiscrete", {"sampling": "eps", "zsnr": False}),
        ("ModelSamplingDiscrete", {"sampling": "v_prediction", "zsnr": True}),
        ("ModelSamplingDiscrete", {"sampling": "lcm", "zsnr": False}),
        ("ModelSamplingStableCascade", {"shift": 2.0}),
        ("ModelSamplingSD3", {"shift": 3.0}),
        ("ModelSamplingAuraFlow", {"shift": 1.73}),
        ("ModelSamplingFlux", {"max_shift": 1.15, "base_shift": 0.5, "width": 1024, "height": 1024}),
        ("ModelSamplingContinuousEDM", {"sampling": "edm", "sigma_max": 120.0, "sigma_min": 0.002}),
        ("ModelSamplingContinuousV", {"sampling": "v_prediction", "sigma_max": 500.0, "sigma_min": 0.03}),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(str(part) for part in value.values()),
)
def test_a_sampler_runs_with_it_whatever_sampling_is_patched_in(
    comfy: Path, tiny_models: Path, node: str, inputs: dict[str, Any]
) -> None:
    import comfy.samplers
    import comfy_extras.nodes_model_advanced as nodes

    from opensora.opensora_models.native.sampling.samplers import register_scheduler

    register_scheduler()
    patch = getattr(nodes, node)
    (model,) = getattr(patch(), patch.FUNCTION)(model=load(tiny_models, "1.2"), **inputs)
    levels = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "opensora", 4)
    done = sample(model, empty("1.2", 2), conditioning(), conditioning(5, seed=2), sigmas=levels)
    assert levels.shape == (5,) and done.isfinite().all()
