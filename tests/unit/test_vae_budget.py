"""What ComfyUI is told about memory, held against what the allocator counts."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import pytest
import torch
from torch.profiler import ProfilerActivity, profile

from opensora.opensora_models.vae.autoencoder import OpenSora12, OpenSora13
from opensora.opensora_models.vae.budget import Job, candidate_plans, decode_bytes, encode_bytes, fitting
from opensora.opensora_models.vae.causal import CausalConfig
from opensora.opensora_models.vae.image import ImageConfig
from opensora.opensora_models.vae.strips import Strips
from opensora.opensora_models.vae.temporal import TemporalConfig

HEIGHT, WIDTH, FRAMES = 128, 128, 5


def model_of(version: str) -> OpenSora12 | OpenSora13:
    """A narrow network with the proportions of the released one."""
    torch.manual_seed(0)
    if version == "1.3":
        return OpenSora13(CausalConfig(width=16, groups=16)).eval()
    image = ImageConfig(widths=(16, 32, 64, 64), groups=16)
    return OpenSora12(image, TemporalConfig(filters=16, groups=16, blocks=1)).eval()


def allocated_peak(call: Callable[[], object]) -> int:
    """Most bytes allocated at once by tensors during the call."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
            call()
    now = most = 0
    for event in recorded.profiler.kineto_results.events():
        if event.name() == "[memory]":
            now += event.nbytes()
            most = max(most, now)
    return most


@pytest.mark.parametrize("direction", ["decode", "encode"])
@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("cut", ["whole", "strips", "lean"])
@torch.inference_mode()
def test_estimates_are_within_thirty_percent(version: str, direction: str, cut: str) -> None:
    model = model_of(version)
    latents = torch.randn(1, model.latent_channels, 2, HEIGHT // 8, WIDTH // 8)
    video = torch.randn(1, 3, FRAMES, HEIGHT, WIDTH)
    decoding = direction == "decode"
    job = (Job.decoding if decoding else Job.encoding)((latents if decoding else video).shape, 4)
    strip = job.layer(16, 1 if version == "1.2" else None) // 16
    plan = {"whole": Strips(None, images=1), "strips": Strips(strip, images=1), "lean": Strips(strip, True, 1)}[cut]
    measured = allocated_peak(lambda: model.decode(latents, None, plan) if decoding else model.encode(video, plan))
    measured += 0 if decoding else video.nbytes  # the group's pixels lie on the device, too
    estimate = (decode_bytes if decoding else encode_bytes)(model, job, plan)
    assert 0.7 <= estimate / measured <= 1.3


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_less_free_memory_gives_a_leaner_plan(version: str) -> None:
    model = model_of(version)
    job = Job.decoding((1, 4, 30, 90, 160), 2)
    plans = candidate_plans()
    needs = [decode_bytes(model, job, plan) for plan in plans]
    chosen = [fitting(model, job, free, decoding=True) for free in (1e12, needs[-1] * 2, 1.0)]
    assert chosen[0] == plans[0] and chosen[2] == plans[-1]
    assert needs[plans.index(chosen[1])] <= needs[0]


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_released_sizes_keep_the_bars(version: str) -> None:
    """51 frames of 480p take at most 35 % of whole layers; 720p fits below 8 GB in bfloat16 (by the estimates)."""
    with torch.device("meta"):
        model = OpenSora12() if version == "1.2" else OpenSora13()
    job = Job.decoding((1, 4, 15, 60, 106), 2)
    plain = decode_bytes(model, job, Strips(None, images=51 if version == "1.2" else 4))
    assert decode_bytes(model, job, candidate_plans()[0]) <= 0.35 * plain
    large = Job.decoding((1, 4, 30, 90, 160), 2)
    assert min(decode_bytes(model, large, plan) for plan in candidate_plans()) < 8e9
