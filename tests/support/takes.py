"""Runs of the trained tiny models through core's nodes, and changes of such runs, to be compared with one another."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from support.core_nodes import call
from support.native import CHANNELS, randn
from support.shipped import DEMO

STEPS, CFG, SEED = 5, 5.0, 1
PROMPT = "a red circle moving right on a black background"
SAME = math.inf
"""Decibels of two equal clips."""
ROUNDED = {"fp32": 100.0, "bf16": 40.0}
"""Two ways to one result, which round in another order."""


@dataclass(frozen=True)
class Take:
    """One run of core's KSampler."""

    model: Any
    positive: list
    negative: list
    latent: dict[str, Any]
    release: str
    dtype: str = "fp32"
    sampler: str = "euler"
    cfg: float = CFG
    steps: int = STEPS

    def patched(self, node: str, **inputs: Any) -> Take:
        """With a node of core on the MODEL."""
        return replace(self, model=call(node, model=self.model, **inputs)[0])

    def shoot(self) -> Tensor:
        """The finished latents."""
        (latent,) = call(
            "KSampler", model=self.model, positive=self.positive, negative=self.negative, latent_image=self.latent,
            seed=SEED, steps=self.steps, cfg=self.cfg, sampler_name=self.sampler, scheduler="opensora", denoise=1.0,
        )  # fmt: skip
        return latent["samples"]


Change = Callable[[Take], "Take | Tensor"]


def plain(take: Take) -> Take:
    """The run as it is."""
    return take


def psnr(got: Tensor, want: Tensor) -> float:
    """Decibels; the peak is the range of what is wanted."""
    error = float((got - want).square().mean())
    peak = float(want.max() - want.min())
    return SAME if error == 0 else 10 * math.log10(peak**2 / error)


def on_model(node: str, **inputs: Any) -> Change:
    """With a node of core on the MODEL."""
    return lambda take: take.patched(node, **inputs)


LORA_LAYERS = {
    "spatial_blocks": ("spatial_blocks.1.mlp.fc1", "temporal_blocks.0.scale_shift_table"),
    "double_blocks": ("double_blocks.1.img_mlp.0", "single_blocks.0.linear2"),
}
"""What a network of these blocks gets a LoRA on: of the first, a layer and a table."""


def lora(take: Take, strength: float = 1.0) -> dict[str, Tensor]:
    """A LoRA of two parts of the network, as ComfyUI names and trains them."""
    weights, network = take.model.model.state_dict(), take.model.model.diffusion_model
    (layers,) = (layers for blocks, layers in LORA_LAYERS.items() if hasattr(network, blocks))
    found = {}
    for seed, layer in enumerate(f"diffusion_model.{layer}" for layer in layers):
        rows, columns = weights[f"{layer}.weight"].shape
        found[f"{layer}.lora_up.weight"] = strength * randn(rows, 4, seed=seed)
        found[f"{layer}.lora_down.weight"] = 0.05 * randn(4, columns, seed=seed + 10)
    return found


def with_lora(strength: float, bypass: bool = False) -> Change:
    """With a small LoRA of this size, in the weights or beside them."""
    return lambda take: take.patched("LoraModelLoader", lora=lora(take, strength), strength_model=1.0, bypass=bypass)


def with_hook(strength: float, start: float = 0.0, end: float = 1.0) -> Change:
    """The same LoRA as a hook on both prompts, inside a part of the run."""

    def change(take: Take) -> Take:
        import comfy.hooks

        hooks = comfy.hooks.create_hook_lora(lora(take, strength), 1.0, 0.0)
        if (start, end) != (0.0, 1.0):
            first = call("CreateHookKeyframe", strength_mult=0.0, start_percent=0.0)[0]
            chain = call("CreateHookKeyframe", strength_mult=1.0, start_percent=start, prev_hook_kf=first)[0]
            hooks = call("SetHookKeyframes", hooks=hooks, hook_kf=chain)[0]
        positive, negative = (
            call("ConditioningSetProperties", cond_NEW=cond, strength=1.0, set_cond_area="default", hooks=hooks)[0]
            for cond in (take.positive, take.negative)
        )
        return replace(take, positive=positive, negative=negative)

    return change


def other_model(take: Take, amount: float) -> Any:
    """The model with all weights moved by ``amount`` times a tenth."""
    other = take.model.clone()
    weights = other.model.state_dict()
    patches = {
        key: ("diff", (0.1 * amount * randn(*weight.shape, seed=number),))
        for number, (key, weight) in enumerate(sorted(weights.items()))
        if key.startswith("diffusion_model.") and key.endswith("weight") and weight.ndim > 1
    }
    other.add_patches(patches, 1.0)
    return other


def merged(node: str, amount: float, **inputs: Any) -> Change:
    """With another model merged in by a node."""

    def change(take: Take) -> Take:
        other = other_model(take, amount)
        return replace(take, model=call(node, model1=take.model, model2=other, **inputs)[0])

    return change


def added_and_taken_away(take: Take) -> Take:
    """With another model's weights added and subtracted again."""
    other = other_model(take, 0.1)
    more = call("ModelMergeAdd", model1=take.model, model2=other)[0]
    return replace(take, model=call("ModelMergeSubtract", model1=more, model2=other, multiplier=1.0)[0])


def sum_less_one(take: Take) -> Take:
    """The other model, by way of both together."""
    other = other_model(take, 0.1)
    more = call("ModelMergeAdd", model1=take.model, model2=other)[0]
    return replace(take, model=call("ModelMergeSubtract", model1=more, model2=take.model, multiplier=1.0)[0])


def on_positive(node: str, name: str = "conditioning", **inputs: Any) -> Change:
    """With a node of core on the prompt."""
    return lambda take: replace(take, positive=call(node, **{name: take.positive}, **inputs)[0])


def moved(take: Take) -> Take:
    """With all weights moved a little."""
    return replace(take, model=other_model(take, 0.1))


def in_halves(take: Take) -> Take:
    """The same words in both halves of the run, as two conditionings."""
    first = call("ConditioningSetTimestepRange", conditioning=take.positive, start=0.0, end=0.5)[0]
    second = call("ConditioningSetTimestepRange", conditioning=take.positive, start=0.5, end=1.0)[0]
    return replace(take, positive=call("ConditioningCombine", conditioning_1=first, conditioning_2=second)[0])


def other_words_late(take: Take) -> Take:
    """The empty prompt instead of the words in the last fifth of the run."""
    first = call("ConditioningSetTimestepRange", conditioning=take.positive, start=0.0, end=0.8)[0]
    second = call("ConditioningSetTimestepRange", conditioning=take.negative, start=0.8, end=1.0)[0]
    return replace(take, positive=call("ConditioningCombine", conditioning_1=first, conditioning_2=second)[0])


def masked_prompt(strength: float) -> Change:
    """The prompt over the whole picture: a lone one fills it whatever its strength."""
    return on_positive("ConditioningSetMask", mask=torch.ones(1, 64, 64), strength=strength, set_cond_area="default")


def two_prompts_side_by_side(take: Take) -> Take:
    """The words on the left half of the pictures, the empty prompt on the right."""
    left = torch.zeros(1, 64, 64)
    left[..., :32] = 1
    sides = [
        call("ConditioningSetMask", conditioning=cond, mask=mask, strength=1.0, set_cond_area="default")[0]
        for cond, mask in ((take.positive, left), (take.negative, 1 - left))
    ]
    return replace(take, positive=call("ConditioningCombine", conditioning_1=sides[0], conditioning_2=sides[1])[0])


def same_prompt_twice(node: str, first: str, second: str, **inputs: Any) -> Change:
    """The prompt in both inputs of a node."""
    return lambda take: replace(take, positive=call(node, **{first: take.positive, second: take.positive}, **inputs)[0])


def averaged(share: float) -> Change:
    """A share of the prompt, the rest of the negative prompt."""
    return lambda take: replace(
        take,
        positive=call(
            "ConditioningAverage", conditioning_to=take.positive, conditioning_from=take.negative,
            conditioning_to_strength=share,
        )[0],
    )  # fmt: skip


def own_shift(take: Take) -> Take:
    """With core's node for a shift, set to the shift there is."""
    return take.patched("ModelSamplingSD3", shift=take.model.get_model_object("model_sampling").shift)


def computed_in(other: bool) -> Change:
    """In the dtype the model computes in, or in the other one."""
    return lambda take: take.patched(
        "ModelComputeDtype", dtype={"fp32": "bf16", "bf16": "fp32"}[take.dtype] if other else take.dtype
    )


def one_more_guidance(take: Take) -> Take:
    """At a guidance one higher."""
    return replace(take, cfg=take.cfg + 1)


def long(node: str, **inputs: Any) -> Change:
    """On a run with steps enough to leave some out."""
    return lambda take: replace(take, steps=2 * STEPS).patched(node, **inputs)


def long_plain(take: Take) -> Take:
    """The same without it."""
    return replace(take, steps=2 * STEPS)


def noise_mask(value: float, node: str | None = None) -> Change:
    """A mask on the latent, of a clip that is remade from a finished one."""

    def change(take: Take) -> Take:
        mask = call("SolidMask", value=value, width=64, height=64)[0]
        latent = call("SetLatentNoiseMask", samples=take.latent, mask=mask)[0]
        take = replace(take, latent=latent)
        return take.patched(node) if node else take

    return change


def from_half_noise(take: Take) -> Tensor:
    """From the first step at or below half of the noise on."""
    sigmas = call("BasicScheduler", model=take.model, scheduler="opensora", steps=take.steps, denoise=1.0)[0]
    start = advanced(int((sigmas > 0.5).sum()), 10000)(take)
    assert isinstance(start, Tensor)
    return start


def batch_row(index: int, amount: int = 2) -> Change:
    """One row of a batch."""

    def change(take: Take) -> Tensor:
        latent = call("RepeatLatentBatch", samples=take.latent, amount=amount)[0]
        done = replace(take, latent=latent).shoot()
        return done[index : index + 1]

    return change


def row_alone(take: Take) -> Take:
    """The second row of a batch of two, sampled by itself."""
    latent = call("RepeatLatentBatch", samples=take.latent, amount=2)[0]
    return replace(take, latent=call("LatentFromBatch", samples=latent, batch_index=1, length=1)[0])


def custom(take: Take, parts: int = 1, guider: Any = None) -> Tensor:
    """SamplerCustomAdvanced, perhaps in two parts."""
    sigmas = call("BasicScheduler", model=take.model, scheduler="opensora", steps=take.steps, denoise=1.0)[0]
    guider = (
        guider or call("CFGGuider", model=take.model, positive=take.positive, negative=take.negative, cfg=take.cfg)[0]
    )
    sampler = call("KSamplerSelect", sampler_name=take.sampler)[0]
    noise, latent = call("RandomNoise", noise_seed=SEED)[0], take.latent
    for part in call("SplitSigmas", sigmas=sigmas, step=3) if parts == 2 else (sigmas,):
        latent = call(
            "SamplerCustomAdvanced", noise=noise, guider=guider, sampler=sampler, sigmas=part, latent_image=latent
        )[0]
        noise = call("DisableNoise")[0]
    return latent["samples"]


def dual_guidance(take: Take) -> Tensor:
    """Dual CFG with the negative prompt twice: plain guidance."""
    guider = call(
        "DualCFGGuider", model=take.model, cond1=take.positive, cond2=take.negative, negative=take.negative,
        cfg_conds=CFG, cfg_cond2_negative=2.0,
    )[0]  # fmt: skip
    return custom(take, guider=guider)


def our_sampler(change: Change | None = None, guidance: str = "1.2") -> Change:
    """Open-Sora Sampler with plain guidance, or another preset, after a change."""

    def shoot(take: Take) -> Tensor:
        changed = take if change is None else change(take)
        (latent, *_) = call(
            "OSoraSampler", model=changed.model, positive=changed.positive, negative=changed.negative,
            latent=changed.latent, steps=changed.steps, cfg=changed.cfg, seed=SEED, guidance=guidance, denoise=1.0,
            image_cfg=5.0, renoise_given=True,
        )  # fmt: skip
        return latent["samples"]

    return shoot


def advanced(start: int, end: int, then: int | None = None) -> Change:
    """KSampler (Advanced) from step to step, and perhaps a second one up to ``then``."""

    def change(take: Take) -> Tensor:
        def part(latent: dict[str, Any], first: int, last: int, fresh: bool) -> dict[str, Any]:
            return call(
                "KSamplerAdvanced", model=take.model, positive=take.positive, negative=take.negative,
                latent_image=latent, add_noise="enable" if fresh else "disable", noise_seed=SEED, steps=take.steps,
                cfg=take.cfg, sampler_name=take.sampler, scheduler="opensora", start_at_step=first, end_at_step=last,
                return_with_leftover_noise="enable" if last < take.steps else "disable",
            )[0]  # fmt: skip

        latent = part(take.latent, start, end, True)
        if then is not None:
            latent = part(latent, end, then, False)
        return latent["samples"]

    return change


@dataclass
class Studio:
    """One trained model in one dtype, with prompts and an empty clip; finished clips are kept."""

    take: Take
    shots: dict[Change, Tensor] = field(default_factory=dict)

    def shot(self, change: Change) -> Tensor:
        """The latents after a change."""
        if change not in self.shots:
            out = change(self.take)
            self.shots[change] = out if isinstance(out, Tensor) else out.shoot()
        return self.shots[change]


def load_take(version: str, weight_dtype: str = "default") -> Take:
    """A trained model with its prompts and an empty clip of 17 frames; needs the ``executor`` fixture."""
    from opensora.opensora_models.native.model import loading as model_loading
    from opensora.opensora_models.native.sampling import clips, samplers
    from opensora.opensora_models.native.text import clip
    from opensora.opensora_models.native.text import encoding as text_encoding
    from opensora.opensora_models.releases.known import release_named
    from opensora.opensora_models.text.suffixes import FRAME_RATE, append_suffixes

    samplers.register_scheduler()
    with torch.inference_mode():
        path = DEMO / "diffusion_models" / f"opensora-tiny-v{version}.safetensors"
        model = model_loading.load_model(path, weight_dtype)
        texts, rules = DEMO / "text_encoders", release_named(version).text
        second = {"clip_l": texts / "opensora-tiny-clip-l.safetensors"} if rules.pooled else {}
        words = clip.load_text_encoder(texts / "opensora-tiny-t5.safetensors", **second)
        prompt = append_suffixes(PROMPT, FRAME_RATE, rules.motion) if rules.suffixes else PROMPT
        both = text_encoding.encode_both(words, prompt, "", model)
    latent = clips.marked({"samples": torch.zeros(1, CHANNELS[version], 5, 8, 8)}, release_named(version))
    shifted = samplers.patch_shift(model, clips.clip_shift(clips.clip_size(latent, model)))
    return Take(shifted, both.positive, both.negative, latent, version)
