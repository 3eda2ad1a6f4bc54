"""Loading: dtypes, quantised files, settings, core's own loaders, and files that do not fit."""

from __future__ import annotations

import gc
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from support.native import empty, load, model_file, relative, sample, spy
from support.quantised_files import scaled_fp8, with_metadata

pytestmark = pytest.mark.comfy

# How far the stored weights may move the result; storing loses digits, the arithmetic stays float32 on a CPU.
STORAGE = [("fp32", 0.0), ("bf16", 0.05), ("fp16", 0.01), ("fp8_e4m3fn", 0.5), ("fp8_e5m2", 0.8)]


@pytest.fixture
def file(comfy: Path, tiny_models: Path) -> Path:
    return model_file(tiny_models, "1.2")


@pytest.fixture
def weights(file: Path) -> dict[str, torch.Tensor]:
    return load_file(file)


def open_model(path: Path, *args: Any, **kwargs: Any) -> Any:
    from opensora.opensora_models.native.model.loading import load_model

    with torch.inference_mode():
        return load_model(path, *args, **kwargs)


def result_of(model: Any) -> torch.Tensor:
    return sample(model, empty("1.2"), steps=2)


@pytest.fixture(scope="module")
def reference(comfy: Path, tiny_models: Path) -> torch.Tensor:
    return result_of(load(tiny_models, "1.2"))


@pytest.mark.parametrize(("name", "tolerance"), STORAGE)
def test_weight_dtypes_are_stored_as_asked(file: Path, reference: torch.Tensor, name: str, tolerance: float) -> None:
    from opensora.opensora_models.native.model.loading import WEIGHT_DTYPES

    model = open_model(file, name)
    network = model.model.diffusion_model
    dtype = WEIGHT_DTYPES[name]
    assert network.spatial_blocks[0].attn.qkv.weight.dtype == dtype
    small = torch.bfloat16 if dtype.itemsize == 1 else dtype
    assert network.spatial_blocks[0].attn.qkv.bias.dtype == small
    assert network.spatial_blocks[0].scale_shift_table.weight.dtype == small
    assert network.y_embedder.y_embedding.dtype == small
    assert model.model.get_dtype_inference() == torch.float32
    difference = relative(result_of(model), reference)
    assert difference <= tolerance
    assert dtype == torch.float32 or difference > 0


def test_every_weight_is_a_leaf_that_patches_reach(file: Path) -> None:
    network = open_model(file).model.diffusion_model
    branches = [name for name, module in network.named_modules() if list(module.children())]
    owners = {name.rpartition(".")[0] for name, _ in network.named_parameters()}
    assert owners.isdisjoint(branches)
    assert not any(tensor.is_meta for tensor in (*network.parameters(), *network.buffers()))


def test_an_unknown_weight_dtype_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="expected one of default, bf16"):
        open_model(file, "int3")


def test_arithmetic_is_never_float16(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    # A GPU on which ComfyUI would compute in float16.
    monkeypatch.setattr(management, "should_use_fp16", lambda *args, **kwargs: True)
    monkeypatch.setattr(management, "should_use_bf16", lambda *args, **kwargs: True)
    model = open_model(file, "fp16")
    assert model.model.get_dtype() == torch.float16
    assert model.model.get_dtype_inference() == torch.bfloat16
    monkeypatch.setattr(management, "should_use_bf16", lambda *args, **kwargs: False)
    assert open_model(file, "fp16").model.get_dtype_inference() == torch.float32
    assert open_model(file).model.get_dtype_inference() == torch.float32


def test_as_upstream_computes_in_bf16_with_its_own_rounding(file: Path) -> None:
    from opensora.opensora_models.transformer.arithmetic import UpstreamArithmetic

    model = open_model(file, as_upstream=True)
    assert isinstance(model.model.diffusion_model.arithmetic, UpstreamArithmetic)
    with spy() as calls:
        sample(model, empty("1.2", 2), steps=1)
    assert calls[0]["x"].dtype == torch.bfloat16


@pytest.mark.parametrize("prefix", ["model.", "module.", "model.diffusion_model.", "diffusion_model."])
def test_prefixed_and_pickled_files_give_the_same_model(
    weights: dict, reference: torch.Tensor, tmp_path: Path, prefix: str
) -> None:
    prefixed = {prefix + name: tensor for name, tensor in weights.items()}
    torch.save(prefixed, tmp_path / "ema.pt")
    save_file(prefixed, tmp_path / "net.safetensors")
    for name in ("ema.pt", "net.safetensors"):
        assert torch.equal(result_of(open_model(tmp_path / name)), reference)


def test_shards_give_the_same_model(weights: dict, reference: torch.Tensor, tmp_path: Path) -> None:
    names, weight_map = list(weights), {}
    for number in (1, 2):
        shard = f"model-0000{number}-of-00002.safetensors"
        part = names[number - 1 :: 2]
        save_file({name: weights[name] for name in part}, tmp_path / shard)
        weight_map |= dict.fromkeys(part, shard)
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "STDiT3", "depth": 2, "hidden_size": 96}))
    assert torch.equal(result_of(open_model(tmp_path)), reference)


def test_settings_and_choices_decide_what_weights_cannot_tell(comfy: Path, tiny_models: Path, tmp_path: Path) -> None:
    from opensora.opensora_models.checkpoint.settings import Choices
    from opensora.opensora_models.native.model.base_model import opensora_config

    path = tmp_path / "net.safetensors"
    save_file(load_file(model_file(tiny_models, "1.3")), path)
    assert opensora_config(open_model(path)).kernel_size == (8, 8, -1)
    (tmp_path / "config.json").write_text('{"kernel_size": [4, 4, -1], "use_spatial_rope": false}')
    read = opensora_config(open_model(path))
    assert (read.kernel_size, read.use_spatial_rope) == ((4, 4, -1), False)
    chosen = opensora_config(open_model(path, choices=Choices(window=2, spatial_rotary=True)))
    assert (chosen.kernel_size, chosen.use_spatial_rope) == ((2, 2, -1), True)


def test_scaled_fp8_files_are_used_as_they_are(weights: dict, reference: torch.Tensor, tmp_path: Path) -> None:
    save_file(scaled_fp8(weights), tmp_path / "fp8.safetensors")
    model = open_model(tmp_path / "fp8.safetensors")
    layer = model.model.diffusion_model.spatial_blocks[0].attn.qkv
    assert "Quantized" in type(layer.weight).__name__ or "Quantized" in type(layer.weight.data).__name__
    assert 0 < relative(result_of(model), reference) < 0.5


def test_quantised_files_with_metadata_are_used_as_they_are(
    weights: dict, reference: torch.Tensor, tmp_path: Path
) -> None:
    scaled, metadata = with_metadata(scaled_fp8(weights))
    save_file(scaled, tmp_path / "quant.safetensors", metadata=metadata)
    assert 0 < relative(result_of(open_model(tmp_path / "quant.safetensors")), reference) < 0.5
    with pytest.raises(ValueError, match="quantised already"):
        open_model(tmp_path / "quant.safetensors", "bf16")


def test_plain_fp8_files_stay_fp8(weights: dict, reference: torch.Tensor, tmp_path: Path) -> None:
    save_file({name: tensor.to(torch.float8_e4m3fn) for name, tensor in weights.items()}, tmp_path / "f.safetensors")
    assert 0 < relative(result_of(open_model(tmp_path / "f.safetensors")), reference) < 0.8


@pytest.mark.parametrize("version", ["1.2", "1.3", "2.0"])
def test_small_tensors_of_8_bit_models_stay_larger_where_weights_stream(
    comfy: Path, tiny_models: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There ComfyUI brings every tensor to the dtype noted beside it when it reaches the device."""
    import comfy.model_patcher

    class Streaming(comfy.model_patcher.ModelPatcher):
        """A patcher that says of itself what ComfyUI's of dynamic memory says."""

        def is_dynamic(self) -> bool:
            return True

    monkeypatch.setattr(comfy.model_patcher, "CoreModelPatcher", Streaming)
    network = open_model(model_file(tiny_models, version), "fp8_e4m3fn").model.diffusion_model
    small, large = 0, 0
    for module in network.modules():
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            assert getattr(module, f"{name}_comfy_model_dtype") == tensor.dtype, f"{type(module).__name__}.{name}"
            small, large = small + (tensor.dtype == torch.bfloat16), large + (tensor.dtype == torch.float8_e4m3fn)
    assert small > 20 and large > 20


@pytest.mark.parametrize("version", ["1.2", "2.0"])
def test_custom_layer_classes_take_over(comfy: Path, tiny_models: Path, version: str) -> None:
    import comfy.ops

    made = []

    class Operations(comfy.ops.manual_cast):
        """Layers of another pack, which count themselves."""

        class Linear(comfy.ops.manual_cast.Linear):
            """Counts."""

            def __init__(self, *args: Any, **kwargs: Any) -> None:
                super().__init__(*args, **kwargs)
                made.append(self)

    custom = load(tiny_models, version, custom_operations=Operations)
    assert torch.equal(*(sample(model, empty(version), steps=2) for model in (custom, load(tiny_models, version))))
    assert len(made) >= 30


def test_the_factory_makes_an_equal_independent_model(file: Path, reference: torch.Tensor) -> None:
    model = open_model(file, "fp32")
    factory, arguments = model.cached_patcher_init
    for options in ({}, {"disable_dynamic": True}):
        twin = factory(*arguments, **options)
        assert twin.model is not model.model
        assert torch.equal(result_of(twin), reference)


@pytest.fixture
def core_knows(comfy: Path) -> Iterator[None]:
    """Core's detection as the pack registers it, put back afterwards."""
    from opensora.opensora_models.native.core import detection as core_detection

    before = core_detection.is_registered()
    core_detection.register()
    core_detection.register()
    yield
    if not before:
        core_detection.unregister()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_cores_loader_gives_the_same_model(core_knows: None, tiny_models: Path, version: str) -> None:
    import comfy.sd

    with torch.inference_mode():
        core = comfy.sd.load_diffusion_model(str(model_file(tiny_models, version)))
    ours = load(tiny_models, version)
    assert type(core.model).__name__ == "OpenSoraModel"
    assert torch.equal(sample(core, empty(version), steps=2), sample(ours, empty(version), steps=2))


def test_cores_loader_knows_prefixed_files(core_knows: None, weights: dict, reference: Any, tmp_path: Path) -> None:
    import comfy.sd

    path = tmp_path / "saved.safetensors"
    save_file({f"model.diffusion_model.{name}": tensor for name, tensor in weights.items()}, path)
    with torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(path))
    assert torch.equal(result_of(model), reference)


def test_cores_loader_is_told_of_missing_tensors(core_knows: None, weights: dict, tmp_path: Path) -> None:
    import comfy.sd

    weights.pop("final_layer.linear.bias")
    save_file(weights, tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match="lacks 1 tensors, for example 'final_layer.linear.bias'"):
        comfy.sd.load_diffusion_model(str(tmp_path / "net.safetensors"))


def test_detection_leaves_other_models_to_core(core_knows: None) -> None:
    import comfy.model_detection

    flux = {"double_blocks.0.img_attn.norm.key_norm.scale": torch.zeros(4), "img_in.weight": torch.zeros(8, 64)}
    wrapped = comfy.model_detection.detect_unet_config
    original = wrapped.opensora_original
    assert not hasattr(original, "opensora_original"), "registering twice wraps once"
    results = []
    for function in (wrapped, original):
        try:
            results.append(function(dict(flux), ""))
        except Exception as error:  # whatever core says, ours must say the same
            results.append(repr(error))
    assert results[0] == results[1]


def test_detection_can_be_switched_off(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opensora.opensora_models.native.core import detection as core_detection

    for value, wanted in (("0", False), ("off", False), ("1", True), ("", True)):
        monkeypatch.setenv(core_detection.SWITCH, value)
        assert core_detection.is_wanted() is wanted
    monkeypatch.delenv(core_detection.SWITCH)
    assert core_detection.is_wanted()
    before = core_detection.is_registered()
    core_detection.register()
    core_detection.unregister()
    assert not core_detection.is_registered()
    if before:
        core_detection.register()


WRONG = {
    "vae.safetensors": (
        {"encoder.conv_in.weight": (8, 3, 3, 3), "decoder.conv_in.weight": (8, 4, 3, 3)},
        "a Stable Diffusion or SDXL image VAE, which belongs in models/vae",
    ),
    "t5.safetensors": (
        {"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)},
        "a T5 text encoder, which belongs in models/text_encoders",
    ),
    "flux.safetensors": (
        {"double_blocks.0.img_attn.qkv.weight": (4, 4), "single_blocks.0.linear1.weight": (4, 4)},
        "a Flux image model, which ComfyUI's Load Diffusion Model loads",
    ),
    "flux_diffusers.safetensors": (
        {"transformer_blocks.0.attn.to_q.weight": (4, 4), "single_transformer_blocks.0.proj_mlp.weight": (4, 4)},
        "a Flux image model, which ComfyUI's Load Diffusion Model loads",
    ),
    "hunyuan.safetensors": (
        {
            "double_blocks.0.img_attn_qkv.weight": (4, 4),
            "single_blocks.0.linear1.weight": (4, 4),
            "img_in.proj.weight": (4, 16, 1, 2, 2),
            "txt_in.individual_token_refiner.blocks.0.self_attn_qkv.weight": (4, 4),
        },
        "a HunyuanVideo model, which ComfyUI's Load Diffusion Model loads",
    ),
    "hunyuan_diffusers.safetensors": (
        {
            "transformer_blocks.0.attn.to_q.weight": (4, 4),
            "single_transformer_blocks.0.proj_mlp.weight": (4, 4),
            "context_embedder.token_refiner.refiner_blocks.0.attn.to_q.weight": (4, 4),
        },
        "a HunyuanVideo model, which ComfyUI's Load Diffusion Model loads",
    ),
    "wan.safetensors": (
        {
            "blocks.0.self_attn.q.weight": (4, 4),
            "head.modulation": (1, 2, 4),
            "patch_embedding.weight": (4, 16, 1, 2, 2),
        },
        "a Wan video model, which ComfyUI's Load Diffusion Model loads",
    ),
    "wan_diffusers.safetensors": (
        {"blocks.0.attn1.to_q.weight": (4, 4), "condition_embedder.time_embedder.linear_1.weight": (4, 4)},
        "a Wan video model, which ComfyUI's Load Diffusion Model loads",
    ),
    "sd3.safetensors": (
        {"joint_blocks.0.x_block.attn.qkv.weight": (4, 4), "x_embedder.proj.weight": (4, 16, 2, 2)},
        "a Stable Diffusion 3 image model, which ComfyUI's Load Diffusion Model loads",
    ),
    "stdit.safetensors": ({"blocks.0.attn_temp.qkv.weight": (4, 4)}, "an Open-Sora 1.0 diffusion model"),
    "stdit2.safetensors": (
        {"blocks.0.attn_temp.qkv.weight": (4, 4), "t_block_temp.1.weight": (4, 4)},
        "an Open-Sora 1.1 diffusion model",
    ),
    "nothing.safetensors": ({}, "is a file without any tensor"),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_files_are_named_for_what_they_are(comfy: Path, tmp_path: Path, name: str) -> None:
    shapes, look = WRONG[name]
    save_file({key: torch.zeros(shape) for key, shape in shapes.items()}, tmp_path / name)
    with pytest.raises(ValueError, match=look) as error:
        open_model(tmp_path / name)
    assert f"'{name}'" in str(error.value)
    assert str(error.value).endswith("expected an Open-Sora 1.2, 1.3 or 2.0 diffusion model.")


def damaged(weights: dict[str, torch.Tensor], how: str) -> dict[str, torch.Tensor]:
    """The tiny model with one thing wrong."""
    if how == "missing":
        return {name: tensor for name, tensor in weights.items() if not name.startswith("temporal_blocks.1.mlp.")}
    if how == "shape":
        return weights | {"t_block.1.weight": torch.zeros(575, 96)}
    if how == "no config":
        return {name: tensor for name, tensor in weights.items() if name != "y_embedder.y_embedding"}
    return weights | {"x_embedder.proj.weight": torch.zeros(96, 8, 1, 2, 2)}


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("missing", r"lacks 4 of its \d+ tensors, for example 'temporal_blocks.1.mlp.fc1.weight'"),
        ("shape", r"'t_block.1.weight' is \[575, 96\] where \[576, 96\] was expected"),
        ("no config", "is incomplete: .*y_embedder.y_embedding"),
        ("channels", "latents of 8 channels; expected 4"),
    ],
)
def test_damaged_files_leave_nothing_behind(
    weights: dict, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, message: str
) -> None:
    from opensora.opensora_models.checkpoint.opening import Checkpoint
    from opensora.opensora_models.native.model.stdit3_model import OpenSoraModel

    def models() -> int:
        gc.collect()
        return sum(type(thing) is OpenSoraModel for thing in gc.get_objects())

    path = tmp_path / "net.safetensors"
    save_file(damaged(weights, how), path)
    before = models()
    monkeypatch.setattr(Checkpoint, "load", lambda *args: pytest.fail("tensors were read before the file was checked"))
    with pytest.raises(ValueError, match=message) as error:
        open_model(path)
    assert "'net.safetensors'" in str(error.value)
    del error
    assert models() <= before


def test_unused_tensors_are_told(weights: dict, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_file(weights | {"pos_embed": torch.zeros(3)}, tmp_path / "net.safetensors")
    open_model(tmp_path / "net.safetensors")
    assert "1 tensors that are not used, for example 'pos_embed'" in caplog.text


def test_the_file_may_change_or_go_after_loading(weights: dict, reference: torch.Tensor, tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(weights, path)
    model = open_model(path)
    path.write_bytes(b"something else")
    assert torch.equal(result_of(model), reference)


def test_the_node_loads_and_fingerprints(comfy: Path, tiny_models: Path, reference: torch.Tensor) -> None:
    from opensora.nodes.model_loader import ModelLoader
    from support.comfyui import show_models

    show_models(tiny_models)
    name = "random-v1.2.safetensors"
    options = next(entry for entry in ModelLoader.define_schema().inputs if entry.id == "model_name").options
    assert name in options
    with torch.inference_mode():
        (model,) = ModelLoader.execute(name, "default", "accurate", 0, "automatic").result
    assert torch.equal(result_of(model), reference)
    before = ModelLoader.fingerprint_inputs(name)
    file = model_file(tiny_models, "1.2")
    with safe_open(file, "pt") as opened:
        metadata = opened.metadata()
    save_file(load_file(file), file, metadata=metadata)
    assert ModelLoader.fingerprint_inputs(name) != before
    with pytest.raises(ValueError, match="not in models/diffusion_models any more"):
        ModelLoader.execute("gone.safetensors", "default", "accurate", 0, "automatic")


def test_demo_folders_are_merged_and_not_replaced(comfy: Path, tmp_path: Path) -> None:
    import folder_paths

    from opensora.opensora_models.native import folders

    (tmp_path / "vae").mkdir()
    before = list(folder_paths.folder_names_and_paths["vae"][0])
    try:
        assert folders.register_demo_models(tmp_path) == ["vae"]
        assert folders.register_demo_models(tmp_path) == ["vae"]
        paths, endings = folder_paths.folder_names_and_paths["vae"]
        assert paths == [*before, str(tmp_path / "vae")]
        assert ".safetensors" in endings
    finally:
        folder_paths.folder_names_and_paths["vae"] = (before, folder_paths.folder_names_and_paths["vae"][1])


def test_no_text_is_refused(file: Path) -> None:
    with pytest.raises(ValueError, match="no text"):
        sample(open_model(file), empty("1.2"), [[None, {}]])
