"""The schedule's rules: shift per version, ends of the schedule, refusals."""

from __future__ import annotations

import math

import pytest
import torch

from opensora.opensora_models.releases.time_shift import shift_for
from opensora.opensora_models.sampling.schedule import shift_time, sigmas, size_conditioning, timesteps


def test_uniform_times_fall_in_equal_steps() -> None:
    torch.testing.assert_close(timesteps(4), torch.tensor([1000.0, 750.0, 500.0, 250.0]))


def test_sigmas_end_in_zero_and_are_float32() -> None:
    levels = sigmas(30, 2.5)
    assert levels.dtype == torch.float32
    assert levels.shape == (31,)
    assert levels[0] == 1.0
    assert levels[-1] == 0.0
    assert bool((levels.diff() < 0).all())


@pytest.mark.parametrize("shift", [0.05, 0.28, 0.333, 0.4999, 1.0, 8.7])
@pytest.mark.parametrize("steps", [1, 7, 30])
def test_exact_times_start_at_1000(shift: float, steps: int) -> None:
    times = timesteps(steps, shift)
    assert times.max() <= 1000.0
    assert times[0] == 1000.0


# What the original gives for one frame and 5 steps when sizes come in bfloat16: version, height, width, times.
AS_RELEASED = [
    ("1.2", 166, 221, [994.7916870117188, 596.875, 358.1250305175781, 198.95834350585938, 85.26786041259766]),
    ("1.3", 166, 221, [994.7916870117188, 596.875, 358.1250305175781, 198.95834350585938, 85.26786041259766]),
    ("1.2", 64, 96, [1006.4102172851562, 381.0679931640625, 187.20193481445312, 92.78959655761719, 36.92380142211914]),
]


@pytest.mark.parametrize(("version", "height", "width", "times"), AS_RELEASED)
def test_bfloat16_sizes_round_as_released(version: str, height: int, width: int, times: list[float]) -> None:
    """The shift is below 0.5, where bfloat16 cannot hold shift - 1."""
    shift = shift_for(version, height, width, 1, dtype=torch.bfloat16)
    torch.testing.assert_close(timesteps(5, shift, dtype=torch.bfloat16), torch.tensor(times), atol=1e-3, rtol=0)
    levels = sigmas(5, shift, dtype=torch.bfloat16)
    torch.testing.assert_close(levels[:-1], (torch.tensor(times) / 1000).clamp_max(1.0), atol=1e-6, rtol=0)
    assert levels.max() <= 1.0


def test_shift_of_the_reference_picture_is_one() -> None:
    assert shift_for("1.2", 512, 512, 1) == 1.0
    assert shift_for("1.3", 512, 512, 1) == 1.0


def test_frames_are_counted_by_the_version() -> None:
    assert shift_for("1.2", 512, 512, 51) == pytest.approx(math.sqrt(15))
    assert shift_for("1.3", 512, 512, 113) == pytest.approx(math.sqrt(28))


def test_transform_scale_is_for_videos_of_v13_only() -> None:
    assert shift_for("1.3", 512, 512, 113, transform_scale=2.0) == pytest.approx(2 * math.sqrt(28))
    assert shift_for("1.3", 512, 512, 1, transform_scale=2.0) == 1.0
    assert shift_for("1.2", 512, 512, 51, transform_scale=2.0) == pytest.approx(math.sqrt(15))
    assert shift_for("1.3", 512, 512, 113, transform_scale=2.0, scale_temporal=False) == 1.0


@pytest.mark.parametrize(("version", "frames"), [("1.2", 16), ("1.3", 4)])
def test_very_short_clips_have_a_finite_schedule(version: str, frames: int) -> None:
    shift = shift_for(version, 256, 256, frames)
    assert shift == pytest.approx(0.5)
    assert bool(timesteps(10, shift).isfinite().all())


def test_shift_time_keeps_both_ends() -> None:
    ends = torch.tensor([0.0, 1.0])
    torch.testing.assert_close(shift_time(ends, 4.2), ends)


def test_single_image_is_announced_with_120_fps() -> None:
    assert size_conditioning(512, 512, 1, 24)["fps"] == 120.0
    assert size_conditioning(512, 512, 17, 24)["fps"] == 24.0


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: timesteps(0), "at least 1"),
        (lambda: timesteps(5, 0.0), "above 0"),
        (lambda: timesteps(5, math.nan), "above 0"),
        (lambda: shift_for("1.1", 512, 512, 17), "1.2 or 1.3"),
        (lambda: shift_for("1.2", 0, 512, 17), "start at 1"),
    ],
)
def test_bad_numbers_are_refused_in_one_sentence(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()
