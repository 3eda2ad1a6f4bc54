"""ComfyUI's own samplers with our MODEL give what the original's sampling loops gave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from golden.runner import Case, load_case, weights_by_rule
from support.native import sample, spy
from support.pack import PACK_ROOT

pytestmark = pytest.mark.comfy

CASES = PACK_ROOT / "tests" / "golden" / "cases" / "stdit3"
SETTINGS = ("kernel_size", "use_spatial_rope", "input_sq_size")


def recorded(name: str) -> Case:
    return load_case(CASES / f"{name}.safetensors")


def model_of(case: Case, folder: Path) -> Any:
    """The case's random weights as a file in the released layout, opened by our loader."""
    from opensora.opensora_models.native.model.loading import load_model
    from opensora.opensora_models.native.model.stdit3_model import OpenSoraConfig
    from opensora.opensora_models.stdit3.config import STDiT3Config

    names = STDiT3Config.__dataclass_fields__
    settings = {key: value for key, value in case.config.items() if key in names}
    version = case.family.removeprefix("stdit3-v")
    if settings.get("kernel_size"):
        settings["kernel_size"] = tuple(settings["kernel_size"])
    config = STDiT3Config(version=version, **settings | {"patch_size": (1, 2, 2)})
    weights = weights_by_rule(
        {name: torch.zeros(shape) for name, shape in OpenSoraConfig.released_shapes(config).items()}, case
    )
    metadata = {"opensora.config": json.dumps({key: case.config[key] for key in SETTINGS if key in case.config})}
    save_file(weights, folder / "case.safetensors", metadata=metadata)
    return load_model(folder / "case.safetensors")


def text(case: Case, name: str, **extra: Any) -> list:
    """The case's padded text with its mask; the null text is cut by the prompt's mask as in the original."""
    numbers = {
        "pooled_output": None,
        "attention_mask": case.input("mask"),
        "frame_rate": float(case.input("fps")[0]),
        "opensora_pixel_size": (float(case.input("height")[0]), float(case.input("width")[0])),
    }
    return [[case.input(name)[:, 0], numbers | extra]]


def sigmas_of(case: Case) -> Tensor:
    times = case.expected["timesteps"][:, 0].double() / 1000
    return torch.cat([times, times.new_zeros(1)]).float()


def assert_close(case: Case, model: Any, result: Tensor) -> None:
    tolerance = case.info["tolerances"]
    got = model.model.process_latent_in(result)
    torch.testing.assert_close(got, case.expected["z_final"], atol=tolerance["atol"], rtol=tolerance["rtol"])


@pytest.mark.parametrize(
    "name",
    ["v12_sample_plain", "v12_sample_transform", "v12_sample_image", "v13_sample_t2v_plain"],
)
def test_text_to_video_with_ksampler(comfy: Path, tmp_path: Path, name: str) -> None:
    case = recorded(name)
    model = model_of(case, tmp_path)
    noise = case.input("z")
    result = sample(
        model,
        torch.zeros_like(noise),
        text(case, "y"),
        text(case, "y_null"),
        noise=noise,
        cfg=case.info["scheduler"]["cfg_scale"],
        sigmas=sigmas_of(case),
    )
    assert_close(case, model, result)


@pytest.mark.parametrize("name", ["v12_sample_mask_first", "v12_sample_mask_connect", "v12_sample_mask_ones"])
def test_kept_frames_with_an_ordinary_noise_mask(comfy: Path, tmp_path: Path, name: str) -> None:
    case = recorded(name)
    model = model_of(case, tmp_path)
    ratios = case.expected.get("frame_mask", case.input("frame_mask")).float()
    assert set(ratios.unique().tolist()) <= {0.0, 1.0}
    start = case.expected.get("z_init", case.input("z"))
    kept = (1 - ratios)[:, None, :, None, None]
    result = sample(
        model,
        model.model.process_latent_out(start) * kept,
        text(case, "y"),
        text(case, "y_null"),
        noise=case.input("z"),
        cfg=case.info["scheduler"]["cfg_scale"],
        mask=ratios[:, None, :, None, None],
        sigmas=sigmas_of(case),
    )
    assert_close(case, model, result)


def test_image_to_video_with_cores_dual_guider(comfy: Path, tmp_path: Path) -> None:
    from comfy.samplers import sampler_object
    from comfy_extras.nodes_custom_sampler import Guider_DualCFG

    case = recorded("v13_sample_i2v_plain")
    model = model_of(case, tmp_path)
    given = {
        "opensora_given_latent": model.model.process_latent_out(case.expected["z_cond"]),
        "opensora_given_frames": case.info["mask_index"],
    }
    both, image = text(case, "y", **given), text(case, "y_null", **given)
    nothing = text(case, "y_null", **given, opensora_given_drop=True)
    guider = Guider_DualCFG(model)
    guider.set_conds(both, image, nothing)
    guider.set_cfg(case.info["scheduler"]["cfg_scale"], case.info["sample_args"]["image_cfg_scale"])
    noise = case.input("z")
    with torch.inference_mode(), spy() as calls:
        result = guider.sample(
            noise, torch.zeros_like(noise), sampler_object("euler"), sigmas_of(case), disable_pbar=True, seed=1
        )
    assert_close(case, model, result)
    assert [call["x"].shape[0] for call in calls] == [3] * 5, "the three branches share one forward"
