"""ComfyUI's fused kernels for MMDiT's heads against the plain formulas, in both layouts.

Without an accelerator comfy_kitchen answers with its "eager" backend, which reads the arguments as its kernels do.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.opensora_models.mmdit.config import MMDiTConfig
from opensora.opensora_models.mmdit.network import MMDiT
from opensora.opensora_models.mmdit.positions import HalfSplitRotary
from opensora.opensora_models.transformer.arithmetic import Arithmetic
from opensora.opensora_models.transformer.positions import Rotary
from support.native import randn, relative

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

SPLIT = MMDiTConfig(
    in_channels=16,
    vec_in_dim=12,
    context_in_dim=20,
    hidden_size=48,
    num_heads=2,
    depth=2,
    depth_single_blocks=2,
    axes_dim=(4, 10, 10),
)
FORMS = {
    "half-split": SPLIT,
    "interleaved": replace(SPLIT, rotation="interleaved"),
    "fused half-split": replace(SPLIT, fused_qkv=True),
    "fused interleaved": replace(SPLIT, fused_qkv=True, rotation="interleaved"),
}
EVERY = pytest.mark.parametrize("form", FORMS)


def network_of(form: str, dtype: torch.dtype) -> MMDiT:
    """A network of ComfyUI's layers with seeded weights; a patch (as a LoRA is) lies on one norm."""
    import comfy.ops

    network = MMDiT(FORMS[form], operations=comfy.ops.manual_cast, dtype=dtype).eval().requires_grad_(False)
    for seed, (key, value) in enumerate(network.state_dict().items()):
        spread = 0.1 if value.ndim < 2 else value[0].numel() ** -0.5
        value.copy_(randn(*value.shape, seed=seed) * spread + float("norm" in key))
    network.single_blocks[0].norm.key_norm.weight_function = [lambda weight: 2 * weight]
    return network


def arguments(dtype: torch.dtype, **more: Any) -> dict[str, Any]:
    """Seeded inputs of two rows."""
    shapes = {"x": (2, 4, 3, 4, 6), "text": (2, 5, 20), "pooled": (2, 12), "reference": (2, 5, 3, 4, 6)}
    inputs = {name: randn(*shape, seed=seed).to(dtype) for seed, (name, shape) in enumerate(shapes.items())}
    return {**inputs, "time": torch.tensor([0.7, 0.1]), **more}


def forced(backends: set[str] | None = None) -> Any:
    """The arithmetic that also takes kernels made of PyTorch's own steps."""
    from opensora.opensora_models.native.model.fused_heads import FusedHeads

    return FusedHeads({"eager"} if backends is None else backends)


@pytest.fixture
def calls(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels in the order they are called."""
    import comfy.quant_ops

    from opensora.opensora_models.native.model.fused_heads import IN_PLACE

    kitchen = getattr(comfy.quant_ops, "ck", None)
    names: list[str] = []
    for name in (*IN_PLACE.values(), "adaln", "rms_rope", "apply_rope"):
        original = getattr(kitchen, name, None)
        if original is None:
            pytest.skip("This ComfyUI lacks some of the fused kernels.")

        def watched(*args: Any, name: str = name, original: Any = original, **kwargs: Any) -> Any:
            names.append(name)
            return original(*args, **kwargs)

        monkeypatch.setattr(kitchen, name, watched)
    return names


@EVERY
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_kernels_give_the_numbers_of_the_plain_formulas(form: str, dtype: torch.dtype, calls: list[str]) -> None:
    network = network_of(form, dtype)
    with torch.inference_mode():
        plain = network(**arguments(dtype))
        assert calls == []
        fused = network(**arguments(dtype, transformer_options={"opensora_arithmetic": forced()}))
        exact = network.float()(**arguments(torch.float32))
    # Two streams in each of two double blocks, and two single blocks.
    assert calls.count("rms_rope_split_half_" if "half-split" in form else "rms_rope_") == 2 * 2 + 2
    assert calls.count("adaln") == 2 * 4 + 2 + 1 and len(calls) == 6 + 11
    if dtype == torch.float32:
        assert relative(fused, plain) < 1e-5
    else:
        distance = [float((y.float() - exact).norm() / exact.norm()) for y in (fused, plain)]
        assert distance[0] <= 1.2 * distance[1] < 0.03


@pytest.mark.parametrize("halves", [True, False], ids=["half-split", "interleaved"])
@torch.inference_mode()
def test_no_call_has_more_tokens_than_a_grid_of_cuda_counts(
    halves: bool, comfy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A clip of 129 frames of 1024x576 has 76,032 tokens."""
    import comfy.ops
    import comfy.quant_ops

    from opensora.opensora_models.native.model.fused_heads import IN_PLACE

    name = IN_PLACE[halves]
    original = getattr(getattr(comfy.quant_ops, "ck", None), name, None)
    if original is None:
        pytest.skip("This ComfyUI lacks some of the fused kernels.")
    lengths: list[int] = []

    def watched(q: torch.Tensor, *rest: Any) -> Any:
        lengths.append(q.shape[1])
        return original(q, *rest)

    monkeypatch.setattr(comfy.quant_ops.ck, name, watched)
    tokens = 76_032
    norms = [comfy.ops.manual_cast.RMSNorm(4, eps=1e-6).requires_grad_(False) for _ in range(2)]
    for norm in norms:
        torch.nn.init.constant_(norm.weight, 2.0)
    angles = randn(tokens, 1, 2, seed=3)
    rotary = (HalfSplitRotary if halves else Rotary)(angles.cos(), angles.sin())
    q, k = (randn(1, tokens, 2, 4, seed=seed) for seed in (1, 2))
    want = Arithmetic().norm_rotary(q, k, *norms, rotary)
    got = forced().norm_rotary_over(q.clone(), k.clone(), *norms, rotary)
    assert sum(lengths) == tokens and max(lengths) <= 65535
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@EVERY
def test_without_a_kernel_the_layout_is_still_the_right_one(comfy: Path, form: str) -> None:
    network = network_of(form, torch.float32)
    with torch.inference_mode():
        plain = network(**arguments(torch.float32))
        for backends in (set(), {"cuda"}):
            options = {"opensora_arithmetic": forced(backends)}
            assert relative(network(**arguments(torch.float32, transformer_options=options)), plain) < 1e-5


@EVERY
def test_gradients_come_without_kernels(form: str, calls: list[str]) -> None:
    network, inputs = network_of(form, torch.float32), arguments(torch.float32)
    inputs["x"].requires_grad_()
    network(**inputs, transformer_options={"opensora_arithmetic": forced()}).square().mean().backward()
    assert calls == [] and inputs["x"].grad.abs().min() > 0


@EVERY
@torch.no_grad()
def test_compiles_into_one_graph(form: str, comfy: Path) -> None:
    network, inputs = MMDiT(FORMS[form]).eval(), arguments(torch.float32)
    for seed, value in enumerate(network.state_dict().values()):
        value.copy_(randn(*value.shape, seed=seed) / 8)
    want = network(**inputs)
    network.arithmetic = forced()
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs), want, atol=5e-6, rtol=1e-5)
