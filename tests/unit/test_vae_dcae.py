"""The DC-AE of release 2.0: its names, sizes, strips and what it sees."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from opensora.opensora_models.releases.known import release_named
from opensora.opensora_models.vae.dcae import DcAeConfig, Enlargement, Reduction
from opensora.opensora_models.vae.doubling import nearest
from opensora.opensora_models.vae.edges import CentredConv3d
from opensora.opensora_models.vae.linear_attention import GatedLayer, LinearAttention, channel_norm, channel_normed
from opensora.opensora_models.vae.strips import Rows, Strips
from opensora.opensora_models.vae.tiled import OpenSora20HighCompression, Tiling
from opensora.opensora_models.vae.tiled_files import dc_ae_config, is_dc_ae, is_hunyuan

TINY = DcAeConfig(
    widths=(4, 4, 8, 8, 16), encoder_blocks=(1, 1, 1, 1, 1), decoder_blocks=(1, 1, 1, 1, 1),
    attention=(False, False, False, True, True), time_stages=(2, 3), latent_channels=4, head=4, window=3, expansion=2,
)  # fmt: skip
ONE_PIECE = Tiling(spatial=False, temporal=False)
CLOSE = {"atol": 2e-5, "rtol": 1e-4}


def model_of(config: DcAeConfig = TINY, tiling: Tiling = ONE_PIECE) -> OpenSora20HighCompression:
    torch.manual_seed(0)
    return OpenSora20HighCompression(config, tiling=tiling).eval()


def shapes_of(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(value.shape) for name, value in model.state_dict().items()}


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


# -- Names and settings ----------------------------------------------------------------------------------------------


def test_tensors_are_those_of_the_released_file() -> None:
    with torch.device("meta"):
        model = OpenSora20HighCompression()
    shapes = shapes_of(model)
    assert len(shapes) == 339 and sum(value.numel() for value in model.state_dict().values()) == 459_462_147
    assert shapes["encoder.stages.3.op_list.3.main.conv.weight"] == (1024, 512, 3, 3, 3)
    assert shapes["decoder.stages.3.op_list.0.main.conv.conv.weight"] == (512, 1024, 3, 3, 3)
    assert shapes["encoder.stages.5.op_list.2.context_module.main.aggreg.0.1.weight"] == (3072, 32, 1, 1, 1)
    assert shapes["decoder.project_out.op_list.0.bias"] == (128,)
    assert dc_ae_config(shapes) == DcAeConfig()


@pytest.mark.parametrize(
    "config",
    [
        DcAeConfig(),
        TINY,
        dataclasses.replace(TINY, encoder_blocks=(2, 1, 3, 1, 2), decoder_blocks=(1, 2, 1, 3, 1), channels=1),
        DcAeConfig((8, 16, 16, 32, 32, 64), (1,) * 6, (2,) * 6, latent_channels=16),
        DcAeConfig((4, 8, 8, 16), (1,) * 4, (1,) * 4, (False,) * 4, (1, 2), latent_channels=2),
    ],
    ids=str,
)
def test_settings_are_read_from_shapes(config: DcAeConfig) -> None:
    with torch.device("meta"):
        shapes = shapes_of(OpenSora20HighCompression(config))
    assert is_dc_ae(shapes) and not is_hunyuan(shapes)
    assert dc_ae_config(shapes) == config
    assert (
        dc_ae_config(shapes, {"scaling_factor": 0.493}).scale == dc_ae_config(shapes, {"scale": 0.493}).scale == 0.493
    )
    with pytest.raises(ValueError, match="scale is 0; expected a number above 0"):
        dc_ae_config(shapes, {"scaling_factor": 0})


def test_files_whose_stages_do_not_fit_are_told() -> None:
    with torch.device("meta"):
        shapes = shapes_of(OpenSora20HighCompression(dataclasses.replace(TINY, widths=(4, 4, 8, 8, 12))))
    with pytest.raises(ValueError, match="stages of 8 and 12 channels cannot follow each other"):
        dc_ae_config(shapes)
    del shapes["encoder.project_out.main.op_list.0.conv.weight"]
    with pytest.raises(ValueError, match="lacks 'encoder.project_out.main.op_list.0.conv.weight'"):
        dc_ae_config(shapes)


# -- Sizes -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("tiled", [False, True])
def test_counts_of_frames(tiled: bool) -> None:
    with torch.device("meta"):
        model = model_of(tiling=Tiling(tiled, tiled, 256, 32))
    for frames, latents in ((1, 1), (2, 1), (4, 1), (8, 2), (32, 8), (128, 32)):
        assert model.latents_of(frames) == latents
    for latents in range(1, 40):
        assert model.frames_of(latents) + model.lost_frames(latents) == (1 if latents == 1 else 4 * latents)
    lost = [latents for latents in range(1, 40) if model.lost_frames(latents)]
    assert lost == ([13, 19, 25, 31, 37] if tiled else [])
    assert all(model.lost_frames(latents) == 3 for latents in lost)
    rule = release_named("2.0 high compression").latents.lengths  # what is told before the run
    told = [latents for latents in range(2, 40) if rule.lost(4 * latents) == 3]
    assert rule.lost(1) == 0 and (told == lost or not tiled)


@pytest.mark.parametrize(
    ("shape", "words"),
    [
        ((3, 32, 32), "1 frame or a multiple of 4, 3 were given; the nearest good value is 4"),
        ((33, 32, 32), "33 were given; the nearest good value is 32"),
        ((0, 32, 32), "0 were given; the nearest good value is 1"),
        ((4, 40, 32), "multiples of 16 pixels, the height is 40; the nearest good value is 32"),
        ((4, 32, 7), "the width is 7; the nearest good value is 16"),
    ],
)
def test_clips_it_cannot_take_are_refused(shape: tuple[int, int, int], words: str) -> None:
    model = model_of()
    with pytest.raises(ValueError, match=words):
        model.encode(torch.zeros(1, 3, *shape))


def test_scale_of_the_latents() -> None:
    model = model_of(dataclasses.replace(TINY, scale=0.493))
    latents = noise(1, 4, 1, 2, 2)
    torch.testing.assert_close(model.normalise(latents), latents / 0.493)
    torch.testing.assert_close(model.denormalise(latents), latents * 0.493)


# -- Strips ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plan", [Strips(None), Strips(1), Strips(1, lean=True), Strips(20_000)], ids=str)
@pytest.mark.parametrize("frames", [1, 2, 8])
@torch.inference_mode()
def test_strips_equal_the_whole(frames: int, plan: Strips) -> None:
    model = model_of()
    video, latents = noise(1, 3, frames, 32, 16), noise(1, 4, -(-frames // 4), 2, 1)
    encoded = model.encode(video)
    assert tuple(encoded.shape) == (1, 4, -(-frames // 4), 2, 1)
    torch.testing.assert_close(model.encode(video, plan), encoded, **CLOSE)
    torch.testing.assert_close(model.decode(latents, None, plan), model.decode(latents), **CLOSE)


@torch.inference_mode()
def test_sizes_agree_with_what_the_networks_give() -> None:
    model = model_of(tiling=Tiling(True, True, 64, 16))
    for frames, height, width in ((1, 16, 80), (20, 16, 16)):
        video = noise(1, 3, frames, height, width)
        latents = model.encode(video)
        assert tuple(latents.shape[2:]) == model.encode_layout(video.shape).shape
        pixels = model.decode(latents)
        assert tuple(pixels.shape[2:]) == model.decode_layout(latents.shape).shape == (frames, height, width)


@torch.inference_mode()
def test_half_precision_strips_stay_close() -> None:
    model = model_of().bfloat16()
    latents = noise(1, 4, 2, 2, 2).bfloat16()
    whole, strips = (model.decode(latents, None, plan).float() for plan in (None, Strips(1, lean=True)))
    assert float((strips - whole).norm() / whole.norm()) < 0.03


def test_the_plain_path_can_be_differentiated() -> None:
    model = model_of()
    model.decode(model.encode(noise(1, 3, 4, 32, 16))).square().mean().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in model.parameters())


# -- Single layers ---------------------------------------------------------------------------------------------------


@torch.inference_mode()
def test_linear_attention_equals_its_formula() -> None:
    """Heads of consecutive channels q, k, v, of the projections and of their mixture; sums over all positions."""
    torch.manual_seed(0)
    layer, x = LinearAttention(8, 24, 4, 3), noise(2, 8, 2, 9, 3)
    qkv = layer.qkv(x)
    mixture = nn.functional.conv3d(qkv, layer.aggreg[0][0].weight, padding=1, groups=24)
    mixture = nn.functional.conv3d(mixture, layer.aggreg[0][1].weight, groups=6)
    heads = torch.cat([qkv, mixture], dim=1).view(2, 4, 12, -1).double()
    q, k, v = heads[:, :, :4].relu(), heads[:, :, 4:8].relu(), heads[:, :, 8:]
    weights = q.transpose(2, 3) @ k
    answer = (weights @ v.transpose(2, 3)) / (weights.sum(-1, keepdim=True) + 1e-15)
    want = layer.proj(answer.transpose(2, 3).reshape(2, 16, 2, 9, 3).float())
    torch.testing.assert_close(layer(x), want, atol=1e-5, rtol=1e-4)
    for size in (1, 2000):
        got = layer.strips(Rows.of(x.clone()), Strips(size)).tensor
        torch.testing.assert_close(got, x + want, atol=1e-5, rtol=1e-4)


@torch.inference_mode()
def test_gated_layer_equals_its_formula() -> None:
    torch.manual_seed(0)
    layer, x = GatedLayer(4, 6), noise(1, 4, 3, 9, 5)
    h = nn.functional.silu(layer.inverted_conv(x))
    depth = layer.depth_conv.conv
    values, gate = nn.functional.conv3d(h, depth.weight, depth.bias, padding=1, groups=12).chunk(2, dim=1)
    y = nn.functional.conv3d(values * nn.functional.silu(gate), layer.point_conv.conv.weight)
    want = channel_normed(layer.point_conv.norm, y)
    torch.testing.assert_close(layer(x), want, atol=1e-6, rtol=1e-5)
    got = layer.strips(Rows.of(x.clone()), Strips(1)).tensor
    torch.testing.assert_close(got, x + want, atol=1e-6, rtol=1e-5)


@torch.inference_mode()
def test_channel_norm_has_no_mean_and_a_bias() -> None:
    norm, x = channel_norm(6, nn), 3 + noise(2, 6, 2, 3, 4)
    norm.weight.copy_(noise(6))
    norm.bias.copy_(noise(6))
    root = (x.square().mean(1, keepdim=True) + 1e-5).sqrt()
    want = x / root * norm.weight.view(-1, 1, 1, 1) + norm.bias.view(-1, 1, 1, 1)
    kept = x.clone()
    torch.testing.assert_close(channel_normed(norm, x), want)
    assert torch.equal(x, kept)
    assert channel_normed(norm, x, in_place=True) is x
    torch.testing.assert_close(x, want)


@pytest.mark.parametrize("time", [1, 2])
@pytest.mark.parametrize("frames", [1, 4])
@torch.inference_mode()
def test_steps_between_resolutions(frames: int, time: int) -> None:
    torch.manual_seed(0)
    x = noise(1, 4, frames, 8, 6)
    up = Enlargement(4, 6, (time, 2, 2))
    plain = CentredConv3d(4, 6)
    plain.load_state_dict({key.removeprefix("main.conv."): value for key, value in up.state_dict().items()})
    torch.testing.assert_close(up.doubled(x, 1, 1), plain(nearest(x, up.axes)), atol=1e-6, rtol=1e-5)
    assert up.shortcut(x).shape == up(x).shape == (1, 6, frames * (time if frames > 1 else 1), 16, 12)
    down = Reduction(4, 8, (time, 2, 2))
    assert down(x).shape == (1, 8, max(1, frames // time), 4, 3)
    for layer in (up, down):
        for size in (1, 5000):
            got = layer.strips(Rows.of(x.clone()), Strips(size)).tensor
            torch.testing.assert_close(got, layer(x), atol=1e-6, rtol=1e-5)


def test_shortcuts_count_channels_before_positions() -> None:
    """Down: blocks as channels (channel, frame, row, column), neighbours averaged. Up: the reverse, repeated."""
    x = torch.arange(2 * 4 * 4 * 4.0).view(1, 2, 4, 4, 4)
    down = Reduction(2, 4, (2, 2, 2)).shortcut(x)
    for channel in range(4):
        frame = channel % 2
        block = x[0, channel // 2, frame : frame + 1, :2, :2]
        assert down[0, channel, 0, 0, 0] == block.mean()
    up = Enlargement(4, 1, (2, 2, 2)).shortcut(torch.arange(4.0).view(1, 4, 1, 1, 1).expand(1, 4, 2, 1, 1))
    assert up[0, 0, :2].flatten().tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


# -- Tilings of either autoencoder -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tiling", "near"),
    [
        (Tiling(True, False, 100), 128),
        (Tiling(True, False, 16), 64),
        (Tiling(False, True, 16, 10), 16),
        (Tiling(True, True, 256, 32, 0.3), 320),
    ],
)
def test_uneven_tiles_are_refused_with_the_nearest_even_ones(tiling: Tiling, near: int) -> None:
    with torch.device("meta"):
        model = model_of(tiling=tiling)
    with pytest.raises(ValueError, match=f"the nearest good value is {near}"):
        model.expect_even_tiles()
    good = dataclasses.replace(tiling, **({"size": near} if tiling.spatial else {"frames": near}), temporal=False)
    model.tiling = good
    model.expect_even_tiles()
    size = good.size if good.spatial else 64
    assert model.decode_layout((2, 3 * size // 16, size // 16)).shape[1:] == (3 * size, size)
