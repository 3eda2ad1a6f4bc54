"""Times of Open-Sora 2.0 as the nodes give them, and those of the picture that Flux makes before a video."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from support import native as tiny
from support.pack import PACK_ROOT

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

CASES = PACK_ROOT / "tests" / "golden" / "cases" / "v2"
OPTIONS = {"discrete": False, "transform_scale": 1.0, "count_frames": True, "rounding": "exact"}
STAGE = "2.0 image stage"


@cache
def case(name: str) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Description and tensors of a recorded run of the original."""
    with safe_open(str(CASES / f"{name}.safetensors"), "pt") as file:
        return json.loads(file.metadata()["case"]), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118


def rows() -> list[dict[str, Any]]:
    """Recorded times that the rule of a release gives; the others were set by hand."""
    settings, _ = case("schedule")
    return [row for row in settings["config"]["rows"] if row["shift"] and row["flow_shift"] is None]


@pytest.fixture(scope="module")
def nodes(comfy: Path) -> SimpleNamespace:
    from opensora.nodes import sigmas

    return SimpleNamespace(sigmas=sigmas.Sigmas, shift=sigmas.ModelSampling)


@pytest.fixture(scope="module")
def models(comfy: Path, tiny_models: Path) -> dict[str, Any]:
    return {version: tiny.load(tiny_models, version) for version in ("1.2", "1.3", "2.0", "2.0 high compression")}


def release_of_row(row: dict[str, Any]) -> str:
    """High compression where a latent stands for 32 pixels: then there is a token for each of them."""
    cells = row["height"] // 32 * (row["width"] // 32)
    return "2.0 high compression" if row["tokens_per_frame"] == cells else "2.0"


def latent_of(row: dict[str, Any]) -> dict[str, Any]:
    version = release_of_row(row)
    space = 32 if "high" in version else 8
    size = [-(-row[side] // (32 if "high" in version else 16)) * (32 if "high" in version else 16) // space
            for side in ("height", "width")]  # fmt: skip
    return {"samples": torch.zeros(1, tiny.CHANNELS[version], row["latent_frames"], *size)}


def foreign() -> Any:
    """A MODEL of another network."""
    from comfy.model_patcher import ModelPatcher

    return ModelPatcher(torch.nn.Linear(1, 1), torch.device("cpu"), torch.device("cpu"))


@pytest.mark.parametrize("row", rows(), ids=lambda row: f"row {row['index']}")
def test_times_are_the_originals(nodes: SimpleNamespace, models: dict[str, Any], row: dict[str, Any]) -> None:
    model, latent, steps = models[release_of_row(row)], latent_of(row), row["num_steps"]
    recorded = case("schedule")[1][f"out.timesteps_{row['index']}"].double()
    (levels,) = nodes.sigmas.execute(model, latent, steps, 1.0, **OPTIONS).args
    torch.testing.assert_close(levels.double(), recorded, atol=3e-7, rtol=0)
    _, shift = nodes.shift.execute(model, latent, **{name: OPTIONS[name] for name in list(OPTIONS)[1:]}).args
    assert shift == pytest.approx(row["alpha"], rel=1e-6)
    if row["latent_frames"] == 1 and release_of_row(row) == "2.0":
        picture = {"samples": latent["samples"][:, :, 0]}
        (levels,) = nodes.sigmas.execute(foreign(), picture, steps, 1.0, **OPTIONS, stage=STAGE).args
        torch.testing.assert_close(levels.double(), recorded, atol=3e-7, rtol=0)


def test_recorded_times_hold_every_release_and_a_picture() -> None:
    assert {release_of_row(row) for row in rows()} == {"2.0", "2.0 high compression"}
    assert any(row["latent_frames"] == 1 for row in rows())


def test_the_scheduler_gives_the_same_times_inside_ksampler(nodes: SimpleNamespace, models: dict[str, Any]) -> None:
    import comfy.samplers

    from opensora.opensora_models.native.sampling.samplers import register_scheduler

    register_scheduler()
    latent, steps = {"samples": tiny.empty("2.0", frames=9)}, 50
    (levels,) = nodes.sigmas.execute(models["2.0"], latent, steps, 1.0, **OPTIONS).args
    model, _ = nodes.shift.execute(models["2.0"], latent, 1.0, True, "exact").args
    sampling = model.get_model_object("model_sampling")
    torch.testing.assert_close(comfy.samplers.calculate_sigmas(sampling, "opensora", steps), levels, atol=3e-7, rtol=0)


@pytest.mark.parametrize(
    ("name", "value"), [("discrete", True), ("transform_scale", 2.0), ("count_frames", False),
                        ("rounding", "as released (bfloat16)")],
)  # fmt: skip
def test_options_of_older_releases_are_told_and_change_nothing(
    nodes: SimpleNamespace, models: dict[str, Any], name: str, value: Any
) -> None:
    from opensora.opensora_models.native.messages import speaking

    def levels(version: str, **options: Any) -> tuple[Tensor, list[str]]:
        latent = {"samples": tiny.empty(version, frames=10)}
        with speaking() as said:
            return nodes.sigmas.execute.__wrapped__(
                nodes.sigmas, models[version], latent, 7, 1.0, **{**OPTIONS, **options}
            ).args[0], said

    plain, told = levels("2.0")
    changed, said = levels("2.0", **{name: value})
    assert told == [] and torch.equal(plain, changed) and len(said) == 1 and name in said[0]
    changed, said = levels("1.3", **{name: value})
    assert said == [] and not torch.equal(changed, levels("1.3")[0])


def test_the_image_stage_takes_one_picture_and_flux(nodes: SimpleNamespace, models: dict[str, Any]) -> None:
    clip = {"samples": torch.zeros(1, 16, 5, 8, 8)}
    with pytest.raises(ValueError, match="makes one picture and the latent has 5 latent frames"):
        nodes.sigmas.execute(foreign(), clip, 4, 1.0, **OPTIONS, stage=STAGE)
    plain = {"samples": torch.zeros(1, 16, 8, 8)}
    coarse = {"samples": torch.zeros(1, 128, 4, 4), "downscale_ratio_spacial": 16}
    levels = [nodes.sigmas.execute(foreign(), each, 4, 1.0, **OPTIONS, stage=STAGE).args[0] for each in (plain, coarse)]
    assert torch.equal(*levels)
    with pytest.raises(ValueError, match="needs an Open-Sora model"):
        nodes.sigmas.execute(foreign(), plain, 4, 1.0, **OPTIONS)
    for version, model in models.items():
        with pytest.raises(ValueError, match=f"MODEL is Open-Sora {version}; choose the stage video"):
            nodes.sigmas.execute(model, plain, 4, 1.0, **OPTIONS, stage=STAGE)


def test_cores_flux_samples_the_recorded_picture(nodes: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    """Core's own Flux, its euler and the times of Sigmas give the original's picture latent."""
    import comfy.latent_formats
    import comfy.sample
    import comfy.samplers
    import comfy.supported_models
    from comfy.model_patcher import ModelPatcher

    info, recorded = case("loop_flux_image")
    model = flux_of(info["config"]["model"], info)
    monkeypatch.setattr(model, "latent_format", comfy.latent_formats.LatentFormat())
    noise = recorded["in.noise"][:, :, 0]
    empty = torch.zeros_like(noise)
    (levels,) = nodes.sigmas.execute(foreign(), {"samples": empty}, 6, 1.0, **OPTIONS, stage=STAGE).args
    torch.testing.assert_close(levels, recorded["out.schedule"].float(), atol=3e-7, rtol=0)
    values = {"pooled_output": recorded["in.y_vec"], "guidance": info["config"]["guidance"]}
    text = [[recorded["in.txt"], values]]
    patcher = ModelPatcher(model, torch.device("cpu"), torch.device("cpu"))
    with torch.inference_mode():
        done = comfy.sample.sample_custom(
            patcher, noise, 1.0, comfy.samplers.sampler_object("euler"), levels, text, text, empty, disable_pbar=True
        )
    torch.testing.assert_close(done, recorded["out.final_latent"][:, :, 0], atol=2e-4, rtol=1e-3)


def flux_of(settings: dict[str, Any], info: dict[str, Any]) -> Any:
    """Core's Flux of the recorded size with the recorded weights."""
    import comfy.model_base
    import comfy.supported_models

    from golden.families.mmdit import network_of
    from golden.runner import Case

    known = ("vec_in_dim", "context_in_dim", "hidden_size", "mlp_ratio", "num_heads", "depth", "depth_single_blocks",
             "axes_dim", "theta", "qkv_bias", "guidance_embed", "patch_size")  # fmt: skip
    channels = settings["in_channels"] // settings["patch_size"] ** 2
    config = comfy.supported_models.Flux(
        {**{name: settings[name] for name in known}, "image_model": "flux", "in_channels": channels,
         "out_channels": channels, "dtype": torch.float32, "txt_ids_dims": []}
    )  # fmt: skip
    config.set_inference_dtype(torch.float32, None)
    model = comfy.model_base.Flux(config, device=torch.device("cpu"))
    state = network_of(Case("loop_flux_image", info, {}), settings).state_dict()
    wanted = model.diffusion_model.state_dict()
    renamed = {key if key in wanted else key.removesuffix("weight") + "scale": value for key, value in state.items()}
    model.diffusion_model.load_state_dict(renamed)
    return model.eval()
