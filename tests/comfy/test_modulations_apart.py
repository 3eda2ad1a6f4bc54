"""Modulations computed once per run: the same clip, a smaller model, and weights that everybody still finds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from support.native import conditioning, empty, load, model_file, randn, relative, sample
from support.saving import saved

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

LAYER = "single_blocks.0.modulation.lin"


@pytest.fixture
def plain(comfy: Path, tiny_models: Path) -> Any:
    return load(tiny_models, "2.0")


@pytest.fixture
def apart(comfy: Path, tiny_models: Path) -> Any:
    return load(tiny_models, "2.0", modulations_apart=True)


def shot(model: Any, **options: Any) -> Tensor:
    return sample(model, empty("2.0", 3, 4, 6), conditioning(6), conditioning(6, seed=2), **options)


@pytest.fixture
def counted(apart: Any) -> list[int]:
    """Rows of every use of one modulation layer."""
    rows: list[int] = []
    layer = apart.model.diffusion_model.single_blocks[0].modulation.lin
    layer.register_forward_hook(lambda module, inputs, out: rows.append(len(out)))
    return rows


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "heun"])
def test_one_use_per_prompt_gives_the_same_clip(plain: Any, apart: Any, counted: list[int], sampler: str) -> None:
    assert relative(shot(apart, steps=5, sampler=sampler), shot(plain, steps=5, sampler=sampler)) < 1e-5
    assert counted == [6, 6], "both prompts, all times of the run and its end"


def test_one_forward_is_equal(plain: Any, apart: Any) -> None:
    assert relative(shot(apart, steps=1, cfg=1.0), shot(plain, steps=1, cfg=1.0)) < 1e-6


def test_times_between_the_steps_are_made_when_they_come(plain: Any, apart: Any, counted: list[int]) -> None:
    got, want = (shot(model, steps=3, sampler="dpm_2") for model in (apart, plain))
    assert relative(got, want) < 1e-5
    assert counted[:2] == [4, 4] and len(counted) > 2


def test_every_run_starts_anew(plain: Any, apart: Any) -> None:
    first, again = shot(apart), shot(apart, steps=4)
    assert torch.equal(shot(apart), first) and relative(again, shot(plain, steps=4)) < 1e-5
    assert apart.model.diffusion_model.apart._run is None


def test_comfyui_counts_and_moves_a_smaller_model(plain: Any, apart: Any) -> None:
    network = apart.model.diffusion_model
    kept = sum(layer.weight.nbytes + layer.bias.nbytes for layer in network.modulation_layers())
    assert apart.model_size() == plain.model_size() - kept < 0.8 * plain.model_size()
    assert apart.clone().model_size() == apart.model_size()
    assert not [name for name, _ in apart.model.named_modules() if name.endswith((".lin", "odulation.1"))]
    factory, arguments = apart.cached_patcher_init
    assert factory(*arguments, disable_dynamic=True).model_size() == apart.model_size()


@pytest.mark.parametrize("ending", ["diff", "diff_b"])
def test_a_lora_on_a_modulation_is_seen(plain: Any, apart: Any, ending: str) -> None:
    import comfy.sd

    shape = (192, 64) if ending == "diff" else (192,)
    lora = {f"diffusion_model.{LAYER}.{ending}": randn(*shape, seed=9)}
    results = [shot(comfy.sd.load_lora_for_models(model, None, lora, 0.7, 0.0)[0]) for model in (apart, plain)]
    assert relative(*results) < 1e-5 and relative(results[0], shot(plain)) > 1e-3
    assert relative(shot(apart), shot(plain)) < 1e-5, "it is gone with its MODEL"


def test_merges_reach_them(plain: Any, apart: Any, tiny_models: Path) -> None:
    other = load(tiny_models, "2.0", modulations_apart=True)
    weight = other.model.diffusion_model.single_blocks[0].modulation.lin.weight
    with torch.inference_mode():
        weight.mul_(3)
    merged = []
    for model in (apart, plain):
        mixed = model.clone()
        patches = other.get_key_patches("diffusion_model.")
        mixed.add_patches({key: patches[key] for key in patches}, 0.5, 0.5)
        merged.append(shot(mixed))
    assert relative(*merged) < 1e-5 and relative(merged[0], shot(plain)) > 1e-3


def test_saving_keeps_every_weight(plain: Any, apart: Any, tiny_models: Path) -> None:
    import comfy.sd

    from opensora.opensora_models.checkpoint.opening import open_checkpoint
    from opensora.opensora_models.native.model.loading import load_model

    lora = {f"diffusion_model.{LAYER}.diff": randn(192, 64, seed=9)}
    patched = comfy.sd.load_lora_for_models(apart, None, lora, 1.0, 0.0)[0]
    with torch.inference_mode():  # as the server saves
        path = saved("ModelSave", "diffusion_models/apart", model=apart)
        with_lora = saved("ModelSave", "diffusion_models/apart_lora", model=patched)
    again, want = open_checkpoint(path).load(), load_file(model_file(tiny_models, "2.0"))
    assert again.keys() == want.keys() and all(torch.equal(again[name], want[name]) for name in want)
    got = shot(load_model(with_lora))
    assert relative(got, shot(patched)) < 1e-5 and relative(got, shot(plain)) > 1e-3


def test_stored_runs_know_their_weights(apart: Any) -> None:
    from opensora.opensora_models.native.identity import model_identity

    def found() -> Any:
        with torch.inference_mode():
            return model_identity({"model": apart})

    before = found()
    shot(apart)
    after = found()
    assert not before.unknown and after.digest == before.digest
    with torch.inference_mode():
        apart.model.diffusion_model.double_blocks[1].txt_mod.lin.bias.add_(1)
    assert found().digest != before.digest


def test_other_releases_are_refused(comfy: Path, tiny_models: Path) -> None:
    with pytest.raises(ValueError, match="no modulation layers to compute once per run; leave modulations in the"):
        load(tiny_models, "1.2", modulations_apart=True)


@pytest.mark.parametrize("weight_dtype", ["bf16", "fp8_e4m3fn"])
def test_stored_in_fewer_bits(tiny_models: Path, comfy: Path, weight_dtype: str) -> None:
    results = [
        shot(load(tiny_models, "2.0", weight_dtype=weight_dtype, modulations_apart=way)) for way in (True, False)
    ]
    assert relative(*results) < 1e-5
