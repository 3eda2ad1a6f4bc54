"""bfloat16: the accurate path stays near float32, the other one repeats what the original did."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from golden.families.stdit3 import arguments, network_of
from golden.runner import Case, load_case
from opensora.opensora_models.stdit3.network import STDiT3
from opensora.opensora_models.transformer.arithmetic import Arithmetic, UpstreamArithmetic

CASES = Path(__file__).parents[1] / "golden" / "cases" / "stdit3"


def in_float32(case: Case) -> Tensor:
    """The same weights and inputs without any rounding to bfloat16."""
    network = network_of(Case(case.name, {**case.info, "dtype": "float32"}, case.tensors))
    return network(**arguments(case, torch.float32))


def distance(a: Tensor, b: Tensor) -> float:
    """Relative L2."""
    return float((a.float() - b).norm() / b.norm())


@pytest.mark.parametrize("name", ["v12_fwd_bf16", "v13_fwd_bf16"])
@torch.no_grad()
def test_default_is_nearer_to_float32_than_the_original_and_the_switch_is_nearer_to_the_original(name: str) -> None:
    case = load_case(CASES / f"{name}.safetensors")
    exact, original = in_float32(case), case.expected["y"]
    network = network_of(case)
    as_upstream = network(**arguments(case))
    options = {"opensora_arithmetic": Arithmetic()}
    accurate = network(**arguments(case), transformer_options=options)
    assert accurate.dtype == torch.bfloat16
    assert distance(accurate, exact) < distance(original, exact)
    assert distance(as_upstream, original) < distance(accurate, original)
    assert distance(accurate, exact) < 0.012


@torch.no_grad()
def test_default_keeps_the_timestep_that_version_1_2_rounded() -> None:
    case = load_case(CASES / "v12_fwd_bf16.safetensors")
    assert (case.input("timestep").bfloat16().float() - case.input("timestep")).abs().max() >= 1
    assert distance(case.expected["y"], in_float32(case)) > 0.1  # the original is a tenth away because of it


@pytest.mark.parametrize("name", ["v12_fwd_even", "v13_fwd_window_oddpad", "v12_fwd_xmask"])
@torch.no_grad()
def test_in_float32_both_are_the_same(name: str) -> None:
    case = load_case(CASES / f"{name}.safetensors")
    network: STDiT3 = network_of(case)
    accurate = network(**arguments(case))
    network.arithmetic = UpstreamArithmetic()
    torch.testing.assert_close(network(**arguments(case)), accurate, atol=2e-5, rtol=1e-4)
