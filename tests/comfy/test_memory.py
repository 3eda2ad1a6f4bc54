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


@pytest.mark.parametrize(("version", "channels"), [("1.2", 4), ("1.3", 16), ("2.0", 16)])
def test_what_a_run_on_the_cpu_holds_beside_a_row_is_counted(
    comfy: Path, tiny_models: Path, monkeypatch: pytest.MonkeyPatch, version: str, channels: int
) -> None:
    """Rows come one after the other, as where memory is short: then the size node has to know what a run needs."""
    from comfy.model_patcher import ModelPatcher

    from opensora.nodes.sampling import Sampler
    from opensora.opensora_models.native.memory import SAMPLER_TENSORS_HERE
    from support.native import conditioning, load

    model = load(tiny_models, version)
    network = model.model.diffusion_model
    monkeypatch.setattr(type(network), "forward", lambda self, x, *_, **__: x * 0.5)
    monkeypatch.setattr(ModelPatcher, "get_free_memory", lambda self, device: 0)
    latent = {"samples": torch.zeros(1, channels, 5, 64, 64)}
    values = {"positive": conditioning(), "negative": conditioning(5), "steps": 3, "cfg": 7.0, "seed": 1,
              "denoise": 1.0, "guidance": "automatic", "image_cfg": 5.0, "renoise_given": True}  # fmt: skip
    with torch.inference_mode(), Allocations([*network.parameters(), latent["samples"]]) as allocations:
        Sampler.execute(model=model, latent=latent, references=None, **values)
    counted = 1 + allocations.peak / latent["samples"].nbytes
    assert counted == pytest.approx(SAMPLER_TENSORS_HERE, rel=HONEST)


def test_a_clip_that_the_cpu_cannot_sample_is_refused_before_it_is_made(
    comfy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    from opensora.nodes.size import EmptyLatent
    from opensora.opensora_models.native.memory import SAMPLER_TENSORS, SAMPLER_TENSORS_HERE

    latent = 4 * 16 * 5 * 64 * 64
    monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: (SAMPLER_TENSORS + 1) * latent)
    made = {"version": "1.3", "height": 512, "width": 512, "frames": 17, "batch_size": 1}
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("cuda", 0))
    EmptyLatent.execute(**made)  # a card has the rest
    monkeypatch.setattr(management, "get_torch_device", lambda: torch.device("cpu"))
    with pytest.raises(ValueError, match="Sampling latents of 1×16×5×64×64 needs about"):
        EmptyLatent.execute(**made)
    monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: -(2.0**30))
    with pytest.raises(ValueError, match=r"has 0\.0 GB free"):
        EmptyLatent.execute(**made)
    monkeypatch.setattr(management, "get_free_memory", lambda *_, **__: (SAMPLER_TENSORS_HERE + 1) * latent)
    EmptyLatent.execute(**made)
