"""Core's features with our MODEL, unchanged: samplers, LoRA, caching, compiling, merging, saving, several devices."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from support.native import CHANNELS, POOLED, conditioning, empty, load, model_file, randn, relative, sample, spy
from support.sources import source, source_nodes

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = pytest.mark.comfy

VERSIONS = ("1.2", "1.3", "2.0")


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(comfy: Path, tiny_models: Path, version: str) -> Any:
    return load(tiny_models, version)


@pytest.fixture
def sources(executor: Executor) -> Iterator[dict[str, Any]]:
    """What the source nodes of a prompt give."""
    with source_nodes() as values:
        yield values


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def loader(version: str) -> dict[str, Any]:
    """Our node with its defaults."""
    return node(
        "OSoraModelLoader",
        model_name=f"random-v{version}.safetensors",
        weight_dtype="default",
        rounding="accurate",
        window=0,
        spatial_rotary="automatic",
    )


def inputs_for(values: dict[str, Any], version: str, frames: int = 5) -> None:
    values["positive"], values["negative"] = conditioning(9), conditioning(4, seed=2)
    values["latent"] = {"samples": empty(version, frames)}


def ksampler(sampler: str, steps: int = 3, model: Any = "1") -> dict[str, dict[str, Any]]:
    return {
        "2": source("positive"),
        "3": source("negative"),
        "4": source("latent"),
        "5": node(
            "KSampler", model=[model, 0], positive=["2", 0], negative=["3", 0], latent_image=["4", 0], seed=11,
            steps=steps, cfg=4.0, sampler_name=sampler, scheduler="simple", denoise=1.0,
        ),
    }  # fmt: skip


@pytest.mark.parametrize("frames", [5, 1])
@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "uni_pc", "euler_ancestral", "heun", "res_multistep"])
def test_ksampler(executor: Executor, sources: dict, version: str, sampler: str, frames: int) -> None:
    inputs_for(sources, version, frames)
    (latent,) = executor.run({"1": loader(version), **ksampler(sampler)}, ("5", 0))
    assert latent["samples"].shape == empty(version, frames).shape
    assert latent["samples"].isfinite().all() and latent["samples"].std() > 0.1


def test_different_samplers_agree_when_the_steps_are_small(model: Any, version: str) -> None:
    fine = {name: sample(model, empty(version), steps=60, cfg=1.0, sampler=name) for name in ("euler", "dpmpp_2m")}
    assert relative(fine["euler"], fine["dpmpp_2m"]) < 0.05


def test_sampler_custom_advanced(executor: Executor, sources: dict, version: str) -> None:
    inputs_for(sources, version)
    graph = {"1": loader(version), **ksampler("euler")}
    graph |= {
        "6": node("CFGGuider", model=["1", 0], positive=["2", 0], negative=["3", 0], cfg=4.0),
        "7": node("KSamplerSelect", sampler_name="euler"),
        "8": node("BasicScheduler", model=["1", 0], scheduler="simple", steps=3, denoise=1.0),
        "9": node("RandomNoise", noise_seed=11),
        "10": node(
            "SamplerCustomAdvanced",
            noise=["9", 0], guider=["6", 0], sampler=["7", 0], sigmas=["8", 0], latent_image=["4", 0],
        ),
    }  # fmt: skip
    plain, custom = executor.run(graph, ("5", 0), ("10", 0))
    assert torch.equal(plain["samples"], custom["samples"])


STDIT3_TARGETS = {
    "spatial_blocks.0.attn.qkv": (288, 96),
    "temporal_blocks.1.mlp.fc2": (96, 384),
    "y_embedder.y_proj.fc1": (96, 64),
}
TARGETS = {
    "1.2": STDIT3_TARGETS | {"final_layer.linear": (4 * 2 * 4, 96)},
    "1.3": STDIT3_TARGETS | {"final_layer.linear": (4 * 2 * 16, 96)},
    "2.0": {
        "double_blocks.0.img_attn.q_proj": (64, 64),
        "double_blocks.1.txt_mlp.2": (64, 256),
        "single_blocks.1.v_mlp": (320, 64),
        "cond_in": (64, 68),
    },
}
TABLES = {
    "1.2": "spatial_blocks.1.scale_shift_table",
    "1.3": "spatial_blocks.1.scale_shift_table",
    "2.0": "single_blocks.0.modulation.lin.bias",
}
"""A tensor of each that is no matrix of a layer."""


def difference_of(table: str) -> str:
    """The name of a difference of such a tensor in a LoRA."""
    return f"diffusion_model.{table.removesuffix('.bias')}.{'diff_b' if table.endswith('.bias') else 'diff'}"


def lora_file(folder: Path, version: str, rank: int = 3, alpha: float = 6.0) -> Path:
    """A LoRA with low-rank pairs for layers and a difference for a modulation table."""
    tensors = {}
    for number, (name, (rows, columns)) in enumerate(TARGETS[version].items()):
        tensors[f"diffusion_model.{name}.lora_A.weight"] = randn(rank, columns, seed=number) * 0.1
        tensors[f"diffusion_model.{name}.lora_B.weight"] = randn(rows, rank, seed=100 + number) * 0.1
        tensors[f"diffusion_model.{name}.alpha"] = torch.tensor(alpha)
    shape = (192,) if version == "2.0" else (6, 96)
    tensors[difference_of(TABLES[version])] = randn(*shape, seed=50) * 0.2
    save_file(tensors, folder / "lora.safetensors")
    return folder / "lora.safetensors"


def weights_with_lora(
    weights: dict[str, Tensor], lora: dict[str, Tensor], strength: float, version: str
) -> dict[str, Tensor]:
    """W + strength · alpha/rank · B·A, written out."""
    changed = dict(weights)
    for name in TARGETS[version]:
        a, b, alpha = (lora[f"diffusion_model.{name}.{part}"] for part in ("lora_A.weight", "lora_B.weight", "alpha"))
        changed[f"{name}.weight"] = weights[f"{name}.weight"] + strength * alpha / a.shape[0] * (b @ a)
    table = TABLES[version]
    if difference_of(table) in lora:
        changed[table] = weights[table] + strength * lora[difference_of(table)]
    return changed


@pytest.mark.parametrize("bypass", [False, True])
def test_a_lora_changes_the_output_as_its_algebra_says(
    model: Any, tiny_models: Path, tmp_path: Path, version: str, bypass: bool
) -> None:
    import comfy.sd

    from opensora.opensora_models.native.model.loading import load_model

    lora = load_file(lora_file(tmp_path, version))
    if bypass and not hasattr(comfy.sd, "load_bypass_lora_for_models"):
        pytest.skip("this ComfyUI has no bypass LoRA")
    apply = comfy.sd.load_bypass_lora_for_models if bypass else comfy.sd.load_lora_for_models
    plain = sample(model, empty(version), steps=2)
    if bypass:
        lora = {name: tensor for name, tensor in lora.items() if not name.endswith((".diff", ".diff_b"))}
    patched, _ = apply(model, None, dict(lora), 0.7, 0.0)
    result = sample(patched, empty(version), steps=2)
    file = model_file(tiny_models, version)
    save_file(weights_with_lora(load_file(file), lora, 0.7, version), tmp_path / "changed.safetensors")
    want = sample(load_model(tmp_path / "changed.safetensors"), empty(version), steps=2)
    assert relative(result, want) < 1e-4
    assert relative(result, plain) > 0.01
    assert torch.equal(sample(model, empty(version), steps=2), plain), "the weights came back"


@pytest.mark.parametrize("version", ["1.2", "2.0"])
def test_a_lora_on_bf16_and_fp8_weights_follows_the_float32_one(
    tiny_models: Path, tmp_path: Path, comfy: Path, version: str
) -> None:
    import comfy.sd

    lora = load_file(lora_file(tmp_path, version))
    results = {}
    for dtype in ("fp32", "bf16", "fp8_e4m3fn"):
        patched, _ = comfy.sd.load_lora_for_models(load(tiny_models, version, weight_dtype=dtype), None, lora, 1.0, 0.0)
        results[dtype] = sample(patched, empty(version), steps=2)
    assert 0 < relative(results["bf16"], results["fp32"]) < 0.05
    assert 0 < relative(results["fp8_e4m3fn"], results["fp32"]) < 0.6


def test_easycache_leaves_out_forwards(executor: Executor, sources: dict, version: str) -> None:
    inputs_for(sources, version)
    graph = {"1": loader(version), **ksampler("euler", 12, model="6")}
    graph["6"] = node(
        "EasyCache", model=["1", 0], reuse_threshold=1.0, start_percent=0.15, end_percent=0.95, verbose=False
    )
    with spy() as calls:
        (latent,) = executor.run(graph, ("5", 0))
    assert latent["samples"].isfinite().all()
    assert 4 <= sum(len(call["x"]) for call in calls) < 24


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["eager", "aot_eager", "inductor"])
def test_a_compiled_model_gives_the_same(model: Any, version: str, backend: str) -> None:
    if importlib.util.find_spec("comfy_api.torch_helpers") is None:
        pytest.skip("this ComfyUI has no torch.compile helper")
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    plain = sample(model, empty(version, 2), steps=2)
    compiled = model.clone()
    set_torch_compile_wrapper(model=compiled, backend=backend)
    try:
        assert relative(sample(compiled, empty(version, 2), steps=2), plain) < 1e-4
    finally:
        torch._dynamo.reset()


def test_merging_is_the_mean_of_the_weights_tables_included(
    executor: Executor, sources: dict, tiny_models: Path, tmp_path: Path, version: str
) -> None:
    from opensora.opensora_models.native.model.loading import load_model

    first = load_file(model_file(tiny_models, version))
    second = {name: tensor + 0.05 * randn(*tensor.shape, seed=3) for name, tensor in first.items()}
    save_file(second, tmp_path / "second.safetensors")
    sources["second"] = load_model(tmp_path / "second.safetensors")
    inputs_for(sources, version)
    graph = {"1": loader(version), "6": source("second"), **ksampler("euler", 2, model="7")}
    graph["7"] = node("ModelMergeSimple", model1=["1", 0], model2=["6", 0], ratio=0.25)
    (latent,) = executor.run(graph, ("5", 0))
    mean = {name: 0.25 * tensor + 0.75 * second[name] for name, tensor in first.items()}
    # Not trained and so not parameters: ComfyUI leaves them the first model's.
    mean |= {name: first[name] for name in ("y_embedder.y_embedding", "rope.freqs") if name in first}
    save_file(mean, tmp_path / "mean.safetensors")
    want = sample(
        load_model(tmp_path / "mean.safetensors"), empty(version), conditioning(9), conditioning(4, seed=2),
        steps=2, noise=_noise(version),
    )  # fmt: skip
    assert relative(latent["samples"], want) < 1e-4


def _noise(version: str, seed: int = 11) -> Tensor:
    """The noise KSampler draws for a seed."""
    import comfy.sample

    return comfy.sample.prepare_noise(empty(version), seed, None)


def test_saving_and_loading_again_is_bit_equal(
    executor: Executor, sources: dict, tiny_models: Path, version: str
) -> None:
    import folder_paths

    from opensora.opensora_models.checkpoint.opening import open_checkpoint
    from opensora.opensora_models.native.model.loading import load_model

    executor.run({"1": loader(version), "2": node("ModelSave", model=["1", 0], filename_prefix=f"saved/{version}/net")})
    (saved,) = (Path(folder_paths.get_output_directory()) / "saved" / version).glob("net*.safetensors")
    original = load_file(model_file(tiny_models, version))
    written = open_checkpoint(saved)
    assert written.prefix == "model.diffusion_model."
    again = written.load()
    assert again.keys() == original.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in original.items())
    assert torch.equal(
        sample(load_model(saved), empty(version), steps=1), sample(load(tiny_models, version), empty(version), steps=1)
    )


def test_a_clone_for_another_device_is_equal_and_independent(model: Any, version: str) -> None:
    if not hasattr(model, "deepclone_multigpu"):
        pytest.skip("this ComfyUI has no multi-GPU support")
    clone = model.deepclone_multigpu(new_load_device=torch.device("cpu"))
    assert clone.model is not model.model
    assert torch.equal(sample(clone, empty(version), steps=1), sample(model, empty(version), steps=1))


def test_the_multigpu_node_accepts_the_model(executor: Executor, sources: dict, version: str) -> None:
    if importlib.util.find_spec("comfy_extras.nodes_multigpu") is None:
        pytest.skip("this ComfyUI has no multi-GPU nodes")
    inputs_for(sources, version)
    graph = {"1": loader(version), **ksampler("euler", 2, model="6")}
    graph["6"] = node("MultiGPU_WorkUnits", model=["1", 0], max_gpus=2)
    split, plain = executor.run(graph | {"7": node("KSampler", **(graph["5"]["inputs"] | {"model": ["1", 0]}))},
                                ("5", 0), ("7", 0))  # fmt: skip
    assert torch.equal(split["samples"], plain["samples"])


def conds_of(version: str, height: int, width: int) -> dict[str, Any]:
    """What the network is called with for one row without references."""
    if version == "2.0":
        return {"text": randn(1, 6, 64), "pooled": randn(1, POOLED)}
    return {"text": [randn(6, 64)], "frame_rate": torch.tensor([24_000_000]), "height": height, "width": width}


def test_partly_loaded_weights_give_the_same(model: Any, version: str, tmp_path: Path) -> None:
    import comfy.sd

    lora = load_file(lora_file(tmp_path, version))
    patched, _ = comfy.sd.load_lora_for_models(model, None, lora, 0.7, 0.0)
    network_input = randn(1, CHANNELS[version], 3, 8, 10)
    conds = conds_of(version, 64, 80) | {"transformer_options": {}}

    def predict() -> Tensor:
        with torch.inference_mode():
            patched.model.current_patcher = patched
            return patched.model.apply_model(network_input, torch.tensor([0.6]), **conds)

    with torch.inference_mode():
        patched.load(torch.device("cpu"), full_load=True)
    whole = predict()
    patched.detach()
    with torch.inference_mode():
        patched.load(torch.device("cpu"), lowvram_model_memory=60_000)
    streamed = [m for m in patched.model.diffusion_model.modules() if getattr(m, "comfy_cast_weights", False)]
    assert len(streamed) > 20
    assert relative(predict(), whole) < 1e-5
    patched.detach()


def test_interrupt_ends_inside_a_step(model: Any, version: str) -> None:
    import comfy.model_management as management

    ran = []

    def block(number: int) -> Any:
        def run(args: dict, extra: dict) -> dict:
            ran.append(number)
            if number == 1:
                management.interrupt_current_processing(True)
            return extra["original_block"](args)

        return run

    stopped = model.clone()
    for number in range(4):
        stopped.set_model_patch_replace(block(number), "dit", "double_block", number)
    with pytest.raises(management.InterruptProcessingException):
        sample(stopped, empty(version))
    assert ran == [0, 1]
    assert sample(model, empty(version), steps=1).isfinite().all()


def test_differential_diffusion_gives_the_same_frames(executor: Executor, sources: dict, version: str) -> None:
    inputs_for(sources, version)
    mask = torch.tensor([0.0, 1.0, 1.0, 1.0, 0.0]).reshape(1, 1, 5, 1, 1)
    sources["latent"] = {"samples": randn(*empty(version).shape), "noise_mask": mask}
    graph = {"1": loader(version), **ksampler("euler")}
    graph["6"] = node("DifferentialDiffusion", model=["1", 0])
    graph["7"] = node("KSampler", **(graph["5"]["inputs"] | {"model": ["6", 0]}))
    ours, core = executor.run(graph, ("5", 0), ("7", 0))
    assert relative(core["samples"], ours["samples"]) < 1e-5


def test_skip_layer_guidance_finds_the_blocks(executor: Executor, sources: dict, version: str) -> None:
    inputs_for(sources, version)
    graph = {"1": loader(version), **ksampler("euler", 3, model="6")}
    graph["6"] = node(
        "SkipLayerGuidanceDiT", model=["1", 0], double_layers="1", single_layers="", scale=2.0,
        start_percent=0.0, end_percent=1.0, rescaling_scale=0.0,
    )  # fmt: skip
    graph["7"] = node("KSampler", **(graph["5"]["inputs"] | {"model": ["1", 0]}))
    skipped, plain = executor.run(graph, ("5", 0), ("7", 0))
    assert relative(skipped["samples"], plain["samples"]) > 1e-3


def test_training_reaches_every_layer(model: Any, version: str) -> None:
    """Gradients flow to inputs and weights, so LoRA trainers work; nothing is modified in place."""
    network = model.model.diffusion_model
    with torch.inference_mode(False), torch.enable_grad():
        from opensora.opensora_models.native.model.loading import load_model

        network = load_model(*model.cached_patcher_init[1]).model.diffusion_model.requires_grad_(True)
        x = randn(1, CHANNELS[version], 2, 6, 6).requires_grad_()
        before = x.detach().clone()
        out = network(x, torch.tensor([500.0]), **conds_of(version, 48, 48))
        out.square().mean().backward()
    assert torch.equal(x.detach(), before) and x.grad is not None
    unused = {"x_embedder_cond", "x_embedder_cond_mask"}  # no frames are given here
    silent = [
        name
        for name, parameter in network.named_parameters()
        if parameter.grad is None and name.split(".")[0] not in unused | {"rope"}
    ]
    assert silent == []
