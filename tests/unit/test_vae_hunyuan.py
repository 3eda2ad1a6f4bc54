"""The Hunyuan VAE of release 2.0: its names, sizes, strips and what it sees."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from opensora.opensora_models.vae.distribution import Posterior
from opensora.opensora_models.vae.doubling import nearest
from opensora.opensora_models.vae.edges import BorderConv3d, BorderUpsample, border_around
from opensora.opensora_models.vae.hunyuan import HunyuanConfig, frame_attention
from opensora.opensora_models.vae.strips import Rows, Strips
from opensora.opensora_models.vae.tiled import HUNYUAN_TILING, OpenSora20, Tiling
from opensora.opensora_models.vae.tiled_files import (
    as_linear,
    dc_ae_config,
    hunyuan_config,
    hunyuan_names,
    is_dc_ae,
    is_hunyuan,
)

TINY = HunyuanConfig(widths=(4, 6, 8, 8), layers=1, latent_channels=3, groups=2)
ONE_PIECE = Tiling(spatial=False, temporal=False)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def model_of(config: HunyuanConfig = TINY, tiling: Tiling = ONE_PIECE) -> OpenSora20:
    torch.manual_seed(0)
    return OpenSora20(config, tiling=tiling).eval()


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# -- Names and settings ----------------------------------------------------------------------------------------------


def test_tensors_are_those_of_the_released_file() -> None:
    with torch.device("meta"):
        model = OpenSora20()
    shapes = shapes_of(model)
    assert len(shapes) == 248 and sum(value.numel() for value in model.state_dict().values()) == 246_478_803
    assert shapes["decoder.up_blocks.2.resnets.0.conv_shortcut.conv.weight"] == (256, 512, 1, 1, 1)
    assert shapes["encoder.down_blocks.2.downsamplers.0.conv.conv.weight"] == (512, 512, 3, 3, 3)
    assert shapes["decoder.mid_block.attentions.0.to_out.0.weight"] == (512, 512)
    assert hunyuan_config(shapes) == HunyuanConfig()


@pytest.mark.parametrize(
    "config",
    [
        HunyuanConfig(),
        HunyuanConfig(widths=(8, 8, 16, 24), layers=3, latent_channels=5, groups=8, channels=1),
        HunyuanConfig(widths=(16, 32, 32), layers=1, space_factor=4, groups=16, attention=False),
        HunyuanConfig(widths=(4, 8, 8), layers=1, space_factor=8, groups=4),
        HunyuanConfig(widths=(4, 4, 8, 8, 12), layers=2, groups=4),
        HunyuanConfig(widths=(6, 10, 14, 14), layers=1, groups=2),
    ],
    ids=str,
)
def test_settings_are_read_from_shapes(config: HunyuanConfig) -> None:
    with torch.device("meta"):
        shapes = shapes_of(OpenSora20(config))
    assert is_hunyuan(shapes) and not is_dc_ae(shapes)
    assert hunyuan_config(shapes) == config


def test_settings_weights_cannot_show_come_from_the_file() -> None:
    with torch.device("meta"):
        shapes = shapes_of(OpenSora20(TINY))
    got = hunyuan_config(
        shapes, {"norm_num_groups": 1, "scale_factor": 0.5, "shift_factor": 0.25, "time_compression_ratio": 2}
    )
    assert (got.groups, got.scale, got.shift, got.time_factor) == (1, 0.5, 0.25, 2)
    assert hunyuan_config(shapes, {"groups": 1}).groups == 1
    for wrong in ({"groups": 3}, {"time_factor": 3}, {"scale": "big"}, {"scale": 0.0}, {"norm_num_groups": 1.5}):
        with pytest.raises(ValueError, match=r"; (expected|the nearest good value)|which does not divide"):
            hunyuan_config(shapes, wrong)


def test_a_file_with_tensors_missing_is_told() -> None:
    with torch.device("meta"):
        shapes = shapes_of(OpenSora20(TINY))
    del shapes["encoder.down_blocks.1.resnets.0.conv1.conv.weight"]
    with pytest.raises(ValueError, match=r"lacks 'encoder.down_blocks.1.resnets.0.conv1.conv.weight'"):
        hunyuan_config(shapes)
    with pytest.raises(ValueError, match=r"no tensor named like 'encoder.down_blocks.0'"):
        hunyuan_config({})
    with pytest.raises(ValueError, match=r"no tensor named like 'encoder.stages.0'"):
        dc_ae_config(shapes)


def core_names(shapes: dict[str, tuple[int, ...]], levels: int) -> dict[str, tuple[int, ...]]:
    """The same model as ComfyUI names it: levels counted from the pixels, projections as convolutions."""
    replaced = {
        "mid_block.resnets.0.": "mid.block_1.", "mid_block.resnets.1.": "mid.block_2.",
        "mid_block.attentions.0.": "mid.attn_1.", "group_norm.": "norm.", "to_out.0.": "proj_out.", "to_q.": "q.",
        "to_k.": "k.", "to_v.": "v.", "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out",
        "down_blocks.": "down.", "downsamplers.0.": "downsample.", "upsamplers.0.": "upsample.",
        **{f"up_blocks.{level}.": f"up.{levels - 1 - level}." for level in range(levels)}, ".resnets.": ".block.",
    }  # fmt: skip
    renamed = {}
    for original, shape in shapes.items():
        name = original
        for old, new in replaced.items():
            name = name.replace(old, new)
        renamed[name] = (*shape, 1, 1, 1) if ".attn_1." in name and len(shape) == 2 else shape
    return renamed


def test_three_sets_of_names_are_one_model() -> None:
    with torch.device("meta"):
        original = shapes_of(OpenSora20(TINY))
    core = core_names(original, levels=4)
    assert "decoder.up.3.upsample.conv.conv.weight" in core and "encoder.mid.attn_1.q.weight" in core
    old = {name.replace("to_q", "query").replace("to_out.0", "proj_attn"): shape for name, shape in original.items()}
    for names in (original, core, old):
        ours = hunyuan_names(names)
        tensors = {ours[name]: as_linear(ours[name], torch.empty(shape)) for name, shape in names.items()}
        assert {name: tuple(tensor.shape) for name, tensor in tensors.items()} == original
        assert is_hunyuan(names)
    assert not is_hunyuan({name: shape for name, shape in core.items() if not name.startswith("quant_conv")})


@pytest.mark.comfy
def test_comfyui_names_are_what_comfyui_makes_of_the_original(comfy: Path) -> None:
    import comfy.diffusers_convert

    with torch.device("meta"):
        state = OpenSora20(TINY).state_dict()
    converted = comfy.diffusers_convert.convert_vae_state_dict(dict(state))
    assert {name: tuple(value.shape) for name, value in converted.items()} == core_names(shapes_of(model_of()), 4)


# -- Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("frames", "latents"), [(1, 1), (2, 1), (4, 1), (5, 2), (9, 3), (10, 3), (33, 9), (129, 33), (130, 33)]
)
def test_counts_of_frames(frames: int, latents: int) -> None:
    with torch.device("meta"):
        tilings = [OpenSora20(TINY, tiling=dataclasses.replace(HUNYUAN_TILING, temporal=on)) for on in (False, True)]
    for model in tilings:
        assert model.latents_of(frames) == latents
        assert model.frames_of(latents) == 4 * (latents - 1) + 1


@torch.inference_mode()
def test_sizes_agree_with_what_the_networks_give() -> None:
    model = model_of(tiling=Tiling(True, True, 32, 16))
    for frames, height, width in ((1, 16, 40), (6, 33, 8), (18, 16, 15)):
        video = noise(1, 3, frames, height, width)
        latents = model.encode(video)
        assert tuple(latents.shape[2:]) == model.encode_layout(video.shape).shape
        assert latents.shape[2] == model.latents_of(frames)
        pixels = model.decode(latents)
        assert tuple(pixels.shape[2:]) == model.decode_layout(latents.shape).shape
        assert pixels.shape[2] == model.frames_of(latents.shape[2])


def test_scale_of_the_latents() -> None:
    model = model_of(dataclasses.replace(TINY, shift=0.5))
    latents = noise(1, 3, 1, 2, 2)
    torch.testing.assert_close(model.normalise(latents), 0.476986 * (latents - 0.5))
    torch.testing.assert_close(model.denormalise(model.normalise(latents)), latents)
    assert model.normalise(latents.bfloat16()).dtype == torch.bfloat16


# -- Strips ----------------------------------------------------------------------------------------------------------

PLANS = [Strips(None), Strips(1), Strips(1, lean=True), Strips(12_000), Strips(12_000, lean=True)]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("frames", [1, 6])
@torch.inference_mode()
def test_strips_equal_the_whole(frames: int, plan: Strips) -> None:
    model = model_of()
    video, latents = noise(1, 3, frames, 29, 14), noise(1, 3, frames, 4, 2)
    torch.testing.assert_close(model.encode(video, plan), model.encode(video), **CLOSE)
    torch.testing.assert_close(model.decode(latents, None, plan), model.decode(latents), **CLOSE)


@pytest.mark.parametrize(
    "config",
    [
        HunyuanConfig(widths=(4, 4, 8), layers=2, latent_channels=2, groups=2, space_factor=4),
        HunyuanConfig(widths=(4, 6, 8), layers=1, latent_channels=2, groups=2),
        HunyuanConfig(widths=(4, 4, 4, 4, 8), layers=1, latent_channels=2, groups=2, attention=False),
    ],
    ids=str,
)
@torch.inference_mode()
def test_other_depths_work(config: HunyuanConfig) -> None:
    """Also where the last level has a step, or one that doubles time alone."""
    model = model_of(config)
    video = noise(1, 3, 5, 16, 8)
    latents = model.encode(video)
    assert latents.shape == (1, 2, 2, *(side // model.space_factor for side in (16, 8)))
    torch.testing.assert_close(model.encode(video, Strips(1, lean=True)), latents, **CLOSE)
    pixels = model.decode(latents)
    assert pixels.shape == video.shape
    torch.testing.assert_close(model.decode(latents, None, Strips(1, lean=True)), pixels, **CLOSE)


@torch.inference_mode()
def test_half_precision_strips_stay_close() -> None:
    model = model_of().bfloat16()
    latents = noise(1, 3, 2, 4, 2).bfloat16()
    whole, strips = (model.decode(latents, None, plan).float() for plan in (None, Strips(1, lean=True)))
    assert float((strips - whole).norm() / whole.norm()) < 0.03


def test_the_plain_path_can_be_differentiated() -> None:
    model = model_of()
    loss = model.decode(model.encode(noise(1, 3, 5, 16, 16))).square().mean()
    loss.backward()
    assert all(
        parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.decoder.parameters()
    )


# -- Single layers ---------------------------------------------------------------------------------------------------


def test_the_border_is_what_torch_repeats() -> None:
    x = noise(2, 3, 4, 5, 6)
    for margins in ((2, 1, 1, 1), (1, 0, 1, 1), (0, 1, 0, 2), (2, 0, 0, 0)):
        front, above, below, side = margins
        want = F.pad(x, (side, side, above, below, front, 0), mode="replicate")
        assert torch.equal(border_around(x, *margins), want)


@pytest.mark.parametrize("factors", [(2, 2, 2), (1, 2, 2), (2, 1, 1)])
@pytest.mark.parametrize("frames", [1, 2, 5])
@torch.inference_mode()
def test_upsampling_equals_nearest_and_convolution(factors: tuple[int, int, int], frames: int) -> None:
    torch.manual_seed(0)
    layer, plain = BorderUpsample(4, factors), BorderConv3d(4, 4)
    plain.load_state_dict({key.removeprefix("conv."): value for key, value in layer.state_dict().items()})
    x = noise(1, 4, frames, 6, 5)
    want = plain(nearest(x, layer.axes))
    torch.testing.assert_close(layer(x), want, atol=1e-6, rtol=1e-5)
    assert layer.out_shape(tuple(x.shape)) == tuple(want.shape)
    rows = Rows.of(x)
    for first, last in ((0, 4), (2, 6), (1, 5), (3, 6)):
        got = layer.strip(rows.read, rows.height, first, last)
        torch.testing.assert_close(got, want[..., first:last, :], atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("queries", [1024, 4])
def test_a_frame_sees_itself_and_earlier_frames(queries: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensora.opensora_models.vae.hunyuan.ATTENTION_QUERIES", queries)
    q, k, v = noise(3, 2, 5 * 6, 8).unbind(0)
    frame = torch.arange(30) // 6
    want = F.scaled_dot_product_attention(q, k, v, attn_mask=frame[:, None] >= frame[None, :])
    torch.testing.assert_close(frame_attention(q, k, v, 5), want, atol=1e-6, rtol=1e-5)


@torch.inference_mode()
def test_later_frames_do_not_change_attention_of_earlier_ones() -> None:
    attention = model_of().decoder.mid_block.attentions[0]
    q, k, v = noise(3, 1, 30, 8).unbind(0)
    changed = k.clone()
    changed[:, 24:] += 1
    x = torch.empty(1, 8, 5, 2, 3)
    before, after = attention.attend(q, k, v, x), attention.attend(q, changed, v, x)
    assert torch.equal(before[:, :24], after[:, :24]) and not torch.allclose(before[:, 24:], after[:, 24:])


# -- Tiles -----------------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_a_posterior_is_drawn_once_for_all_tiles() -> None:
    model = model_of(tiling=Tiling(True, False, 32))
    seen: list[tuple[int, ...]] = []

    def draw(posterior: Posterior) -> Tensor:
        seen.append(tuple(posterior.moments.shape))
        return posterior.mean

    assert model.encode(noise(1, 3, 1, 40, 24), draw=draw).shape == (1, 3, 1, 5, 3)
    assert seen == [(1, 6, 1, 5, 3)]


@torch.inference_mode()
def test_progress_parts_and_cut_lengths() -> None:
    model = model_of(tiling=Tiling(True, True, 32, 16))
    latents = noise(1, 3, 5, 1, 5)
    told: list[tuple[int, int]] = []
    out = torch.empty(1, 3, 17, 8, 40)
    whole = model.decode(latents, out=out, between=lambda done, count: told.append((done, count)))
    assert whole is out and told == [(n + 1, 4) for n in range(4)]
    later: list[tuple[int, int]] = []
    (rest,) = model.decoded(latents, first_part=1, between=lambda *done: later.append(done))
    assert torch.equal(rest, whole[:, :, 13:]) and later == told
    parts = list(model.decoded(latents, 15))
    assert [part.shape[2] for part in parts] == [13, 2]
    assert torch.equal(torch.cat(parts, dim=2), whole[:, :, :15])


@torch.inference_mode()
def test_a_batch_is_its_clips() -> None:
    model = model_of(tiling=Tiling(True, False, 32))
    latents = noise(2, 3, 1, 1, 5)
    for plan in (None, Strips(1, lean=True)):
        both = model.decode(latents, None, plan)
        torch.testing.assert_close(both[1:], model.decode(latents[1:], None, plan), atol=2e-4, rtol=1e-3)
