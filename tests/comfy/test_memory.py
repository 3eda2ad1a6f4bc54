"""The memory estimate against every allocation of a real forward, followed without doing the arithmetic."""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

pytestmark = pytest.mark.comfy

HONEST = 0.25


class Allocations(TorchDispatchMode):
    """Follows the memory of every tensor made inside; ``peak`` is the most that lived at once, in bytes."""

    def __init__(self, existing: Iterable[Tensor]) -> None:
        super().__init__()
        self.existing = {tensor.untyped_storage()._cdata for tensor in existing}
        self.alive: dict[int, Any] = {}
        self.now = self.peak = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.alive or key in self.existing:
            return
        self.alive[key] = weakref.ref(storage, lambda _: self._freed(key, size))
        self.now += size
        self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int) -> None:
        self.alive.pop(key, None)
        self.now -= size


def flash(q: Tensor, k: Tensor, v: Tensor, heads: int, mask: Tensor | None = None, **options: Any) -> Tensor:
    """What a flash kernel allocates: its result."""
    return q.new_empty(q.shape[0], q.shape[2], q.shape[1] * q.shape[3])


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
