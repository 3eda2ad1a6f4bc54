"""Wrappers, patches and callbacks that write into everything they are handed change nothing but their own effect."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from support.native import CHANNELS, conditioning, empty, load, randn, sample

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

STEPS = 3
SPOILT = 1000


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a value, of its lists and tuples, and of its dicts and theirs."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            if isinstance(item, (Tensor, list, tuple, dict)):
                yield from tensors_in(item)


def spoil(*values: Any) -> None:
    """Writes nonsense into every tensor."""
    for tensor in tensors_in(values):
        tensor.add_(SPOILT)


def copies(value: Any) -> Any:
    """The same with copied tensors."""
    if isinstance(value, Tensor):
        return value.clone()
    if isinstance(value, (list, tuple)):
        return type(value)(copies(item) for item in value)
    return {key: copies(item) for key, item in value.items()} if isinstance(value, dict) else value


def around(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """A wrapper that lets the rest work, and then spoils what it was handed."""
    out = copies(executor(*args, **kwargs))
    spoil(args, kwargs)
    return out


def around_latents(executor: Any, *args: Any, **kwargs: Any) -> Any:
    """The same where ComfyUI hands its whole state over: only what are tensors themselves."""
    out = copies(executor(*args, **kwargs))
    spoil([arg for arg in args if isinstance(arg, Tensor)])
    return out


def tokens_in(args: dict[str, Any]) -> dict[str, Any]:
    """What a block gives: its tokens, in 2.0's double blocks those of the text too."""
    return {name: args[name] for name in ("img", "txt") if name in args}


def replacing(args: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    out = copies(tokens_in(extra["original_block"](args)))
    spoil(args)
    return out


def following(args: dict[str, Any]) -> dict[str, Any]:
    out = copies(tokens_in(args))
    spoil(args)
    return out


def after_attention(out: Tensor, options: dict[str, Any]) -> Tensor:
    kept = out.clone()
    spoil(out, options)
    return kept


def after_guidance(args: dict[str, Any]) -> Tensor:
    out = args["denoised"].clone()
    spoil([value for value in args.values() if isinstance(value, Tensor)])
    return out


def patch_blocks(model: Any) -> None:
    for number in (0, 2, 3):
        model.set_model_patch_replace(replacing, "dit", "double_block", number)
    for name, patch in (("double_block", following), ("attn1_output_patch", after_attention)):
        model.set_model_patch(patch, name)
        model.set_model_patch(patch, name)
    model.set_model_patch(after_attention, "attn2_output_patch")


def wrap(kind: str, wrapper: Any, times: int = 2) -> Callable[[Any], None]:
    def add(model: Any) -> None:
        for _ in range(times):
            model.add_wrapper(kind, wrapper)

    return add


HOSTILE: dict[str, Callable[[Any], None]] = {
    "network": wrap("diffusion_model", around),
    "model": wrap("apply_model", around),
    "rows": wrap("calc_cond_batch", around_latents),
    "blocks": patch_blocks,
}
# ComfyUI's samplers go on with the latents they hand over; ours does not.
HOSTILE_TO_SAMPLERS: dict[str, Callable[[Any], None]] = {
    "prediction": wrap("predict_noise", around_latents),
    "guidance": lambda model: model.set_model_sampler_post_cfg_function(after_guidance),
}


class Run:
    """One clip with everything a conditioning can carry, and all that must stay as it is."""

    def __init__(self, model: Any, version: str) -> None:
        from opensora.opensora_models.native.sampling import guiders

        self.model, self.noise = model, randn(*empty(version).shape, seed=5)
        self.latent = randn(*empty(version).shape, seed=6)
        self.positive, self.negative = conditioning(9), conditioning(4, seed=2)
        if version != "1.2":
            self.positive = guiders.with_given_frames(self.positive, randn(1, CHANNELS[version], 5, 8, 10, seed=7), [0])
        self.mask = torch.rand(1, 1, 5, 8, 10, generator=torch.Generator().manual_seed(8))
        self.inputs = (self.noise, self.latent, self.positive, self.negative, self.mask)

    def core(self, model: Any) -> Tensor:
        return sample(model, self.latent, self.positive, self.negative, noise=self.noise, steps=STEPS, mask=self.mask)

    def ours(self, model: Any, callback: Any = None) -> Tensor:
        from opensora.opensora_models.native.sampling.guiders import OpenSoraGuider
        from opensora.opensora_models.native.sampling.samplers import sampler
        from opensora.opensora_models.releases.guidance import Guidance

        guider = OpenSoraGuider(model, Guidance(text_scale=4.0, image_scale=2.0, flaw_fix=True, fade_image=True))
        guider.set_conds(self.positive, self.negative)
        sigmas = torch.linspace(1, 0, STEPS + 1)
        with torch.inference_mode():
            return guider.sample(
                self.noise, self.latent, sampler(renoise_given=True), sigmas, denoise_mask=self.mask,
                callback=callback, disable_pbar=True, seed=5,
            )  # fmt: skip


@pytest.fixture(scope="module", params=["1.2", "1.3", "2.0"])
def run(comfy: Path, tiny_models: Path, request: pytest.FixtureRequest) -> Run:
    with torch.inference_mode():
        return Run(load(tiny_models, request.param), request.param)


@pytest.mark.parametrize("name", HOSTILE)
def test_nothing_changes_under_cores_sampler(run: Run, name: str) -> None:
    before, plain, hostile = copies(run.inputs), run.core(run.model), run.model.clone()
    HOSTILE[name](hostile)
    assert torch.equal(run.core(hostile), plain)
    assert unchanged(run.inputs, before)


@pytest.mark.parametrize("name", [*HOSTILE, *HOSTILE_TO_SAMPLERS])
def test_nothing_changes_under_our_sampler(run: Run, name: str) -> None:
    before, plain, hostile = copies(run.inputs), run.ours(run.model), run.model.clone()
    (HOSTILE | HOSTILE_TO_SAMPLERS)[name](hostile)
    done = run.ours(hostile)
    # A function behind the guidance has ComfyUI's formula used, which rounds in another order.
    torch.testing.assert_close(done, plain, rtol=0, atol=1e-4 if name == "guidance" else 0)
    assert unchanged(run.inputs, before)


def test_a_callback_gets_copies(run: Run) -> None:
    with_callback = run.ours(run.model, lambda step, denoised, x, steps: spoil(denoised, x))
    assert torch.equal(with_callback, run.ours(run.model))


def test_a_wrapper_outside_keeps_what_it_was_handed(run: Run) -> None:
    seen = []

    def watching(executor: Any, *args: Any, **kwargs: Any) -> Tensor:
        before = copies((args, kwargs))
        out = executor(*args, **kwargs)
        seen.append(unchanged((args, kwargs), before))
        return out

    hostile = run.model.clone()
    wrap("diffusion_model", watching, 1)(hostile)
    wrap("diffusion_model", around, 1)(hostile)
    run.core(hostile)
    assert len(seen) >= STEPS and all(seen)


def unchanged(value: Any, before: Any) -> bool:
    """Whether all tensors are what they were."""
    return all(torch.equal(*pair) for pair in zip(tensors_in(value), tensors_in(before), strict=True))
