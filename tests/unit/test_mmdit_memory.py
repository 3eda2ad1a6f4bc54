"""The memory of one forward at the released width, counted without doing the arithmetic; attention as its result."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from opensora.opensora_models.mmdit.config import RELEASED, RELEASED_HIGH_COMPRESSION, MMDiTConfig
from opensora.opensora_models.mmdit.memory import activation_bytes
from opensora.opensora_models.mmdit.network import MMDiT
from support.allocations import Allocations, flash

GIB = 2**30
TEXT_TOKENS = 512
FLUX = replace(RELEASED, fused_qkv=True, rotation="interleaved", cond_embed=False, guidance_embed=True)
CLIPS = {
    "768px 129 frames": (RELEASED, (1, 16, 33, 72, 128)),
    "256px 129 frames": (RELEASED, (1, 16, 33, 24, 42)),
    "256px three rows": (RELEASED, (3, 16, 33, 24, 42)),
    "256px 65 frames": (RELEASED, (1, 16, 17, 24, 42)),
    "768px high compression": (RELEASED_HIGH_COMPRESSION, (1, 128, 32, 18, 32)),
    "768px fused": (FLUX, (1, 16, 33, 72, 128)),
    "768px image": (FLUX, (1, 16, 1, 72, 128)),
}


def counted_peak(config: MMDiTConfig, shape: tuple[int, ...], dtype: torch.dtype, device: str = "meta") -> int:
    """Peak bytes of a forward with all its inputs; depth does not matter, nothing is kept between blocks."""
    config = replace(config, depth=1, depth_single_blocks=2)
    made = {"dtype": dtype, "device": device}
    network = MMDiT(config, attention=flash, **made)
    x, text = torch.empty(shape, **made), torch.empty(shape[0], TEXT_TOKENS, config.context_in_dim, **made)
    time, pooled = torch.ones(shape[0], device=device), torch.empty(shape[0], config.vec_in_dim, **made)
    reference = torch.empty(shape[0], 1 + config.channels, *shape[2:], **made) if config.cond_embed else None
    inputs = [tensor for tensor in (x, text, time, pooled, reference) if tensor is not None]
    with torch.no_grad(), Allocations([*network.parameters(), *inputs]) as allocations:
        network(x, time, text, pooled, reference=reference, guidance=time)
    return allocations.peak


@pytest.mark.parametrize(("name", "most"), [("768px 129 frames", 4.2), ("256px 129 frames", 0.5)])
def test_one_row_in_bfloat16_keeps_the_bar(name: str, most: float) -> None:
    assert counted_peak(*CLIPS[name], torch.bfloat16) <= most * GIB


@pytest.mark.parametrize("name", CLIPS)
def test_the_estimate_is_honest(name: str) -> None:
    config, shape = CLIPS[name]
    peak = counted_peak(config, shape, torch.bfloat16)
    assert activation_bytes(config, shape, TEXT_TOKENS, 2) == pytest.approx(peak, rel=0.25)


@pytest.mark.parametrize("name", ["256px 65 frames", "768px image"])
def test_the_estimate_is_honest_in_float32(name: str) -> None:
    config, shape = CLIPS[name]
    peak = counted_peak(config, shape, torch.float32)
    assert activation_bytes(config, shape, TEXT_TOKENS, 4) == pytest.approx(peak, rel=0.25)


def test_the_estimate_follows_another_width() -> None:
    config = replace(RELEASED, hidden_size=1536, num_heads=12, mlp_ratio=2.0)
    shape = (2, 16, 17, 24, 42)
    estimate = activation_bytes(config, shape, TEXT_TOKENS, 2)
    assert estimate == pytest.approx(counted_peak(config, shape, torch.bfloat16), rel=0.25)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_the_estimate_is_honest_on_a_cpu(dtype: torch.dtype) -> None:
    """Where less is rotated at a time; really computed, so at a smaller width."""
    config, shape = replace(RELEASED, hidden_size=512, num_heads=4), (1, 16, 5, 24, 42)
    estimate = activation_bytes(config, shape, TEXT_TOKENS, dtype.itemsize, "cpu")
    assert estimate == pytest.approx(counted_peak(config, shape, dtype, "cpu"), rel=0.25)
