"""Files of Open-Sora 2.0 in every form: fewer bits, fused projections, and choices that belong to another network."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.native import empty, load, model_file, relative, sample
from support.quantised_files import scaled_fp8, with_metadata

pytestmark = pytest.mark.comfy


def open_model(path: Path, *args: Any, **kwargs: Any) -> Any:
    from opensora.opensora_models.native.model.loading import load_model

    with torch.inference_mode():
        return load_model(path, *args, **kwargs)


def loss_of(got: torch.Tensor, want: torch.Tensor) -> float:
    return float((got - want).norm() / want.norm())


@pytest.mark.parametrize("form", ["bf16", "fp8_e4m3fn", "fp8 file", "scaled fp8 file", "fp8 with metadata"])
@pytest.mark.parametrize("release", ["2.0", "2.0 high compression"])
def test_20_is_stored_in_fewer_bits(comfy: Path, tiny_models: Path, tmp_path: Path, release: str, form: str) -> None:
    path, latent = model_file(tiny_models, release), empty(release, 3, 4, 6)
    weights, metadata, dtype = load_file(path), {}, "default"
    want = sample(open_model(path), latent, steps=2)
    if form == "fp8 file":
        weights = {name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()}
    elif form == "scaled fp8 file":
        weights = scaled_fp8(weights, "_attn.")
    elif form == "fp8 with metadata":
        weights, metadata = with_metadata(scaled_fp8(weights, "_attn."))
    else:
        dtype = form
    save_file(weights, tmp_path / "stored.safetensors", metadata=metadata)
    model = open_model(tmp_path / "stored.safetensors", dtype)
    layer = model.model.diffusion_model.double_blocks[0].img_attn.q_proj.weight
    if form != "fp8 file":  # which ComfyUI unpacks where memory allows
        assert layer.dtype.itemsize < 4 or "Quantized" in f"{type(layer).__name__} {type(layer.data).__name__}"
    assert 0 < loss_of(sample(model, latent, steps=2), want) < (0.02 if form == "bf16" else 0.4)


@pytest.mark.parametrize(
    ("version", "choices", "said"),
    [
        ("1.2", {"rotation": "half-split"}, "Open-Sora 1.2 has no rotation to choose"),
        ("1.3", {"rotation": "interleaved"}, "Open-Sora 1.3 has no rotation to choose"),
        ("2.0", {"window": 4, "spatial_rotary": True}, "Open-Sora 2.0 has no window, spatial_rotary to choose"),
    ],
)
def test_choices_of_another_network_are_refused(
    comfy: Path, tiny_models: Path, version: str, choices: dict[str, Any], said: str
) -> None:
    from opensora.opensora_models.checkpoint.settings import Choices

    with pytest.raises(ValueError, match=f"{said}; leave it on automatic"):
        load(tiny_models, version, choices=Choices(**choices))


def fused(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A split file of 2.0 with one layer for queries, keys and values, and one for all four of a single block."""
    joined: dict[str, torch.Tensor] = {}
    parts = ("q_proj", "k_proj", "v_proj", "v_mlp")
    order = {part: number for number, part in enumerate(parts)}
    for name in sorted(weights, key=lambda name: order.get(name.split(".")[-2], 0)):
        tensor = weights[name]
        layer, _, kind = name.rpartition(".")
        place, _, part = layer.rpartition(".")
        target = ("linear1" if place.startswith("single_blocks") else "qkv") if part in parts else part
        new = f"{place}.{target}.{kind}" if part in parts else name
        joined[new] = torch.cat([joined[new], tensor]) if part in parts and new in joined else tensor
    return joined


def test_a_file_with_fused_projections_is_the_same_network(comfy: Path, tiny_models: Path, tmp_path: Path) -> None:
    """By the released rule fused means interleaved; the settings beside the file say otherwise here."""
    weights = fused(load_file(model_file(tiny_models, "2.0")))
    assert "single_blocks.0.linear1.weight" in weights and "double_blocks.0.txt_attn.qkv.bias" in weights
    save_file(weights, tmp_path / "fused.safetensors")
    latent, want = empty("2.0", 2), sample(load(tiny_models, "2.0"), empty("2.0", 2), steps=2)
    assert relative(sample(open_model(tmp_path / "fused.safetensors"), latent, steps=2), want) > 1e-3
    (tmp_path / "config.json").write_text('{"use_liger_rope": true, "depth": 2, "fused_qkv": true}')
    assert relative(sample(open_model(tmp_path / "fused.safetensors"), latent, steps=2), want) < 1e-5


@pytest.fixture
def core_load(comfy: Path) -> Iterator[Any]:
    """Core's Load Diffusion Model as the pack teaches it, put back afterwards."""
    import comfy.sd

    from opensora.opensora_models.native.core import detection

    before = detection.is_registered()
    detection.register()

    def load_file_with_core(path: Path, **options: Any) -> Any:
        with torch.inference_mode():
            return comfy.sd.load_diffusion_model(str(path), model_options=options)

    yield load_file_with_core
    if not before:
        detection.unregister()


@pytest.mark.parametrize("release", ["2.0", "2.0 high compression"])
def test_cores_loader_reads_every_form(core_load: Any, tiny_models: Path, tmp_path: Path, release: str) -> None:
    path, latent = model_file(tiny_models, release), empty(release, 2, 4, 4)
    weights, want = load_file(path), sample(load(tiny_models, release), latent, steps=2)
    scaled, metadata = with_metadata(scaled_fp8(weights, "_attn."))
    save_file(scaled_fp8(weights, "_attn."), tmp_path / "scaled.safetensors")
    save_file(scaled, tmp_path / "described.safetensors", metadata=metadata)
    save_file(
        {f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}, tmp_path / "in.safetensors"
    )
    forms = {
        "as it is": (core_load(path), 0.0),
        "inside a checkpoint": (core_load(tmp_path / "in.safetensors"), 0.0),
        "bf16": (core_load(path, dtype=torch.bfloat16), 0.02),
        "fp8": (core_load(path, dtype=torch.float8_e4m3fn), 0.4),
        "scaled": (core_load(tmp_path / "scaled.safetensors"), 0.1),
        "described": (core_load(tmp_path / "described.safetensors"), 0.1),
    }
    for name, (model, most) in forms.items():
        away = loss_of(sample(model, latent, steps=2), want)
        assert (0 < away <= most) if most else away == 0, name


def test_cores_loader_follows_the_settings_in_the_file(core_load: Any, tiny_models: Path, tmp_path: Path) -> None:
    settings = {"opensora.config": '{"use_liger_rope": false, "round_time": false}'}
    save_file(load_file(model_file(tiny_models, "2.0")), tmp_path / "told.safetensors", metadata=settings)
    model = core_load(tmp_path / "told.safetensors")
    if model.model.opensora.rotation == "half-split":
        pytest.skip("this ComfyUI tells its detection nothing of a file's metadata")
    assert model.model.opensora == open_model(tmp_path / "told.safetensors").model.opensora
    assert model.model.opensora.rotation == "interleaved" and not model.model.opensora.round_time
