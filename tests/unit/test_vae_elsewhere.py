"""The autoencoders on devices that are not here: tensors without values, and the demands of PyTorch's kernels there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from opensora.opensora_models.vae import strips
from opensora.opensora_models.vae.dcae import DcAeConfig
from opensora.opensora_models.vae.hunyuan import HunyuanConfig
from opensora.opensora_models.vae.piecewise import PiecewiseAutoencoder
from opensora.opensora_models.vae.strips import Strips, moments_of
from opensora.opensora_models.vae.tiled import OpenSora20, OpenSora20HighCompression, Tiling
from support.vaes import tiny12, tiny13

ONE_PIECE = Tiling(spatial=False, temporal=False)
MODELS: dict[str, Callable[[], PiecewiseAutoencoder]] = {
    "1.2": tiny12,
    "1.3": tiny13,
    "2.0": lambda: OpenSora20(
        HunyuanConfig(widths=(4, 6, 8, 8), layers=1, latent_channels=3, groups=2), tiling=ONE_PIECE
    ),
    "2.0 high compression": lambda: OpenSora20HighCompression(
        DcAeConfig(
            widths=(4, 4, 8, 8, 16), encoder_blocks=(1, 1, 1, 1, 1), decoder_blocks=(1, 1, 1, 1, 1),
            attention=(False, False, False, True, True), time_stages=(2, 3), latent_channels=4, head=4, window=3,
            expansion=2,
        ),
        tiling=ONE_PIECE,
    ),
}  # fmt: skip


class Demands(TorchDispatchMode):
    """Refuses what kernels off the CPU refuse, and counts the calls they demand something of.

    ``native_group_norm`` of PyTorch (aten/src/ATen/native/group_norm.cpp) takes plain tensors only, where the CPU's
    takes channels last as well; ``torch.nn.functional.group_norm`` makes them plain itself. Convolutions give
    the layout they are given, as cuDNN's do.
    """

    def __init__(self, float64: bool = True) -> None:
        super().__init__()
        self.float64, self.norms, self.convolutions = float64, 0, 0

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if function is torch.ops.aten.native_group_norm.default and args[0].device.type != "cpu":
            self.norms += 1
            assert args[0].is_contiguous(), "Expected X.is_contiguous(memory_format) to be true"
        result = function(*args, **(kwargs or {}))
        if function is torch.ops.aten.convolution.default:
            self.convolutions += args[0].ndim == 5
            result = result.contiguous(memory_format=strips.memory_format(args[0]))
        for each in tree_leaves(result):
            if isinstance(each, Tensor) and each.device.type != "cpu":
                assert self.float64 or each.dtype != torch.float64, "Cannot convert a tensor to float64"
        return result


@pytest.fixture
def elsewhere() -> Iterator[None]:
    """Tensors without values on no real device, which is not the CPU either."""
    with torch.device("meta"), torch.no_grad():
        yield


def innermost(*shape: int) -> Tensor:
    """As ComfyUI's pictures are brought to pixels: channels innermost."""
    return torch.zeros(shape[0], *shape[2:], shape[1]).movedim(-1, 1)


def clip(name: str) -> Tensor:
    return innermost(1, 3, 4 if name == "2.0 high compression" else 5, 32, 32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("plan", [Strips(1), Strips(None)], ids=["strips", "whole"])
@pytest.mark.parametrize("name", MODELS)
def test_kernels_of_an_accelerator_take_what_the_autoencoders_give_them(
    name: str, plan: Strips, dtype: torch.dtype, elsewhere: None
) -> None:
    model = MODELS[name]().to(dtype).eval()
    with Demands() as demands:
        latents = model.encode(clip(name).to(dtype), plan)
        assert model.decode(innermost(*latents.shape).to(dtype), None, plan).shape[-2:] == (32, 32)
    assert demands.norms > 0 or name == "2.0 high compression"  # which norms each position by itself


@pytest.mark.parametrize("name", MODELS)
def test_every_3d_convolution_goes_through_its_layers_class(
    name: str, elsewhere: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI's goes round a kernel of cuDNN that takes too much memory."""
    own, calls = nn.Conv3d._conv_forward, 0

    def counted(*arguments: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return own(*arguments)

    monkeypatch.setattr(nn.Conv3d, "_conv_forward", counted)
    model = MODELS[name]().eval()
    with Demands() as demands:
        model.decode(model.encode(clip(name)))
    assert calls == demands.convolutions > 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_statistics_are_merged_where_there_is_float64(dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on Apple's devices, for which a device that is not here stands."""
    monkeypatch.setattr(strips, "NO_FLOAT64", {"cuda"})
    with FakeTensorMode(), torch.device("cuda"):
        x = innermost(1, 8, 3, 22, 5).to(dtype)
        with Demands(float64=False):
            assert [each.device.type for each in moments_of(x, 4)] == ["cuda", "cuda"]
