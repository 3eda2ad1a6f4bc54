"""Core's MultiGPU CFG Split with two devices that are both the CPU: our guidance, masks and given frames under it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.comfyui import comfyui_root, use_comfyui
from support.native import conditioning, empty, load, randn, relative, sample, spy

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

import comfy.samplers  # noqa: E402

from opensora.opensora_models.native.sampling.guidance_over_time import (  # noqa: E402
    GuidanceOverTime,
    with_guidance_over_time,
)
from opensora.opensora_models.native.sampling.guiders import (  # noqa: E402
    OpenSoraGuider,
    patch_guidance,
    with_given_frames,
)
from opensora.opensora_models.native.sampling.samplers import patch_shift  # noqa: E402
from opensora.opensora_models.releases.guidance import Guidance  # noqa: E402
from opensora.opensora_models.sampling.factor_curve import read_curve  # noqa: E402

pytestmark = [pytest.mark.comfy]
LEVELS = torch.tensor([1.0, 0.7, 0.4, 0.0])
GUIDANCE = Guidance(text_scale=4.0, image_scale=2.0, oscillate_text=True, force_steps=1)


def given(latent: Tensor) -> list[list[Any]]:
    return with_given_frames(conditioning(), randn(*latent.shape, seed=4), [0])


def by_guider(model: Any, latent: Tensor) -> Tensor:
    """SamplerCustomAdvanced with Open-Sora Guider."""
    guider = OpenSoraGuider(model, GUIDANCE)
    guider.set_conds(given(latent), conditioning(5, seed=2))
    euler = comfy.samplers.sampler_object("euler")
    with torch.inference_mode():
        out: Tensor = guider.sample(randn(*latent.shape, seed=5), latent, euler, LEVELS, disable_pbar=True, seed=5)
    return out


def by_patch(model: Any, latent: Tensor) -> Tensor:
    """KSampler behind Open-Sora Guidance and Open-Sora Model Sampling."""
    return sample(patch_guidance(patch_shift(model, 2.0), GUIDANCE), latent, given(latent))


def masked(model: Any, latent: Tensor) -> Tensor:
    """KSampler with clean and half-noisy frames."""
    mask = torch.ones(1, 1, *latent.shape[2:])
    mask[:, :, 0], mask[:, :, 1] = 0.0, 0.5
    return sample(model, randn(*latent.shape, seed=8), mask=mask)


def by_curve(model: Any, latent: Tensor) -> Tensor:
    """KSampler behind Open-Sora Guidance over Time."""
    curve = read_curve("0:1, 1:0.4")
    return sample(with_guidance_over_time(model, GuidanceOverTime(curve)), latent)


@pytest.mark.parametrize(
    ("version", "sampled"),
    [("1.2", masked), ("1.3", by_guider), ("1.3", by_patch), ("1.3", by_curve), ("2.0", by_guider), ("2.0", by_patch)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_rows_on_two_devices_give_what_one_gives(
    tiny_models: Path, version: str, sampled: Callable[[Any, Tensor], Tensor]
) -> None:
    model, latent = load(tiny_models, version), empty(version)
    if not hasattr(model, "deepclone_multigpu"):
        pytest.skip("this ComfyUI has no multi-GPU support")
    other = model.deepclone_multigpu(new_load_device=torch.device("cpu", 0))  # as the core node makes it
    other.is_multigpu_base_clone = True
    split = model.clone()
    split.set_additional_models("multigpu", [other])
    alone = sampled(model, latent)
    with spy() as calls:
        together = sampled(split, latent)
    assert {each["transformer_options"]["multigpu_thread_device"].index for each in calls} == {None, 0}
    assert relative(together, alone) < 1e-4
