"""Every recorded sampling run through our GUIDER and SAMPLER inside ComfyUI, with the recorded noise injected."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from golden.families.sampling_loops import config_of, given, guidance_of, masked, sigmas_of
from golden.runner import Case, load_case, weights_by_rule
from support.pack import PACK_ROOT

pytestmark = pytest.mark.comfy

CASES = sorted((PACK_ROOT / "tests" / "golden" / "cases" / "stdit3").glob("*_sample_*.safetensors"))
CONFIG_KEYS = ("kernel_size", "use_spatial_rope", "input_sq_size")


def model_of(case: Case, folder: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The case's weights through our loader.

    The recorded latents are normalised already and have 4 channels in 1.3 as well, so the MODEL gets a plain format.
    """
    import comfy.latent_formats

    from opensora.opensora_models.native.model.latent_formats import LATENT_FORMATS
    from opensora.opensora_models.native.model.loading import load_model
    from opensora.opensora_models.native.model.stdit3_model import OpenSoraConfig

    class Plain(comfy.latent_formats.LatentFormat):
        latent_channels, latent_dimensions = case.input("z").shape[1], 3

    config = config_of(case)
    monkeypatch.setitem(LATENT_FORMATS, config.version, Plain)
    weights = weights_by_rule(
        {name: torch.zeros(shape) for name, shape in OpenSoraConfig.released_shapes(config).items()}, case
    )
    metadata = {"opensora.config": json.dumps({key: case.config[key] for key in CONFIG_KEYS if key in case.config})}
    save_file(weights, folder / "case.safetensors", metadata=metadata)
    return load_model(folder / "case.safetensors")


def text(case: Case, states: str, mask: str) -> list[list[Any]]:
    """A prompt with its own tokens, and the size the case announces."""
    size = tuple(float(case.input(name)[0]) for name in ("height", "width"))
    values = {
        "pooled_output": None,
        "attention_mask": case.input(mask),
        "frame_rate": float(case.input("fps")[0]),
        "opensora_pixel_size": size,
    }
    return [[case.input(states)[:, 0], values]]


@pytest.mark.parametrize("path", CASES, ids=lambda path: path.stem)
def test_equals_the_original(comfy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    from opensora.opensora_models.native.sampling.guiders import OpenSoraGuider, with_given_frames
    from opensora.opensora_models.native.sampling.samplers import sampler
    from opensora.opensora_models.sampling.noise import RecordedNoise

    case = load_case(path)
    model = model_of(case, tmp_path, monkeypatch)
    mask, _ = masked(case)
    frames, _ = given(case)
    negative = ("y_neg", "mask_neg") if case.input("y_neg") is not None else ("y_null", "mask")
    positive, negative = text(case, "y", "mask"), text(case, *negative)
    if frames is not None:
        positive = with_given_frames(positive, frames.latent, frames.frames)
    guider = OpenSoraGuider(model, guidance_of(case))
    guider.set_conds(positive, negative)
    noise = case.input("noise")
    walk = sampler(
        renoise_given=bool(case.info.get("sample_args", {}).get("use_sdedit")),
        noise=None if noise is None else RecordedNoise(noise),
    )
    levels = sigmas_of(case, case.family.removeprefix("stdit3-v"))
    seen: list[Tensor] = []
    with torch.inference_mode():
        done = guider.sample(
            case.input("z"),
            torch.zeros_like(case.input("z")) if mask is None else mask.latent,
            walk,
            levels,
            denoise_mask=None if mask is None else mask.ratios,
            callback=lambda step, denoised, x, total: seen.append(x.clone()),
            disable_pbar=True,
            seed=1,
        )
    tolerance = case.info["tolerances"]
    for got, want in ((torch.stack(seen), case.expected["z_in"]), (done, case.expected["z_final"])):
        torch.testing.assert_close(got, want, atol=tolerance["atol"], rtol=tolerance["rtol"])
