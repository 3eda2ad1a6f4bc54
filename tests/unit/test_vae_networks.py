"""The VAE networks: sizes of the released models, and strips that change nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from opensora.opensora_models.releases.groups import latent_frames
from opensora.opensora_models.vae.autoencoder import OpenSora12, OpenSora13, VideoAutoencoder
from opensora.opensora_models.vae.blocks import ResidualBlock, Upsample3d
from opensora.opensora_models.vae.distribution import Posterior, seeded
from opensora.opensora_models.vae.layers import CausalConv3d, Upsample2d, attention
from opensora.opensora_models.vae.strips import Rows, Strips, moments_of
from support.vaes import smooth_video, tiny12, tiny13

# Parameter counts of the released checkpoints.
RELEASED_PARAMETERS = {OpenSora12: 393_341_007, OpenSora13: 259_163_811}
PLANS = [Strips(None), Strips(1), Strips(1, lean=True, images=1), Strips(60_000, lean=True)]


@pytest.mark.parametrize("kind", RELEASED_PARAMETERS, ids=lambda kind: kind.__name__)
def test_default_settings_are_the_released_models(kind: type[VideoAutoencoder]) -> None:
    with torch.device("meta"):
        model = kind()
    assert sum(value.numel() for value in model.parameters()) == RELEASED_PARAMETERS[kind]


@pytest.mark.parametrize("plan", PLANS, ids=str)
@pytest.mark.parametrize("make", [tiny12, tiny13], ids=["1.2", "1.3"])
@torch.inference_mode()
def test_strips_equal_whole_layers(make: type, plan: Strips) -> None:
    model, video = make(), smooth_video(20)
    plain = model.encode(video)
    torch.testing.assert_close(model.encode(video, plan), plain, atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(model.decode(plain, None, plan), model.decode(plain), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", ["residual", "doubling"])
@torch.inference_mode()
def test_strips_of_clips_compute_no_row_twice(kind: str) -> None:
    """Only rows are read twice at the edge of a strip; 4 rows at a time take the arithmetic of the whole layer."""
    torch.manual_seed(0)
    block = (
        ResidualBlock(8, 16, convolution=CausalConv3d, groups=4, eps=1e-6, shortcut="nin_shortcut")
        if kind == "residual"
        else Upsample3d(8, groups=4)
    ).bfloat16()  # in float32 the CPU takes oneDNN's own operator, which is not counted
    x = torch.randn(1, 8, 3, 22, 5, dtype=torch.bfloat16)

    def operations(plan: Strips) -> int:
        with FlopCounterMode(display=False) as counter:
            block.strips(Rows.of(x), plan)
        return counter.get_total_flops()

    assert operations(Strips(1)) == operations(Strips(None)) > 0


@pytest.mark.parametrize("make", [tiny12, tiny13], ids=["1.2", "1.3"])
@torch.inference_mode()
def test_tiled_decoding_has_no_seams(make: type) -> None:
    """The bars of tiled decoding, 1/255 everywhere and 45 dB, on a smooth video."""
    model = make()
    latents = model.encode(smooth_video(17))
    whole, tiled = model.decode(latents), model.decode(latents, None, Strips(1, lean=True))
    difference = (tiled - whole).abs() / 2
    assert difference.max() < 1 / 255
    assert -10 * torch.log10(difference.square().mean() + 1e-20) > 45


@pytest.mark.parametrize("make", [tiny12, tiny13], ids=["1.2", "1.3"])
@torch.inference_mode()
def test_one_clip_at_a_time_equals_the_batch(make: type) -> None:
    model = make()
    latents = torch.randn(2, model.latent_channels, 6, 3, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(model.decode(latents, None, Strips(1)), model.decode(latents), atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("make", [tiny12, tiny13, lambda: tiny13(overlap=False)], ids=["1.2", "1.3", "1.3 apart"])
@torch.inference_mode()
def test_groups_from_the_middle_are_those_of_the_whole_run(make: type) -> None:
    model = make()
    latents = torch.randn(1, model.latent_channels, 17, 2, 3, generator=torch.Generator().manual_seed(1))
    whole = list(model.decoded(latents))
    assert len(whole) == 4
    assert sum(part.shape[2] for part in whole) == model.frames_of(17)
    for first in range(4):
        for part, expected in zip(model.decoded(latents, first_part=first), whole[first:], strict=True):
            assert torch.equal(part, expected)


@torch.inference_mode()
def test_overlapping_groups_share_one_blended_frame() -> None:
    model = tiny13()
    latents = torch.randn(1, 16, 10, 2, 2, generator=torch.Generator().manual_seed(2))
    first, second = (model.decode_group(part, 17, None) for part in latents.split(5, dim=2))
    joined = model.decode(latents)
    assert joined.shape[2] == 33
    torch.testing.assert_close(joined[:, :, 16], (first[:, :, 16] + second[:, :, 0]) / 2)
    torch.testing.assert_close(joined[:, :, 17:], second[:, :, 1:])


@pytest.mark.parametrize("frames", [1, 4, 17, 20, 25, 34])
@pytest.mark.parametrize("make", [tiny12, tiny13], ids=["1.2", "1.3"])
@torch.inference_mode()
def test_latent_frames_are_those_of_the_frame_rules(make: type, frames: int) -> None:
    model = make()
    latents = model.encode(smooth_video(frames, 16, 16))
    assert latents.shape[2] == latent_frames(model.version, frames)
    assert model.decode(latents).shape[2] == model.frames_of(latents.shape[2])


@torch.inference_mode()
def test_true_length_is_kept() -> None:
    model = tiny12()
    assert model.decode(model.encode(smooth_video(20, 16, 16)), 20).shape[2] == 20


@torch.inference_mode()
def test_seeded_draws_repeat_whatever_the_batching() -> None:
    model, video = tiny12(), smooth_video(17, 16, 16)
    one, other = (model.encode(video, Strips(None, images=count), draw=seeded(7)) for count in (1, 5))
    torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(one, model.encode(video, draw=seeded(8)), atol=1e-3)
    assert not torch.allclose(one, model.encode(video), atol=1e-3)


def test_log_variance_is_clamped() -> None:
    moments = torch.tensor([[0.0, 100.0]]).reshape(1, 2, 1, 1)
    assert Posterior(moments).log_variance.item() == 20.0


@torch.inference_mode()
def test_doubling_convolution_equals_nearest_and_convolution() -> None:
    torch.manual_seed(0)
    layer = Upsample2d(6)
    plain = nn.Conv2d(6, 6, 3, padding=1)
    plain.load_state_dict(layer.conv.state_dict())
    x = torch.randn(2, 6, 5, 7)
    torch.testing.assert_close(layer(x), plain(x.repeat_interleave(2, 2).repeat_interleave(2, 3)), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
@torch.inference_mode()
def test_attention_in_blocks_equals_the_whole(causal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    q, k, v = torch.randn(3, 1, 50, 8, generator=torch.Generator().manual_seed(3)).unbind(0)
    whole = attention(q, k, v, causal=causal)
    monkeypatch.setattr("opensora.opensora_models.vae.layers.ATTENTION_QUERIES", 16)
    torch.testing.assert_close(attention(q, k, v, causal=causal), whole, atol=1e-6, rtol=1e-5)


@torch.inference_mode()
def test_statistics_of_strips_are_those_of_the_layer() -> None:
    """Also where the mean is far from zero, which naive sums of squares do not survive."""
    x = 1000 + torch.randn(2, 8, 3, 30, 5, generator=torch.Generator().manual_seed(4))
    rows = Strips(1).store(Rows.of(torch.zeros(1, 1)).computed(tuple(x.shape), lambda a, b: x[..., a:b, :].clone()), 4)
    values = x.double().reshape(2, 4, -1)
    mean, variance = rows.moments
    torch.testing.assert_close(mean.double(), values.mean(-1), rtol=1e-6, atol=1e-3)
    torch.testing.assert_close(variance.double(), values.var(-1, unbiased=False), rtol=1e-3, atol=1e-3)
    assert torch.equal(rows.tensor, x)
    torch.testing.assert_close(moments_of(x.bfloat16(), 4)[0], mean, rtol=1e-2, atol=1.0)


def test_networks_can_be_trained() -> None:
    """The plain form changes nothing in place, so gradients reach every weight."""
    model = tiny13()
    model.decode_group(torch.randn(1, 16, 2, 2, 2), 5, None).square().mean().backward()
    model.encode(torch.randn(1, 3, 5, 16, 16)).square().mean().backward()
    assert all(value.grad is not None and value.grad.abs().sum() > 0 for value in model.parameters() if value.ndim > 1)
