"""What is told about the memory of 2.0's autoencoders, held against every tensor of a computation that is followed."""

from __future__ import annotations

import functools
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

from opensora.opensora_models.vae import needs
from opensora.opensora_models.vae.budget import candidate_plans
from opensora.opensora_models.vae.dcae import DcAeConfig
from opensora.opensora_models.vae.hunyuan import HunyuanConfig
from opensora.opensora_models.vae.strips import Strips
from opensora.opensora_models.vae.tiled import HUNYUAN_TILING, OpenSora20, OpenSora20HighCompression, TiledAutoencoder
from opensora.opensora_models.vae.tiled_budget import decode_bytes, encode_bytes, fitting, joining_bytes
from opensora.opensora_models.vae.tiling import joined
from support.allocations import Allocations

MIB, GIB = 2**20, 2**30
HONEST = 0.25
# Depth does not matter, nothing is kept between blocks; two in a row, as a decoder of one layer has them, show what
# they need of each other.
HUNYUAN = HunyuanConfig(layers=1)
DC_AE = DcAeConfig(encoder_blocks=(1,) * 6, decoder_blocks=(1,) * 6)
NARROW = HunyuanConfig(widths=(32, 48, 64, 96), layers=1, groups=16)
NARROW_DC_AE = DcAeConfig((16, 32, 32, 64, 64, 128), (1,) * 6, (2,) * 6, latent_channels=16)


@functools.cache
def model_of(config: HunyuanConfig | DcAeConfig, dtype: torch.dtype = torch.bfloat16) -> TiledAutoencoder:
    with torch.device("meta"):
        kind = OpenSora20 if isinstance(config, HunyuanConfig) else OpenSora20HighCompression
        return kind(config).to(dtype).eval()


@pytest.fixture(autouse=True)
def attention_by_its_result(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(F, "scaled_dot_product_attention", lambda q, k, v: torch.empty_like(q))


@torch.inference_mode()
def counted(model: TiledAutoencoder, shape: tuple[int, ...], plan: Strips | None, *, decoding: bool) -> float:
    """Peak of live tensors beyond weights and input."""
    dtype = next(model.parameters()).dtype
    given = torch.empty((1, model.latent_channels if decoding else 3, *shape), dtype=dtype, device="meta")
    with Allocations([*model.parameters(), *model.buffers(), given]) as allocations:
        model.decode_piece(given, plan) if decoding else model.encode_piece(given, plan)
    return allocations.peak


def pixels_of(model: TiledAutoencoder, latents: tuple[int, int, int]) -> tuple[int, int, int]:
    factor = model.space_factor
    return model.frames_of_piece(latents[0]), factor * latents[1], factor * latents[2]


PLANS = {"plain": None, "whole": Strips(None), "strips": Strips(16 * MIB), "lean": Strips(16 * MIB, lean=True)}
CASES = {
    "hunyuan": (HUNYUAN, torch.bfloat16, (5, 32, 32)),
    "hunyuan float32": (HUNYUAN, torch.float32, (2, 20, 32)),
    "hunyuan picture": (HUNYUAN, torch.bfloat16, (1, 32, 32)),
    "narrow hunyuan": (NARROW, torch.bfloat16, (9, 32, 24)),
    "dc-ae": (DC_AE, torch.bfloat16, (3, 8, 8)),
    "dc-ae float32": (DC_AE, torch.float32, (2, 8, 6)),
    "dc-ae picture": (DC_AE, torch.bfloat16, (1, 8, 8)),
    "narrow dc-ae": (NARROW_DC_AE, torch.float32, (8, 8, 8)),
}


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
@pytest.mark.parametrize(("config", "dtype", "latents"), CASES.values(), ids=CASES)
def test_the_estimate_is_honest(
    config: HunyuanConfig | DcAeConfig, dtype: torch.dtype, latents: tuple[int, int, int], plan: Strips | None
) -> None:
    model = model_of(config, dtype)
    told = decode_bytes(model, latents, dtype.itemsize, plan)
    assert told == pytest.approx(counted(model, latents, plan, decoding=True), rel=HONEST)
    pixels = pixels_of(model, latents)
    told = encode_bytes(model, pixels, dtype.itemsize, plan)
    given = 3 * pixels[0] * pixels[1] * pixels[2] * dtype.itemsize
    assert told == pytest.approx(given + counted(model, pixels, plan, decoding=False), rel=HONEST)


LEAN = Strips(64 * MIB, lean=True)
# One released tile in bfloat16: plan, and bars in GiB for decoding and encoding.
BARS = {
    "hunyuan lean": (HUNYUAN, (33, 32, 32), LEAN, 3.1, 3.0),
    "dc-ae plain": (DC_AE, (8, 8, 8), None, 3.1, 3.1),
    "dc-ae whole": (DC_AE, (8, 8, 8), Strips(None), 3.1, 3.1),
    "dc-ae lean": (DC_AE, (8, 8, 8), LEAN, 1.5, 1.5),
}


@pytest.mark.parametrize(("config", "latents", "plan", "decode", "encode"), BARS.values(), ids=BARS)
def test_a_released_tile_keeps_its_bars(
    config: HunyuanConfig | DcAeConfig, latents: tuple[int, int, int], plan: Strips | None, decode: float, encode: float
) -> None:
    model = model_of(config)
    assert counted(model, latents, plan, decoding=True) <= decode * GIB
    if config is HUNYUAN:
        model = model_of(HunyuanConfig(layers=2))  # two blocks in a row in the encoder, too
    assert counted(model, pixels_of(model, latents), plan, decoding=False) <= encode * GIB
    assert decode_bytes(model, latents, 2, plan) <= decode * GIB
    assert encode_bytes(model, pixels_of(model, latents), 2, plan) <= encode * GIB


def test_tiles_make_the_need_independent_of_the_size() -> None:
    """768px and 129 frames: what one tile takes; without temporal tiling the need grows with the length."""
    model = model_of(HUNYUAN)
    plan = candidate_plans()[2]
    tile = decode_bytes(model, (33, 32, 32), 2, plan)
    assert decode_bytes(model, (33, 72, 128), 2, plan) == tile <= 3.1 * GIB
    beside = joining_bytes(model.decode_layout((33, 72, 128)), 3, 2)
    result = 3 * 129 * 576 * 1024 * 2
    assert tile + beside - result <= 3.5 * GIB
    assert decode_bytes(model, (65, 72, 128), 2, plan) > 1.9 * tile
    with torch.device("meta"):
        temporal = OpenSora20(HUNYUAN, tiling=replace(HUNYUAN_TILING, temporal=True))
    assert decode_bytes(temporal, (65, 72, 128), 2, plan) == decode_bytes(temporal, (500, 72, 128), 2, plan) < tile


@pytest.mark.parametrize("config", [HUNYUAN, DC_AE], ids=["hunyuan", "dc-ae"])
@pytest.mark.parametrize("decoding", [True, False])
def test_less_free_memory_gives_a_leaner_plan(config: HunyuanConfig | DcAeConfig, decoding: bool) -> None:
    model = model_of(config)
    shape = (8, 8, 8) if decoding else (32, 256, 256)
    measure = decode_bytes if decoding else encode_bytes
    plans = candidate_plans()
    needs = [measure(model, shape, 2, plan) for plan in plans]
    assert needs == sorted(needs, reverse=True)
    chosen = [fitting(model, shape, 2, free, decoding=decoding) for free in (1e12, 1.3 * needs[-1], 1.0)]
    assert chosen[0] == plans[0] and chosen[2] == plans[-1]
    assert measure(model, shape, 2, chosen[1]) <= needs[0]


@torch.inference_mode()
def test_joining_holds_the_frames_of_a_part_and_the_ends_of_tiles() -> None:
    model = model_of(NARROW)
    layout = model.decode_layout((2, 72, 80))
    sizes = [[8 * (side.stop - side.start) for side in piece.takes[1:]] for piece in layout.pieces]
    with Allocations(()) as allocations:
        list(joined(layout, lambda piece: torch.empty(1, 3, 5, *sizes[piece.number], device="meta")))
    tile = 3 * 5 * 256 * 256 * 4
    told = joining_bytes(layout, 3, 4)
    assert told <= allocations.peak <= told + 3 * tile


# Shapes [B, C, T, h, w] of clips of several tiles, with what is joined beside them.
WHOLE_CLIPS = {
    "hunyuan": (HUNYUAN, (1, 16, 5, 36, 30)),
    "two clips": (NARROW, (2, 16, 5, 36, 30)),
    "dc-ae": (DC_AE, (1, 128, 9, 9, 7)),
}


@pytest.mark.parametrize("plan", [candidate_plans()[0], candidate_plans()[2]], ids=["first", "lean"])
@pytest.mark.parametrize(("config", "shape"), WHOLE_CLIPS.values(), ids=WHOLE_CLIPS)
@torch.inference_mode()
def test_what_is_told_of_a_clip_of_many_tiles_is_honest(
    config: HunyuanConfig | DcAeConfig, shape: tuple[int, ...], plan: Strips
) -> None:
    """As ComfyUI asks for it, the result aside, which has memory of its own there."""
    model = model_of(config)
    latents = torch.empty(shape, dtype=torch.bfloat16, device="meta")
    layout = model.decode_layout(shape)
    video = torch.empty((shape[0], 3, *layout.shape), dtype=torch.bfloat16, device="meta")
    existing = [*model.parameters(), *model.buffers(), latents, video]
    with Allocations(existing) as decoding:
        model.decode(latents, None, plan, out=video)
    assert needs.decode_bytes(model, shape, 2, plan) == pytest.approx(decoding.peak, rel=HONEST)
    with Allocations(existing) as encoding:
        model.encode(video, plan, prepare=torch.clone)
    assert needs.encode_bytes(model, video.shape, 2, plan) == pytest.approx(encoding.peak, rel=HONEST)
