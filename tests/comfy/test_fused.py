"""ComfyUI's fused kernels against the plain formulas: same layout, same numbers, and only where they belong.

Without an accelerator comfy_kitchen answers with its "eager" backend, which reads the arguments as its kernels do.
"""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from opensora.opensora_models.stdit3.config import STDiT3Config
from opensora.opensora_models.stdit3.network import STDiT3
from opensora.opensora_models.stdit3.positions import RotaryEmbedding
from opensora.opensora_models.transformer.arithmetic import NORM_EPS, Arithmetic, UpstreamArithmetic
from opensora.opensora_models.transformer.positions import Rotary
from support.native import load, randn, relative

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

KERNELS = ("adaln", "rms_rope", "apply_rope")
TINY = {"depth": 2, "hidden_size": 48, "caption_channels": 32, "model_max_length": 20}
CONFIGS = {
    "1.2": STDiT3Config(num_heads=4, **TINY),
    "1.3": STDiT3Config(
        version="1.3", num_heads=2, in_channels=16, kernel_size=(8, 8, -1), use_spatial_rope=True, **TINY
    ),
}
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
MASKED = pytest.mark.parametrize("masked", [False, True], ids=["free", "masked"])
VERSIONS = pytest.mark.parametrize("version", list(CONFIGS))
# In units of the largest value: noise of float32, or one rounding to bfloat16 that fell the other way.
TOLERANCE = {torch.float32: 1e-6, torch.bfloat16: 2**-8}


@pytest.fixture
def kitchen(comfy: Path) -> Any:
    """ComfyUI's module of kernels, where it has all that are used."""
    import comfy.quant_ops

    module = getattr(comfy.quant_ops, "ck", None)
    if not all(hasattr(module, name) for name in (*KERNELS, "rms_rope_")):
        pytest.skip("This ComfyUI lacks some of the fused kernels.")
    return module


@pytest.fixture
def calls(kitchen: Any, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the kernels in the order they are called."""
    names: list[str] = []

    def watch(name: str) -> None:
        original = getattr(kitchen, name)
        monkeypatch.setattr(kitchen, name, lambda *args, **kwargs: names.append(name) or original(*args, **kwargs))

    for name in KERNELS:
        watch(name)
    return names


@pytest.fixture
def forced(kitchen: Any) -> Arithmetic:
    """The arithmetic that also takes kernels made of PyTorch's own steps."""
    from opensora.opensora_models.native.model.fused import FusedArithmetic

    return FusedArithmetic({"eager"})


def norms(width: int) -> tuple[nn.Module, nn.Module]:
    """Norms of queries and keys in ComfyUI's layers, with a patch (as a LoRA is) on the weights of the keys."""
    import comfy.ops

    q_norm, k_norm = (
        comfy.ops.manual_cast.RMSNorm(width, eps=NORM_EPS, dtype=torch.float16).requires_grad_(False) for _ in range(2)
    )
    for seed, norm in enumerate((q_norm, k_norm)):
        norm.weight.copy_(1 + randn(width, seed=seed) / 4)
    k_norm.weight_function = [lambda weight: 2 * weight]
    return q_norm, k_norm


def rotations() -> dict[str, tuple[Rotary, tuple[int, ...]]]:
    """The network's rotations with the shapes [..., heads, d] of the queries they turn."""
    head, third, cpu = RotaryEmbedding(12), RotaryEmbedding(8), torch.device("cpu")
    return {
        "1.2 over time": (head.along(5, device=cpu).per_frame(), (2, 5, 7, 3, 12)),
        "1.2 at one position": (head.along(3, device=cpu).per_frame(), (1, 3, 1, 3, 12)),
        "1.3 in a frame": (third.over_grid(1, 3, 4, scale=1.5, device=cpu), (10, 12, 2, 24)),
        "1.3 in a window": (third.over_grid(5, 2, 3, scale=1.5, device=cpu), (4, 30, 2, 24)),
        "1.3 in a window of one token": (third.over_grid(1, 1, 1, scale=1.5, device=cpu), (4, 1, 2, 24)),
    }


def network_of(version: str, dtype: torch.dtype) -> STDiT3:
    """A network of ComfyUI's layers with seeded weights large enough for every part to matter."""
    import comfy.ops

    network = STDiT3(CONFIGS[version], operations=comfy.ops.manual_cast, dtype=dtype).eval().requires_grad_(False)
    for seed, (key, value) in enumerate(network.state_dict().items()):
        spread = 0.1 if value.ndim < 2 else value[0].numel() ** -0.5
        value.copy_(randn(*value.shape, seed=seed) * spread + float("norm" in key))
    return network


def arguments(version: str, dtype: torch.dtype, masked: bool) -> dict[str, Any]:
    """Seeded inputs of two rows; under the mask the frames of the rows differ."""
    mask = torch.tensor([[False, True, True], [True, False, True]])
    return {
        "x": randn(2, CONFIGS[version].in_channels, 3, 6, 18, seed=5).to(dtype),
        "timestep": torch.tensor([700.0, 90.0]),
        "text": [randn(4, 32, seed=6).to(dtype), randn(7, 32, seed=7).to(dtype)],
        "fps": 24,
        "height": 48,
        "width": 144,
        "frame_mask": mask if masked else None,
    }


@DTYPES
@pytest.mark.parametrize("kernel", ["rms_rope", "apply_rope"])
@pytest.mark.parametrize("place", list(rotations()))
def test_norm_and_rotation(
    forced: Arithmetic,
    kitchen: Any,
    calls: list[str],
    monkeypatch: pytest.MonkeyPatch,
    place: str,
    kernel: str,
    dtype: torch.dtype,
) -> None:
    rotary, shape = rotations()[place]
    packed = randn(*shape[:-2], 3 * shape[-2] * shape[-1], seed=2).to(dtype)
    q, k, _ = packed.unflatten(-1, (3, *shape[-2:])).unbind(-3)  # strided views, as in the network
    before, (q_norm, k_norm) = packed.clone(), norms(shape[-1])
    if kernel == "apply_rope":  # as on CUDA, where the kernel of both steps refuses heads of 72
        monkeypatch.delattr(kitchen, "rms_rope")
    with torch.inference_mode():
        want = Arithmetic().norm_rotary(q, k, q_norm, k_norm, rotary)
        got = forced.norm_rotary(q, k, q_norm, k_norm, rotary)
    assert calls == [kernel]
    assert torch.equal(packed, before)
    for fused, plain in zip(got, want, strict=True):
        assert fused.shape == plain.shape and fused.dtype == dtype
        assert relative(fused.float(), plain.float()) <= TOLERANCE[dtype]


@DTYPES
@pytest.mark.parametrize("modulated", [(1, 1), (2, 1), (2, 3)], ids=["all alike", "by row", "by frame"])
def test_adaptive_norm(forced: Arithmetic, calls: list[str], modulated: tuple[int, int], dtype: torch.dtype) -> None:
    x = (3 * randn(2, 3, 5, 48, seed=1) + 1).to(dtype)
    # The rows of a block's six modulation vectors: views with gaps between the frames.
    shift, scale = randn(*modulated, 6, 48, seed=2).to(dtype).unsqueeze(3).unbind(2)[:2]
    with torch.inference_mode():
        got = forced.adaptive_norm(x, shift, scale)
        want = Arithmetic().adaptive_norm(x.float(), shift.float(), scale.float())
    assert calls == ["adaln"]
    assert got.shape == x.shape and got.dtype == dtype
    # PyTorch's steps round three times where the kernels and the plain formulas do so once.
    assert relative(got.float(), want.float()) <= 3 * TOLERANCE[dtype]


@DTYPES
@MASKED
@VERSIONS
def test_network(forced: Arithmetic, calls: list[str], version: str, masked: bool, dtype: torch.dtype) -> None:
    network, inputs = network_of(version, dtype), arguments(version, dtype, masked)
    with torch.inference_mode():
        plain = network(**inputs)
        assert calls == []
        fused = network(**inputs, transformer_options={"opensora_arithmetic": forced})
        exact = network.float()(**arguments(version, torch.float32, masked))
    # Two norms in each of four blocks, and the last layer's (twice where frames are clean).
    assert calls.count("adaln") == 8 + 1 + masked
    # 1.2 turns in its two temporal blocks; 1.3 in its two spatial ones too, and its temporal ones have two windows.
    assert calls.count("rms_rope") == {"1.2": 2, "1.3": 2 + 2 * 2}[version]
    if dtype == torch.float32:
        torch.testing.assert_close(fused, plain, atol=5e-6, rtol=1e-5)
    else:
        distance = [float((y.float() - exact).norm() / exact.norm()) for y in (fused, plain)]
        assert distance[0] <= 1.2 * distance[1] < 0.02


@VERSIONS
def test_ordinary_arithmetic_takes_no_slow_kernel(tiny_models: Path, calls: list[str], version: str) -> None:
    from opensora.opensora_models.native.model.fused import FusedArithmetic

    model = load(tiny_models, version)
    ordinary = model.model.diffusion_model.arithmetic
    assert isinstance(ordinary, FusedArithmetic)
    network, inputs = network_of(version, torch.float32), arguments(version, torch.float32, masked=True)
    with torch.inference_mode():
        plain = network(**inputs)
        assert torch.equal(network(**inputs, transformer_options={"opensora_arithmetic": ordinary}), plain)
    assert calls == []


def test_as_upstream_never_takes_a_kernel(tiny_models: Path, comfy: Path) -> None:
    model = load(tiny_models, "1.2", as_upstream=True)
    assert type(model.model.diffusion_model.arithmetic) is UpstreamArithmetic


@VERSIONS
def test_where_gradients_are_wanted_they_come(forced: Arithmetic, calls: list[str], version: str) -> None:
    network, inputs = network_of(version, torch.float32), arguments(version, torch.float32, masked=False)
    inputs["x"].requires_grad_()
    network(**inputs, transformer_options={"opensora_arithmetic": forced}).square().mean().backward()
    assert calls == []
    assert inputs["x"].grad.abs().min() > 0


def test_without_the_kernels_everything_works(comfy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.quant_ops

    from opensora.opensora_models.native.model.fused import FusedArithmetic

    monkeypatch.delattr(comfy.quant_ops, "ck", raising=False)
    network, inputs = network_of("1.3", torch.float32), arguments("1.3", torch.float32, masked=True)
    with torch.inference_mode():
        fused = network(**inputs, transformer_options={"opensora_arithmetic": copy.deepcopy(FusedArithmetic())})
        assert torch.equal(fused, network(**inputs))


@torch.no_grad()
def test_compiles_into_one_graph(forced: Arithmetic, calls: list[str]) -> None:
    network = STDiT3(replace(CONFIGS["1.3"], depth=1)).eval()
    inputs = arguments("1.3", torch.float32, masked=True)
    for seed, value in enumerate(network.state_dict().values()):
        value.copy_(randn(*value.shape, seed=seed) / 8)
    want: Tensor = network(**inputs)
    network.arithmetic = forced
    compiled = torch.compile(network, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**inputs), want, atol=5e-6, rtol=1e-5)
    assert calls == []
