"""What is told about an autoencoder's memory, against every allocation of the released network, followed on the meta
device without computing anything.

Strips of a layer are all alike, so the first two and the last are enough to find the peak; images of v1.2 as well.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.vae import autoencoder, blocks
from opensora.opensora_models.vae.autoencoder import OpenSora12, OpenSora13
from opensora.opensora_models.vae.budget import MEBIBYTE, Job, candidate_plans, decode_bytes, encode_bytes
from opensora.opensora_models.vae.causal import CausalConfig
from opensora.opensora_models.vae.distribution import mode
from opensora.opensora_models.vae.image import ImageConfig
from opensora.opensora_models.vae.strips import MIN_ROWS, Moments, Rows, Strips
from opensora.opensora_models.vae.temporal import TemporalConfig
from support.allocations import Allocations

HONEST = 0.15
SIZES = {"480p": (480, 848), "720p": (720, 1280)}
PLANS = {
    f"{'lean' if plan.lean else plan.images} {(plan.strip_bytes or 0) // MEBIBYTE} MiB": plan
    for plan in [*candidate_plans(), Strips(None)]
}


@cache
def released(version: str, dtype: torch.dtype) -> OpenSora12 | OpenSora13:
    with torch.device("meta"):
        model = OpenSora12() if version == "1.2" else OpenSora13()
    return model.to(dtype).eval()


@pytest.fixture
def few_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    """Attention as fused kernels do it, which allocate their result, and only as many strips as differ."""
    bounds, batches = Strips.bounds, autoencoder._micro_batches

    def few(self: Strips, rows: Rows) -> list[tuple[int, int]]:
        found = bounds(self, rows)
        return found if len(found) < 4 else [*found[:2], found[-1]]

    monkeypatch.setattr(Strips, "bounds", few)
    monkeypatch.setattr(autoencoder, "_micro_batches", lambda frames, plan: batches(frames, plan)[:2])
    monkeypatch.setattr(blocks, "attention", lambda q, k, v, causal: torch.empty_like(v))


def peak(model: torch.nn.Module, run: Callable[[Tensor], Tensor], given: Tensor) -> int:
    """Most bytes beyond weights and input that live at once."""
    with torch.no_grad(), Allocations([*model.parameters(), *model.buffers(), given]) as allocations:
        run(given)
    return allocations.peak


def counted(model: OpenSora12 | OpenSora13, job: Job, decoding: bool, dtype: torch.dtype, plan: Strips) -> int:
    """The peak while a whole group goes through; that of encoding includes the group's pixels."""
    cells = (job.height // 8, job.width // 8)
    if decoding:
        latents = torch.empty((1, model.latent_channels, 5, *cells), dtype=dtype, device="meta")
        return peak(model, lambda x: model.decode_group(x, 17, plan), latents)
    pixels = torch.empty((1, 3, 17, job.height, job.width), dtype=dtype, device="meta")
    most = peak(model, lambda x: model.encode_group(x, plan, mode), pixels)
    if isinstance(model, OpenSora12):  # its temporal stage had only two batches of images
        images = torch.empty((1, 4, 17, *cells), dtype=dtype, device="meta")
        most = max(most, peak(model, model.temporal_vae.moments, images))
    return most + pixels.nbytes


def told(model: OpenSora12 | OpenSora13, job: Job, decoding: bool, plan: Strips) -> float:
    return (decode_bytes if decoding else encode_bytes)(model, job, plan)


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize("size", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_the_budget_is_what_released_networks_allocate(
    few_strips: None, version: str, direction: str, size: tuple[int, int], plan: Strips
) -> None:
    model, decoding = released(version, torch.bfloat16), direction == "decode"
    job = Job(*size, frames=20 if decoding else 17, element_size=2)
    assert told(model, job, decoding, plan) == pytest.approx(
        counted(model, job, decoding, torch.bfloat16, plan), rel=HONEST
    )


@pytest.mark.parametrize("plan", [candidate_plans()[0], candidate_plans()[2]], ids=["first", "lean"])
@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_in_float32_as_well(few_strips: None, version: str, direction: str, plan: Strips) -> None:
    model, decoding = released(version, torch.float32), direction == "decode"
    job = Job(*SIZES["480p"], frames=20 if decoding else 17, element_size=4)
    assert told(model, job, decoding, plan) == pytest.approx(
        counted(model, job, decoding, torch.float32, plan), rel=HONEST
    )


def narrow(version: str) -> OpenSora12 | OpenSora13:
    with torch.device("meta"):
        if version == "1.3":
            return OpenSora13(CausalConfig(width=32)).bfloat16()
        return OpenSora12(ImageConfig(widths=(32, 64, 128, 128)), TemporalConfig(filters=32, blocks=1)).bfloat16()


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_few_strips_have_the_peak_of_all(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, version: str, direction: str
) -> None:
    """What the other tests rely on."""
    monkeypatch.setattr(blocks, "attention", lambda q, k, v, causal: torch.empty_like(v))
    model, job, plan = narrow(version), Job(128, 128, 20, 2), Strips(MEBIBYTE // 2, images=4)
    everything = counted(model, job, direction == "decode", torch.bfloat16, plan)
    request.getfixturevalue("few_strips")
    assert counted(model, job, direction == "decode", torch.bfloat16, plan) == pytest.approx(everything, rel=0.01)


@pytest.mark.parametrize("lean", [False, True])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_no_layer_is_cut_by_its_narrow_side(monkeypatch: pytest.MonkeyPatch, version: str, lean: bool) -> None:
    """A strip reads no more of a stored layer than was asked for, but for the least of rows and those around them."""
    limit, around, larger = MEBIBYTE // 2, 5, []
    of = Rows.of

    def watched(tensor: Tensor, moments: Moments | None = None) -> Rows:
        rows = of(tensor, moments)
        stored, row = rows.read, rows.bytes // rows.height

        def read(first: int, last: int) -> Tensor:
            if (last - first) * row > max(limit, 2 * MIN_ROWS * row) + around * row:
                larger.append((rows.shape, first, last))
            return stored(first, last)

        rows.read = read
        return rows

    monkeypatch.setattr(Rows, "of", watched)
    monkeypatch.setattr(blocks, "attention", lambda q, k, v, causal: torch.empty_like(v))
    model, plan, height, width = narrow(version), Strips(limit, lean, 4), 128, 128
    with torch.no_grad():
        latents = torch.empty((1, model.latent_channels, 5, height // 8, width // 8), device="meta").bfloat16()
        model.decode_group(latents, 17, plan)
        model.encode_group(torch.empty((1, 3, 17, height, width), device="meta").bfloat16(), plan, mode)
    assert not larger
