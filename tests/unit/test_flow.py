"""The flow against fields whose solution is known, and the promises about kept frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.sampling.flow import FrameMask, GivenFrames, rectified_flow
from opensora.opensora_models.sampling.noise import SeededNoise
from opensora.opensora_models.sampling.schedule import sigmas

SHAPE = (2, 4, 5, 3, 3)


def randn(seed: int, shape: tuple[int, ...] = SHAPE) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def run(denoise, x: Tensor, levels: Tensor, *, seed: int = 1, initial: Tensor | None = None, **options):
    noise = SeededNoise(seed, x if initial is None else initial)
    return list(rectified_flow(denoise, x, levels, noise=noise, **options))


def wavy(x: Tensor, sigma: Tensor) -> Tensor:
    """A model without meaning that depends on everything it is given."""
    level = sigma.reshape(-1, 1, 1, 1, 1)
    return torch.sin(2 * x) * (1 - level) + x.mean(dim=2, keepdim=True) * level


@pytest.mark.parametrize("steps", [1, 3, 30])
@pytest.mark.parametrize("shift", [0.3, 1.0, 6.0])
def test_a_constant_velocity_is_integrated_exactly(steps: int, shift: float) -> None:
    noise, clean = randn(0), randn(1)
    velocity = clean - noise
    done = run(lambda x, sigma: x + velocity * sigma.reshape(-1, 1, 1, 1, 1), noise, sigmas(steps, shift))
    torch.testing.assert_close(done[-1].after, clean, atol=2e-6, rtol=1e-5)


def test_a_known_clean_picture_is_reached_on_a_straight_line() -> None:
    noise, clean = randn(0), randn(1)
    levels = sigmas(7, 3.0)
    for step in run(lambda x, sigma: clean, noise, levels):
        expected = (1 - levels[step.index + 1]) * clean + levels[step.index + 1] * noise
        torch.testing.assert_close(step.after, expected, atol=1e-6, rtol=1e-5)


def test_a_decaying_field_follows_its_closed_form() -> None:
    # dx/dsigma = x / 2 halves the logarithm's slope; Euler's answer is the product of (1 + h/2).
    levels = sigmas(5, 2.0)
    done = run(lambda x, sigma: x - 0.5 * x * sigma.reshape(-1, 1, 1, 1, 1), randn(0), levels)
    factor = torch.prod(1 + 0.5 * levels.diff())
    torch.testing.assert_close(done[-1].after, randn(0) * factor)


def mask_of(ratios: list[float], latent: Tensor) -> FrameMask:
    return FrameMask(torch.tensor(ratios).reshape(1, 1, -1, 1, 1), latent)


def test_kept_frames_stay_bit_identical_in_every_step() -> None:
    clean = randn(3)
    for step in run(wavy, randn(0), sigmas(6, 2.0), mask=mask_of([0, 1, 1, 1, 0], clean)):
        for frame in (0, 4):
            assert torch.equal(step.x[:, :, frame], clean[:, :, frame])
            assert torch.equal(step.after[:, :, frame], clean[:, :, frame])
    assert not torch.equal(step.after[:, :, 2], clean[:, :, 2])


def test_a_mask_of_ones_equals_no_mask() -> None:
    x, levels = randn(0), sigmas(6, 2.0)
    plain = run(wavy, x, levels)
    masked = run(wavy, x, levels, mask=mask_of([1.0] * 5, randn(3)))
    for a, b in zip(plain, masked, strict=True):
        assert torch.equal(a.after, b.after)


def test_free_frames_are_not_skipped_where_rounding_lifts_the_first_level_above_one() -> None:
    levels = sigmas(4, 0.3)
    levels[0] = 1.0000002
    done = run(wavy, randn(0), levels, mask=mask_of([1.0] * 5, randn(3)))
    assert bool(done[0].active.all())


def test_an_edited_frame_joins_once_with_noise_of_its_level() -> None:
    clean, noise, levels = randn(3), randn(0), sigmas(8)
    done = run(wavy, noise, levels, mask=mask_of([0.4, 1, 1, 1, 1], clean))
    active = [bool(step.active[0, 0, 0, 0, 0]) for step in done]
    joins = active.index(True)
    assert levels[joins] <= 0.4 < levels[joins - 1]
    assert torch.equal(done[joins - 1].after[:, :, 0], clean[:, :, 0])
    expected = (1 - levels[joins]) * clean[:, :, 0] + levels[joins] * noise[:, :, 0]
    torch.testing.assert_close(done[joins].x[:, :, 0], expected)
    assert torch.equal(done[joins + 1].x, done[joins].after)


def test_renoised_frames_get_new_noise_in_every_step() -> None:
    clean, levels = randn(3), sigmas(5)
    given = GivenFrames(clean, (0, 3))
    done = run(wavy, randn(0), levels, renoise=given)
    seen = []
    for step in done:
        noise = (step.x[:, :, [0, 3]] - (1 - step.sigma) * clean[:, :, [0, 3]]) / step.sigma
        seen.append(noise)
        assert 0.7 < noise.std() < 1.3
    assert not torch.allclose(seen[0], seen[1], atol=0.1)
    assert torch.equal(done[1].x[:, :, 1], done[0].after[:, :, 1])


@pytest.mark.parametrize("kind", ["mask", "renoise"])
def test_a_sample_does_not_depend_on_its_neighbours(kind: str) -> None:
    x, clean, levels = randn(0), randn(3), sigmas(6, 2.0)

    def options(part: slice) -> dict:
        if kind == "mask":
            return {"mask": mask_of([0, 0.5, 1, 1, 0.2], clean[part])}
        return {"renoise": GivenFrames(clean[part], (0, 1))}

    together = run(wavy, x, levels, **options(slice(0, 2)))[-1].after
    for sample in (slice(0, 1), slice(1, 2)):
        alone = run(wavy, x[sample], levels, **options(sample))[-1].after
        assert torch.equal(alone, together[sample])


def test_the_same_seed_repeats_a_run_and_another_does_not() -> None:
    levels, given = sigmas(5), GivenFrames(randn(3), (0,))
    first, again, other = (
        run(wavy, randn(0), levels, seed=seed, renoise=given)[-1].after for seed in (7, 7, 2**63 + 7)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_a_run_in_two_parts_equals_one_run() -> None:
    x, clean, levels = randn(0), randn(3), sigmas(8, 2.0)
    options = {"mask": mask_of([0, 0.5, 1, 1, 0.2], clean), "renoise": None}
    whole = run(wavy, x, levels, **options)
    first = run(wavy, x, levels[:5], **options)
    second = run(wavy, first[-1].after, levels[4:], initial=x, **options)
    assert torch.equal(second[-1].after, whole[-1].after)


def test_a_second_stage_without_noise_of_its_own_still_draws_noise_for_joining_frames() -> None:
    clean, levels = randn(3), sigmas(8)
    done = run(wavy, clean, levels[3:], initial=torch.zeros(SHAPE), mask=mask_of([0.3, 1, 1, 1, 1], clean))
    joins = [bool(step.active[0, 0, 0, 0, 0]) for step in done].index(True)
    noise = (done[joins].x[:, :, 0] - (1 - done[joins].sigma) * clean[:, :, 0]) / done[joins].sigma
    assert 0.6 < noise.std() < 1.4
