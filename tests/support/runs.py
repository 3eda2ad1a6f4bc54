"""Tiny long videos, and all single changes of what one is made from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.sampling.factor_curve import read_curve
from support.native import conditioning, empty, load, randn

BIG = "blocks.0.mlp.fc1.weight"
"""Ending of a tensor too large to have been looked at once."""


def rooms() -> SimpleNamespace:
    """The parts under test, once ComfyUI is there."""
    from opensora.opensora_models.native import identity
    from opensora.opensora_models.native.model import loading as model_loading
    from opensora.opensora_models.native.sampling import clips, guiders, long_video, reference_inputs, samplers
    from opensora.opensora_models.native.vae import decoding, vae
    from opensora.opensora_models.sampling import guidance, references

    return SimpleNamespace(
        clips=clips, decoding=decoding, guiders=guiders, identity=identity, inputs=reference_inputs, long=long_video,
        loading=model_loading, references=references, samplers=samplers, guidance=guidance, vae=vae,
    )  # fmt: skip


@dataclass
class Run:
    """A long video of one or two tiny segments."""

    native: SimpleNamespace
    models: Path
    version: str
    inputs: Any
    video: Any

    @classmethod
    def make(cls, native: SimpleNamespace, models: Path, version: str = "1.2", **options: Any) -> Run:
        model = load(models, version, **options)
        chain = native.inputs.ReferenceChain(
            (native.references.Reference(randn(*empty(version, 1).shape[1:], seed=3)),)
        )
        inputs = native.long.Inputs(model, conditioning(), conditioning(5, 2), {"samples": empty(version, 10)}, chain)
        run = native.clips.ClipRun(steps=3, seed=7, cfg=4.0, image_cfg=3.0)
        return cls(native, models, version, inputs, native.long.LongVideo(segments=2, overlap=5, run=run))

    def of(self, **changes: Any) -> Run:
        return replace(self, inputs=replace(self.inputs, **changes))

    def patched(self, patch: Callable[[Any], Any]) -> Run:
        return self.of(model=patch(self.inputs.model))

    def settings(self, **changes: Any) -> Run:
        return replace(self, video=replace(self.video, **changes))

    def sampling(self, **changes: Any) -> Run:
        return self.settings(run=replace(self.video.run, **changes))

    def positive(self, **values: Any) -> Run:
        return self.of(positive=[[text, {**extra, **values}] for text, extra in self.inputs.positive])

    def latent(self, **values: Any) -> Run:
        return self.of(latent={**self.inputs.latent, **values})

    def reference(self, **values: Any) -> Run:
        found = [replace(each, **values) for each in self.inputs.chain.references]
        return self.of(chain=self.native.inputs.ReferenceChain(tuple(found)))

    def identity(self) -> Any:
        return self.native.identity.model_identity(self.native.long._parts(self.inputs, self.video))

    def result(self, resume: bool) -> tuple[Tensor, str]:
        joined, report = self.native.long.sample_long_video(self.inputs, replace(self.video, resume=resume))
        return joined["samples"], report


def node(module: str, kind: str, *values: Any) -> Callable[[Any], Any]:
    """A core node that patches a MODEL with these further values."""

    def patch(model: Any) -> Any:
        extras = pytest.importorskip(f"comfy_extras.{module}")
        made = getattr(extras, kind, None)
        if made is None:
            pytest.skip(f"this ComfyUI has no {kind}")
        if hasattr(made, "execute"):
            return made.execute(model, *values).args[0]
        return getattr(made(), made.FUNCTION)(model, *values)[0]

    return patch


def attached(name: str, value: Any) -> Callable[[Any], Any]:
    """A patcher with an attribute that no version of ComfyUI has yet."""

    def patch(model: Any) -> Any:
        clone = model.clone()
        setattr(clone, name, value)
        return clone

    return patch


def called(method: str, *values: Any) -> Callable[[Any], Any]:
    """A patch by a method of the patcher."""

    def patch(model: Any) -> Any:
        clone = model.clone()
        getattr(clone, method)(*values)
        return clone

    return patch


def lora(value: float, strength: float) -> Callable[[Any], Any]:
    """A LoRA of one value on every projection behind an attention."""

    def patch(model: Any) -> Any:
        clone = model.clone()
        weights = clone.model.state_dict()
        names = [name for name in weights if name.endswith("attn.proj.weight")]
        clone.add_patches({name: (torch.full_like(weights[name], value),) for name in names}, strength)
        return clone

    return patch


def bypass(strength: float) -> Callable[[Any], Any]:
    """A LoRA that is computed beside the weights, by injections."""

    def patch(model: Any) -> Any:
        import comfy.sd

        if not hasattr(comfy.sd, "load_bypass_lora_for_models"):
            pytest.skip("this ComfyUI has no bypass mode")
        name = "diffusion_model.final_layer.linear"
        height, width = model.model.state_dict()[f"{name}.weight"].shape
        weights = {f"{name}.lora_up.weight": randn(height, 2), f"{name}.lora_down.weight": randn(2, width)}
        return comfy.sd.load_bypass_lora_for_models(model, None, weights, strength, 0.0)[0]

    return patch


def merged(run: Run, share: float) -> Run:
    """Merged with the same model, read again, one large weight of which was changed."""
    other = weight_changed(Run.make(run.native, run.models, run.version)).inputs.model
    return run.patched(node("nodes_model_merging", "ModelMergeSimple", other, share))


def compiled(model: Any) -> Any:
    """The model behind a compiler that compiles nothing."""
    helpers = pytest.importorskip("comfy_api.torch_helpers")
    clone = model.clone()
    helpers.set_torch_compile_wrapper(clone, backend="eager")
    return clone


def option(name: str, value: Any) -> Callable[[Any], Any]:
    """An entry of the transformer options."""

    def patch(model: Any) -> Any:
        clone = model.clone()
        clone.model_options["transformer_options"][name] = value
        return clone

    return patch


def factory(strength: float) -> Callable[..., Any]:
    """Functions with the same code that differ in what they close over."""

    def after_cfg(call: dict[str, Any]) -> Tensor:
        return call["denoised"] * strength

    return after_cfg


class Holder:
    """An object of another pack."""

    def __init__(self, strength: float) -> None:
        self.strength = strength
        self.me = self

    def after_cfg(self, call: dict[str, Any]) -> Tensor:
        return call["denoised"] * self.strength


def wrapped(strength: float) -> Callable[[Any], Any]:
    """A wrapper around the network that scales what it gives."""
    import comfy.patcher_extension

    def around(executor: Any, *args: Any, **kwargs: Any) -> Any:
        return executor(*args, **kwargs) * strength

    kind = comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL
    return called("add_wrapper_with_key", kind, "test", around)


def hooked(strength: float) -> Callable[[Run], Run]:
    """A LoRA that comes with the prompt."""

    def change(run: Run) -> Run:
        import comfy.hooks

        name = "diffusion_model.final_layer.linear"
        height, width = run.inputs.model.model.state_dict()[f"{name}.weight"].shape
        weights = {f"{name}.lora_up.weight": randn(height, 2), f"{name}.lora_down.weight": randn(2, width)}
        return run.positive(hooks=comfy.hooks.create_hook_lora(weights, strength, strength))

    return change


def patched(patch: Callable[[Any], Any]) -> Callable[[Run], Run]:
    """A change of the MODEL alone."""
    return lambda run: run.patched(patch)


def set_on_model(name: str, value: Any) -> Callable[[Run], Run]:
    """An attribute set on a part of the model, by its full name."""

    def change(run: Run) -> Run:
        *path, last = name.split(".")
        part = run.inputs.model.model
        for step in path:
            part = getattr(part, step)
        setattr(part, last, value)
        return run

    return change


def weight_changed(run: Run) -> Run:
    """One row of a large weight, changed where it lies."""
    network = run.inputs.model.model.diffusion_model
    name, tensor = next(item for item in network.named_parameters() if item[0].endswith(BIG))
    assert tensor.numel() > 4096, name
    tensor[-1].mul_(1.5)
    return run


def hooked_layer(run: Run, strength: float) -> Run:
    """A hook of PyTorch on one layer."""
    layer = run.inputs.model.model.diffusion_model.final_layer.linear
    layer.register_forward_hook(lambda module, inputs, output: output * strength)
    return run


def step_cache(flags: str, every: int = 1) -> Callable[[Any], Any]:
    """Steps, or unguided rows, that are left out."""

    def change(model: Any) -> Any:
        from opensora.opensora_models.caching.guidance_rows import GuidanceReuse
        from opensora.opensora_models.caching.tables import StepTable
        from opensora.opensora_models.native.model.step_cache import CachedRun, with_step_cache

        return with_step_cache(model, CachedRun(StepTable(flags), GuidanceReuse(every)))

    return change


def reloaded(**options: Any) -> Callable[[Run], Run]:
    """The model loaded with other options."""
    return lambda run: Run.make(run.native, run.models, run.version, **options)


CHANGES: dict[str, Callable[[Run], Run]] = {
    "rounding": reloaded(as_upstream=True),
    "weights in bf16": reloaded(weight_dtype="bf16"),
    "compute dtype": patched(node("nodes_model_advanced", "ModelComputeDtype", "bf16")),
    "EasyCache": patched(node("nodes_easycache", "EasyCacheNode", 3.0, 0.0, 1.0, False)),
    "EasyCache, other threshold": patched(node("nodes_easycache", "EasyCacheNode", 0.2, 0.0, 1.0, False)),
    "LazyCache": patched(node("nodes_easycache", "LazyCacheNode", 3.0, 0.0, 1.0, False)),
    "step cache": patched(step_cache("110")),
    "step cache, other table": patched(step_cache("100")),
    "unguided rows reused": patched(step_cache("1", every=2)),
    "lora": patched(lora(0.1, 0.5)),
    "lora strength": patched(lora(0.1, 0.6)),
    "lora of other values": patched(lora(0.2, 0.5)),
    "two loras": patched(lambda model: lora(0.1, 0.5)(lora(0.1, 0.5)(model))),
    "ModelSamplingSD3": patched(node("nodes_model_advanced", "ModelSamplingSD3", 5.0)),
    "ModelSamplingSD3, other shift": patched(node("nodes_model_advanced", "ModelSamplingSD3", 4.0)),
    "our shift": lambda run: run.patched(lambda model: run.native.samplers.patch_shift(model, 3.0)),
    "our guidance": lambda run: run.patched(
        lambda model: run.native.guiders.patch_guidance(
            model, run.native.guidance.Guidance(oscillate_text=True, force_steps=0)
        )
    ),
    "our guidance, other steps": lambda run: run.patched(
        lambda model: run.native.guiders.patch_guidance(
            model, run.native.guidance.Guidance(oscillate_text=True, force_steps=1)
        )
    ),
    "RescaleCFG": patched(node("nodes_model_advanced", "RescaleCFG", 0.7)),
    "RescaleCFG, other": patched(node("nodes_model_advanced", "RescaleCFG", 0.6)),
    "APG": patched(node("nodes_apg", "APG", 1.0, 5.0, 0.0)),
    "SLG": patched(node("nodes_slg", "SkipLayerGuidanceDiT", 3.0, 0.0, 1.0, "0", "0", 0.0)),
    "CFG-Zero*": patched(node("nodes_cfg", "CFGZeroStar")),
    "after cfg": patched(called("set_model_sampler_post_cfg_function", factory(0.9))),
    "after cfg, other closure": patched(called("set_model_sampler_post_cfg_function", factory(0.8))),
    "after cfg, method": patched(called("set_model_sampler_post_cfg_function", Holder(0.9).after_cfg)),
    "after cfg, method of another": patched(called("set_model_sampler_post_cfg_function", Holder(0.8).after_cfg)),
    "cfg function": patched(called("set_model_sampler_cfg_function", lambda call: call["cond"])),
    "cfg function, other": patched(called("set_model_sampler_cfg_function", lambda call: call["uncond"])),
    "function wrapper": patched(
        called("set_model_unet_function_wrapper", lambda run, call: run(call["input"], call["timestep"], **call["c"]))
    ),
    "mask function": patched(called("set_model_denoise_mask_function", lambda sigma, mask, **extra: mask)),
    "calc cond function": patched(called("set_model_sampler_calc_cond_batch_function", Holder(1.0).after_cfg)),
    "attention patch": patched(called("set_model_attn1_patch", Holder(1.0).after_cfg)),
    "wrapper": patched(lambda model: wrapped(0.9)(model)),
    "wrapper, other": patched(lambda model: wrapped(0.8)(model)),
    "callback": patched(called("add_callback", "on_pre_run", Holder.after_cfg)),
    "attachment": patched(called("set_attachments", "test", {"scale": 2})),
    "injection": patched(called("set_injections", "test", [Holder(1.0)])),
    "object patch": patched(called("add_object_patch", "diffusion_model.final_layer.linear.scale", 2)),
    "additional model": patched(lambda model: called("set_additional_models", "test", [lora(0.1, 1.0)(model)])(model)),
    "additional model, other": patched(
        lambda model: called("set_additional_models", "test", [lora(0.2, 1.0)(model)])(model)
    ),
    "transformer option": patched(option("scale", 2.0)),
    "transformer option, other": patched(option("scale", 2.0000000000000004)),
    "transformer option, -0": patched(option("scale", -0.0)),
    "transformer option, 0": patched(option("scale", 0.0)),
    "transformer option, whole 0": patched(option("scale", 0)),
    "transformer option, False": patched(option("scale", False)),
    "transformer option, tensor": patched(option("scale", torch.zeros(2))),
    "transformer option, other tensor": patched(option("scale", torch.tensor([0.0, -0.0]))),
    "transformer option, tensor of bf16": patched(option("scale", torch.zeros(2).bfloat16())),
    "bypass lora": patched(lambda model: bypass(0.7)(model)),
    "bypass lora strength": patched(lambda model: bypass(0.6)(model)),
    "merge": lambda run: merged(run, 0.5),
    "merge, other share": lambda run: merged(run, 0.4),
    "compile": patched(lambda model: compiled(model)),
    "DifferentialDiffusion": patched(node("nodes_differential_diffusion", "DifferentialDiffusion", 1.0)),
    "future attribute of the patcher": patched(attached("new_kind_of_patches", {"a": [1.0]})),
    "future attribute of the patcher, other": patched(attached("new_kind_of_patches", {"a": [2.0]})),
    "future attribute of the model": set_on_model("new_setting", 3),
    "future attribute of the network": set_on_model("diffusion_model.new_setting", 3),
    "future attribute of a layer": set_on_model("diffusion_model.final_layer.linear.new_setting", 3),
    "method of a layer": set_on_model("diffusion_model.final_layer.linear.forward", Holder(1.0).after_cfg),
    "hook of a layer": lambda run: hooked_layer(run, 0.9),
    "hook of a layer, other": lambda run: hooked_layer(run, 0.8),
    "a row of a large weight": weight_changed,
    "hook": hooked(0.5),
    "hook strength": hooked(0.6),
    "cfg": lambda run: run.sampling(cfg=5.0),
    "seed": lambda run: run.sampling(seed=8),
    "steps": lambda run: run.sampling(steps=4),
    "image cfg": lambda run: run.sampling(image_cfg=2.0),
    "guidance": lambda run: run.sampling(preset="1.3 text to video"),
    "renoise": lambda run: run.sampling(renoise_given=False),
    "overlap strength": lambda run: run.settings(overlap_strength=0.3),
    "drift control": lambda run: run.settings(drift_control=0.5),
    "seeds": lambda run: run.settings(seeds="same for all"),
    "prompt": lambda run: run.of(positive=conditioning(7, seed=4)),
    "prompt in bf16": lambda run: run.of(positive=[[text.bfloat16(), extra] for text, extra in run.inputs.positive]),
    "prompt cut": lambda run: run.of(positive=[[text[:, :-1], extra] for text, extra in run.inputs.positive]),
    "negative": lambda run: run.of(negative=conditioning(5, seed=4)),
    "swapped prompts": lambda run: run.of(positive=run.inputs.negative, negative=run.inputs.positive),
    "frame rate": lambda run: run.positive(frame_rate=12.0),
    "strength of the prompt": lambda run: run.positive(strength=0.5),
    "part of the run": lambda run: run.positive(start_percent=0.0, end_percent=0.5),
    "mask of the prompt": lambda run: run.positive(mask=torch.ones(1, 8, 10)),
    "unknown entry of the prompt": lambda run: run.positive(something=Holder(1.0)),
    "start": lambda run: run.latent(samples=randn(*empty("1.2", 10).shape, seed=9)),
    "noise mask": lambda run: run.latent(noise_mask=torch.tensor([1.0, 0.5] * 5).reshape(1, 1, 10, 1, 1)),
    "batch index": lambda run: run.latent(batch_index=[1]),
    "unknown entry of the latent": lambda run: run.latent(something=1),
    "reference": lambda run: run.reference(latent=randn(4, 1, 8, 10, seed=4)),
    "reference strength": lambda run: run.reference(edit_ratio=0.5),
    "reference strength by a curve": lambda run: run.reference(edit_ratio=0.5, curves=(read_curve("0:0, 1:1"),)),
    "reference strength by another curve": lambda run: run.reference(edit_ratio=0.5, curves=(read_curve("0:1, 1:0"),)),
    "reference's place": lambda run: run.reference(target_start=5),
    "reference's segment": lambda run: run.reference(segment=1),
    "reference's release": lambda run: run.reference(release="1.2"),
    "no reference": lambda run: run.of(chain=run.native.inputs.ReferenceChain()),
    "pictures of the prompt": lambda run: run.positive(opensora_given_pictures=[0]),
    "pooled state of the prompt": lambda run: run.positive(pooled_output=torch.ones(1, 16)),
    "vae": lambda run: run.of(vae=run.native.vae.load_vae(run.models / "vae" / "random-vae-v1.2.safetensors")),
    "vae of another dtype": lambda run: run.of(
        vae=run.native.vae.load_vae(run.models / "vae" / "random-vae-v1.2.safetensors", dtype=torch.bfloat16)
    ),
}  # fmt: skip
VAE_CHANGES: dict[str, Callable[[Any], Any]] = {
    "dtype": lambda vae: setattr(vae, "vae_dtype", torch.bfloat16),
    "overlap": lambda vae: setattr(vae.network, "overlap", not vae.network.overlap),
    "a value of a large weight": lambda vae: max(vae.network.parameters(), key=lambda part: part.numel())[-1].mul_(1.5),
    "patch": lambda vae: vae.patcher.add_patches(
        {
            name: (torch.ones_like(part),)
            for name, part in vae.network.state_dict().items()
            if name.endswith("conv_out.bias")
        }
    ),
    "object patch": lambda vae: vae.patcher.add_object_patch("exchange", 3),
    "output function": lambda vae: setattr(vae, "process_output", lambda image: image),
    "exchange": lambda vae: setattr(vae.network, "exchange", torch.ones(3)),
    "group norm": lambda vae: setattr(
        next(part for part in vae.network.modules() if isinstance(part, torch.nn.GroupNorm)), "num_groups", 1
    ),
    "future attribute of the VAE": lambda vae: setattr(vae, "new_setting", 1),
    "future attribute of the network": lambda vae: setattr(vae.network, "new_setting", 1),
}
