"""LoRAs of every trainer's naming and every kind that ComfyUI knows, patched into the weights and in bypass mode."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.native import CHANNELS, conditioning, empty, load, randn, relative, sample

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

WIDTH, RANK = 96, 4
LAYERS = {
    "spatial_blocks.0.attn.qkv": (3 * WIDTH, WIDTH),
    "temporal_blocks.1.mlp.fc2": (WIDTH, 4 * WIDTH),
    "spatial_blocks.1.scale_shift_table": (6, WIDTH),
    "t_block.1": (6 * WIDTH, WIDTH),
}
LAYERS_OF_2 = {
    "double_blocks.0.img_attn.q_proj": (64, 64),
    "double_blocks.1.txt_mlp.2": (64, 256),
    "single_blocks.1.v_mlp": (320, 64),
    "cond_in": (64, 68),
}
OF = {"1.2": LAYERS, "2.0": LAYERS_OF_2}

Tensors = dict[str, Tensor]


def low_rank(up: str, down: str) -> Any:
    def make(rows: int, columns: int, seed: int) -> Tensors:
        pair = {up: randn(rows, RANK, seed=seed), down: 0.1 * randn(RANK, columns, seed=seed + 1)}
        return pair | {"alpha": torch.tensor(2.0)}

    return make


def loha(rows: int, columns: int, seed: int) -> Tensors:
    shapes = {"hada_w1_a": (rows, RANK), "hada_w1_b": (RANK, columns)} | {
        "hada_w2_a": (rows, RANK), "hada_w2_b": (RANK, columns),
    }  # fmt: skip
    return {name: 0.3 * randn(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


def lokr(rows: int, columns: int, seed: int) -> Tensors:
    return {"lokr_w1": randn(2, 2, seed=seed), "lokr_w2": 0.05 * randn(rows // 2, columns // 2, seed=seed + 1)}


def glora(rows: int, columns: int, seed: int) -> Tensors:
    shapes = {
        "a1.weight": (RANK, columns), "a2.weight": (columns, RANK), "b1.weight": (RANK, columns),
        "b2.weight": (rows, RANK),
    }  # fmt: skip
    return {name: 0.1 * randn(*shape, seed=seed + i) for i, (name, shape) in enumerate(shapes.items())}


def oft(rows: int, columns: int, seed: int) -> Tensors:
    return {"oft_blocks": 0.1 * randn(rows // 2, 2, 2, seed=seed)}


def boft(rows: int, columns: int, seed: int) -> Tensors:
    return {"oft_blocks": 0.1 * randn(1, rows // 2, 2, 2, seed=seed), "alpha": torch.tensor(0.0)}


KINDS: dict[str, Any] = {
    "lora, kohya": low_rank("lora_up.weight", "lora_down.weight"),
    "lora, PEFT": low_rank("lora_B.weight", "lora_A.weight"),
    "lora, mochi": low_rank("lora_B", "lora_A"),
    "lora, diffusers": low_rank("lora_linear_layer.up.weight", "lora_linear_layer.down.weight"),
    "dora": lambda rows, columns, seed: {
        **low_rank("lora_up.weight", "lora_down.weight")(rows, columns, seed), "dora_scale": 1 + randn(rows, 1).abs(),
    },
    "loha": loha,
    "lokr": lokr,
    "glora": glora,
    "oft": oft,
    "boft": boft,
    "diff": lambda rows, columns, seed: {"diff": randn(rows, columns, seed=seed)},
    "set": lambda rows, columns, seed: {"set_weight": randn(rows, columns, seed=seed)},
}  # fmt: skip
POINTS = (
    "base_model.model.", "transformer.", "", "module.", "model.diffusion_model.", "diffusion_model.",
    "base_model.model.transformer.", "unet.base_model.model.", "_orig_mod.module.", "model.",
)  # fmt: skip
UNDERLINES = ("lycoris_", "lora_transformer_", "lora_unet_")


def written(kind: str, prefix: str, default: bool = False, layers: dict[str, tuple[int, int]] = LAYERS) -> Tensors:
    """A LoRA of one kind for all layers; ``default`` puts in PEFT's adapter name, as its own files have it."""
    found = {}
    for number, (layer, (rows, columns)) in enumerate(layers.items()):
        name = prefix + (layer.replace(".", "_") if prefix in UNDERLINES else layer)
        for ending, tensor in KINDS[kind](rows, columns, 10 * number).items():
            first, *rest = ending.split(".")
            middle = ["default"] if default and first not in ("alpha", "dora_scale", "diff", "set_weight") else []
            found[".".join([name, first, *middle, *rest])] = tensor
    return found


@pytest.fixture(autouse=True)
def _names(comfy: Path) -> Iterator[None]:
    """The wrapper, as start-up registers it, and core as it was afterwards."""
    from opensora.opensora_models.native.core import lora_names

    before = lora_names.is_registered()
    lora_names.register()
    yield
    if not before:
        lora_names.unregister()


@pytest.fixture(scope="module")
def model(comfy: Path, tiny_models: Path) -> Any:
    return load(tiny_models, "1.2")


def patched_weights(model: Any, lora: Tensors) -> Tensors:
    """The weights a LoRA touches, after it."""
    import comfy.lora
    import comfy.sd

    with torch.inference_mode():
        patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 0.7, 0.0)
        weights = patched.model.state_dict()
        return {
            key: comfy.lora.calculate_weight(patches, weights[key].clone(), key)
            for key, patches in patched.patches.items()
        }


@pytest.fixture(scope="module")
def models(model: Any, tiny_models: Path) -> dict[str, Any]:
    return {"1.2": model, "2.0": load(tiny_models, "2.0")}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", OF)
def test_every_prefix_gives_what_the_core_name_gives(models: dict[str, Any], version: str, kind: str) -> None:
    model, layers = models[version], OF[version]
    want = patched_weights(model, written(kind, "diffusion_model.", layers=layers))
    weights = model.model.state_dict()
    assert want.keys() == {f"diffusion_model.{layer}.weight" for layer in layers}
    assert all(relative(tensor, weights[key]) > 1e-3 for key, tensor in want.items())
    for prefix in (*POINTS, *UNDERLINES):
        for default in (False, True):
            got = patched_weights(model, written(kind, prefix, default, layers))
            assert got.keys() == want.keys(), (prefix, default)
            assert all(torch.equal(got[key], want[key]) for key in want), (prefix, default)


def test_core_alone_does_not_know_them(model: Any) -> None:
    """Else the wrapper is not needed any more."""
    from opensora.opensora_models.native.core import lora_names

    lora_names.unregister()
    assert not lora_names.is_registered()
    assert not patched_weights(model, written("lora, PEFT", "base_model.model."))


def test_another_models_lora_is_told_apart_in_one_sentence(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    import comfy.sd

    foreign = {"transformer.double_blocks.0.img_attn.qkv.lora_A.weight": randn(RANK, 32)}
    with caplog.at_level(logging.WARNING, logger="opensora"):
        patched, _ = comfy.sd.load_lora_for_models(model, None, foreign, 1.0, 0.0)
    (line,) = [record.getMessage() for record in caplog.records if record.name == "opensora"]
    assert "changes nothing" in line and "double_blocks.0.img_attn" in line
    assert not patched.patches


@pytest.mark.parametrize("kind", KINDS)
def test_a_loader_says_on_itself_how_much_of_a_lora_fits(
    models: dict[str, Any], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.sd
    from comfy_execution.utils import CurrentNodeContext

    from opensora.opensora_models.native import messages

    shown: dict[str | None, str] = {}
    monkeypatch.setattr(messages, "show_on_node", shown.__setitem__)
    own, others = (written(kind, "transformer.", layers=layers) for layers in (LAYERS, LAYERS_OF_2))
    for number, lora in enumerate((own, others, own | others)):
        with CurrentNodeContext("prompt", str(number)):
            comfy.sd.load_lora_for_models(models["1.2"], None, lora, 1.0, 0.0)
    assert shown.keys() == {"1", "2"}
    assert f"changes nothing: none of its {len(others)} tensors" in shown["1"]
    assert shown["2"].startswith(f"{len(others)} of {len(own | others)} tensors of this LoRA")


def test_other_models_are_left_to_core(comfy: Path) -> None:
    import comfy.lora

    names = {"diffusion_model.blocks.0.qkv": "diffusion_model.blocks.0.qkv.weight"}
    lora = {f"transformer.blocks.0.qkv.lora_{half}.weight": randn(4, 4) for half in "AB"}
    assert comfy.lora.load_lora(lora, names) == {}


def test_a_file_with_both_names_of_a_layer_keeps_cores(model: Any) -> None:
    both = written("diff", "diffusion_model.") | {
        name: 2 * tensor for name, tensor in written("diff", "transformer.").items()
    }
    want = patched_weights(model, written("diff", "diffusion_model."))
    got = patched_weights(model, both)
    assert all(torch.equal(got[key], want[key]) for key in want)


def bypass_loader() -> Any:
    import comfy.sd

    if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no bypass LoRA")
    return comfy.sd.load_bypass_lora_for_models


def refused_by_core(kind: str) -> bool:
    """Whether core's bypass of this kind fails on an ordinary linear layer already: no model can use it then."""
    import comfy.ops
    import comfy.weight_adapter as adapters

    rows, columns = LAYERS["spatial_blocks.0.attn.qkv"]
    lora = {f"x.{ending}": tensor for ending, tensor in KINDS[kind](rows, columns, 0).items()}
    found = [each.load("x", lora, 1.0, None, set()) for each in adapters.adapters]
    layer = comfy.ops.manual_cast.Linear(columns, rows)
    layer.weight, layer.bias = (torch.nn.Parameter(randn(*shape)) for shape in ((rows, columns), (rows,)))
    for adapter in filter(None, found):
        hook = adapters.BypassForwardHook(layer, adapter)
        hook.inject()
        try:
            layer(randn(1, 5, columns))
        except RuntimeError:
            return True
        finally:
            hook.eject()
    return False


# In bypass mode core leaves the norm of DoRA out, and turns what the layer gives instead of its weights: BOFT.
SAME_IN_BYPASS = ("lora, kohya", "lora, PEFT", "lora, mochi", "lora, diffusers", "loha", "lokr", "diff", "set")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("version", OF)
def test_bypass_mode_reaches_every_layer_tables_included(models: dict[str, Any], version: str, kind: str) -> None:
    import comfy.sd

    model, apply, lora = models[version], bypass_loader(), written(kind, "transformer.", layers=OF[version])
    if refused_by_core(kind):
        pytest.skip("core's own bypass of this kind fails on every linear layer")
    patched, _ = comfy.sd.load_lora_for_models(model, None, dict(lora), 0.7, 0.0)
    bypassed, _ = apply(model, None, dict(lora), 0.7, 0.0)
    plain, want, got = (sample(each, empty(version, 2), steps=1) for each in (model, patched, bypassed))
    assert got.isfinite().all() and relative(got, plain) > 1e-3
    if kind in SAME_IN_BYPASS:
        assert relative(got, want) < 1e-4
    assert torch.equal(sample(model, empty(version, 2), steps=1), plain), "the layers came back"


def test_bypass_of_a_table_alone_is_exact(model: Any) -> None:
    import comfy.sd

    lora = {name: tensor for name, tensor in written("lora, PEFT", "").items() if "scale_shift_table" in name}
    patched, _ = comfy.sd.load_lora_for_models(model, None, dict(lora), 1.0, 0.0)
    bypassed, _ = bypass_loader()(model, None, dict(lora), 1.0, 0.0)
    plain, want, got = (sample(each, empty("1.2", 2), steps=1) for each in (model, patched, bypassed))
    assert relative(want, plain) > 1e-3 and relative(got, want) < 1e-5


# Core has no formula for training LoHa in bypass mode, and its bypass of OFT fails at every convolution.
TRAININGS = (("LoRA", False), ("LoRA", True), ("LoKr", True), ("LoHa", False), ("OFT", False))


@pytest.mark.parametrize(("algorithm", "bypass"), TRAININGS)
@pytest.mark.parametrize("version", ["1.2", "1.3", "2.0"])
def test_train_loras_own_output_loads_everywhere(
    comfy: Path, tiny_models: Path, version: str, algorithm: str, bypass: bool
) -> None:
    import comfy.sd
    import comfy_extras.nodes_train as train

    model, loaders = load(tiny_models, version), [comfy.sd.load_lora_for_models]
    if "force_deepcopy" not in inspect.signature(model.clone).parameters:
        pytest.skip("this ComfyUI trains on weights that were loaded without gradients")
    if algorithm != "OFT":
        loaders.append(bypass_loader())
    settings = {
        "batch_size": 1, "steps": 2, "grad_accumulation_steps": 1, "learning_rate": 1e-2, "rank": 2,
        "optimizer": "AdamW", "loss_function": "MSE", "seed": 1, "training_dtype": "fp32", "lora_dtype": "fp32",
        "quantized_backward": False, "algorithm": algorithm, "gradient_checkpointing": True, "checkpoint_depth": 1,
        "offloading": False, "existing_lora": "[None]", "bucket_mode": False, "bypass_mode": bypass,
    }  # fmt: skip
    with torch.inference_mode():
        lora, losses, steps = train.TrainLoraNode.execute(
            model=[model], latents=[{"samples": randn(1, CHANNELS[version], 2, 8, 8)}], positive=[conditioning()],
            **{name: [value] for name, value in settings.items()},
        ).result  # fmt: skip
    assert steps == 2 and len(losses["loss"]) == 2
    tables = [name for name in lora if "scale_shift_table" in name or ".modulation.lin" in name]
    assert tables and any(lora[name].abs().max() > 0 for name in tables)
    plain = sample(model, empty(version, 2), steps=1)
    for apply in loaders:
        results = []
        for prefix in ("diffusion_model.", "transformer."):
            named = {prefix + name.removeprefix("diffusion_model."): tensor for name, tensor in lora.items()}
            results.append(sample(apply(model, None, named, 1.0, 0.0)[0], empty(version, 2), steps=1))
        assert results[0].isfinite().all() and relative(results[0], plain) > 1e-4
        assert torch.equal(*results)


def test_start_up_registers_the_names_unless_switched_off(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opensora.opensora_models.native.core import detection as core_detection
    from opensora.opensora_models.native.core import lora_names, startup

    for value, registered in (("0", False), ("1", True)):
        lora_names.unregister()
        monkeypatch.setenv(core_detection.SWITCH, value)
        startup.start()
        assert lora_names.is_registered() is registered
