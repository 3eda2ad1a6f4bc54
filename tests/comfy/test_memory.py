"""The memory estimate against every allocation of a real forward, followed without doing the arithmetic."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from support.allocations import Allocations, flash

pytestmark = pytest.mark.comfy

HONEST = 0.25


def counted_peak(version: str, shape: tuple[int, ...], dtype: torch.dtype, device: str, masked: bool) -> int:
    """Peak bytes of a forward of the released width; depth does not matter, nothing is kept between blocks."""
    from opensora.opensora_models.stdit3.config import XL_V12, XL_V13
    from opensora.opensora_models.stdit3.network import STDiT3

    config = dataclasses.replace({"1.2": XL_V12, "1.3": XL_V13}[version], depth=2)
    network = STDiT3(config, device=device, dtype=dtype, attention=flash)
    batch, channels, frames, height, width = shape
    made = {"dtype": dtype, "device": device}
    x, text = torch.empty(shape, **made), torch.empty(batch, 60, config.caption_channels, **made)
    mask = torch.ones(batch, frames, dtype=torch.bool, device=device) if masked else None
    time = torch.zeros(batch, device=device)
    size = {"fps": 24.0, "height": height * 8, "width": width * 8}
    with torch.no_grad(), Allocations([*network.parameters(), *network.buffers(), x, text]) as allocations:
        network(x, time, text, frame_mask=mask, **size)
    return allocations.peak


SHAPES = {
    "240p 51 frames": (2, 15, 30, 53),
    "480p 51 frames": (2, 15, 60, 106),
    "720p 51 frames": (2, 15, 90, 160),
    "720p 113 frames": (2, 35, 90, 160),
    "720p image": (2, 1, 90, 160),
    "144p image": (1, 1, 18, 32),
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_the_estimate_is_honest(comfy: Path, version: str, name: str, dtype: torch.dtype) -> None:
    """On the meta device the network takes the way it takes on an accelerator, and nothing is computed."""
    from opensora.opensora_models.native.memory import activation_bytes
    from opensora.opensora_models.stdit3.config import XL_V12, XL_V13

    config = {"1.2": XL_V12, "1.3": XL_V13}[version]
    batch, *rest = SHAPES[name]
    shape = (batch, config.in_channels, *rest)
    estimate = activation_bytes(config, shape, dtype.itemsize)
    for masked in (False, True):
        assert estimate == pytest.approx(counted_peak(version, shape, dtype, "meta", masked), rel=HONEST)


def test_the_model_reports_it_to_comfyui(comfy: Path, tiny_models: Path) -> None:
    from opensora.opensora_models.native.memory import activation_bytes
    from support.native import load

    model = load(tiny_models, "1.2").model
    shape = [2, 4, 15, 30, 53]
    want = activation_bytes(model.opensora, shape, 4, "cpu")
    assert model.memory_required(shape) == want
    model.memory_usage_factor = 2.0
    assert model.memory_required(shape, cond_shapes={"text": [[1, 60, 64]]}) == 2 * want
