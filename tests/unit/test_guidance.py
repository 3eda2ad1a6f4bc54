"""Guidance: what is computed, how it is mixed, and that leaving rows out changes nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.releases.guidance import PRESETS, Guidance
from opensora.opensora_models.sampling import guidance as g
from opensora.opensora_models.sampling.guidance import Branch, Scales
from opensora.opensora_models.sampling.schedule import sigmas

SHAPE = (2, 4, 5, 3, 3)
T2V = PRESETS["1.3 text to video"]
I2V = PRESETS["1.3 given frames"]


def predictions() -> dict[Branch, Tensor]:
    return {
        branch: torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        for seed, branch in enumerate(Branch)
    }


def in_full(scales: Scales, rows: dict[Branch, Tensor], has_given: bool) -> Tensor:
    """The published formula with every row computed."""
    c, i, u = rows[Branch.PROMPT], rows[Branch.IMAGE], rows[Branch.NOTHING]
    if not has_given:
        return u + scales.text * (c - u)
    weights = scales.image * (SHAPE[2] // len(scales.image))
    image = torch.tensor(weights, dtype=c.dtype).reshape(1, 1, -1, 1, 1)
    return u + image * (i - u) + scales.text * (c - i)


@pytest.mark.parametrize(("settings", "has_given", "full", "needed"), [(T2V, False, 60, 50), (I2V, True, 90, 70)])
def test_rows_of_weight_zero_are_never_computed_and_nothing_changes(
    settings: Guidance, has_given: bool, full: int, needed: int
) -> None:
    rows, levels = predictions(), sigmas(30, 4.0).tolist()
    x = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    asked = 0
    for step in range(30):
        scales = g.step_scales(settings, step, 30, levels[step], SHAPE[2])

        def predict(branches, rows=rows):
            nonlocal asked
            asked += len(branches)
            return [rows[branch] for branch in branches]

        level = torch.full((2,), levels[step], dtype=torch.float64)
        got = g.guided(predict, x, level, scales, has_given=has_given, flaw_fix=False)
        torch.testing.assert_close(got, in_full(scales, rows, has_given), atol=1e-12, rtol=1e-12)
    assert asked == needed < full == 30 * (3 if has_given else 2)
    assert g.row_count(settings, levels, SHAPE[2], has_given=has_given) == needed


@pytest.mark.parametrize(
    ("scales", "has_given", "branches"),
    [
        (Scales(7.0, (1.0,)), False, {Branch.PROMPT, Branch.NOTHING}),
        (Scales(1.0, (1.0,)), False, {Branch.PROMPT}),
        (Scales(0.0, (1.0,)), False, {Branch.NOTHING}),
        (Scales(7.0, (2.0,)), True, set(Branch)),
        (Scales(7.0, (1.0,)), True, {Branch.PROMPT, Branch.IMAGE}),
        (Scales(7.0, (7.0,)), True, {Branch.PROMPT, Branch.NOTHING}),
        (Scales(7.0, (1.0, 1.0, 1.0)), True, {Branch.PROMPT, Branch.IMAGE}),
        (Scales(7.0, (1.0, 7.0, 1.0)), True, set(Branch)),
        (Scales(1.0, (1.0,)), True, {Branch.PROMPT}),
    ],
)
def test_which_branches_are_needed(scales: Scales, has_given: bool, branches: set[Branch]) -> None:
    assert set(g.branch_weights(scales, has_given)) == branches


@pytest.mark.parametrize("text", [1.0, 3.0, 7.5])
@pytest.mark.parametrize("image", [(1.0,), (2.5,), (1.0, 2.0, 3.0, 4.0, 5.0)])
def test_plain_cfg_on_the_pair_gives_three_branch_guidance(text: float, image: tuple[float, ...]) -> None:
    rows = predictions()
    first, base = g.prompt_and_base(rows, image)
    torch.testing.assert_close(base + (first - base) * text, in_full(Scales(text, image), rows, True))


def test_flaw_fix_scales_the_velocity_per_sample_by_the_prompt_rows_spread() -> None:
    rows = predictions()
    x = torch.randn(SHAPE, dtype=torch.float64, generator=torch.Generator().manual_seed(9))
    sigma = torch.tensor([0.8, 0.8], dtype=torch.float64)
    got = g.guided(
        lambda branches: [rows[b] for b in branches], x, sigma, Scales(7.5, (1.0,)), has_given=False, flaw_fix=True
    )
    for sample in range(2):
        v_c = (x - rows[Branch.PROMPT])[sample] / 0.8
        v_u = (x - rows[Branch.NOTHING])[sample] / 0.8
        v = v_u + 7.5 * (v_c - v_u)
        v = v * (0.7 * v_c.std() / v.std() + 0.3)
        torch.testing.assert_close(got[sample], x[sample] - 0.8 * v)


def test_flaw_fix_is_left_out_with_given_frames() -> None:
    rows = predictions()
    x, sigma = torch.zeros(SHAPE, dtype=torch.float64), torch.full((2,), 0.5, dtype=torch.float64)
    calls = [
        g.guided(lambda b: [rows[k] for k in b], x, sigma, Scales(7.5, (2.0,)), has_given=True, flaw_fix=fix)
        for fix in (False, True)
    ]
    assert torch.equal(*calls)


def test_flaw_fix_survives_a_flat_prediction() -> None:
    flat = torch.zeros(SHAPE)
    fixed = g.rescale_to_prompt(flat, torch.full((2,), 0.5), flat, flat)
    assert bool(fixed.isfinite().all())


def test_guidance_interval_leaves_the_rest_to_the_prompt_alone() -> None:
    settings = g.with_interval(Guidance(text_scale=7.0, image_scale=3.0), 0.8, 0.2)
    for sigma, text in [(1.0, 1.0), (0.9, 1.0), (0.8, 7.0), (0.5, 7.0), (0.2, 7.0), (0.1, 1.0)]:
        assert g.step_scales(settings, 0, 10, sigma, 5).text == text


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_levels_that_stand_on_a_bound_are_inside_whatever_their_dtype(dtype: torch.dtype) -> None:
    for bound in (0.1, 0.2, 0.3, 0.7, 0.8, 0.9):
        level = float(torch.tensor(bound, dtype=dtype))
        for settings in (
            g.with_interval(Guidance(text_scale=7.0), 1.0, bound),
            g.with_interval(Guidance(text_scale=7.0), bound, 0.0),
        ):
            assert g.step_scales(settings, 0, 10, level, 5).text == 7.0
        below = g.step_scales(g.with_interval(Guidance(text_scale=7.0), 1.0, bound), 0, 10, bound * 0.9999, 5)
        above = g.step_scales(g.with_interval(Guidance(text_scale=7.0), bound, 0.0), 0, 10, bound * 1.0001, 5)
        assert below.text == above.text == 1.0


def test_a_hair_above_one_counts_as_the_start() -> None:
    assert g.step_scales(Guidance(text_scale=7.0), 0, 10, 1.0000001, 5).text == 7.0


def test_image_guidance_defaults_to_the_text_scale() -> None:
    assert g.step_scales(Guidance(text_scale=4.0), 0, 10, 1.0, 5).image == (4.0,)


def test_fading_needs_more_than_one_step_to_divide_by() -> None:
    assert g.image_weights(5.0, 1.0, 0, 1, 3) == (1.0, 3.0, 5.0)


@pytest.mark.parametrize(
    ("sigma", "step"), [(1.0, 0), (0.9, 0), (0.75, 1), (0.7500001, 1), (0.3, 2), (0.25, 3), (0.01, 3)]
)
def test_a_model_call_belongs_to_the_step_it_lies_in(sigma: float, step: int) -> None:
    assert g.step_of(sigma, [1.0, 0.75, 0.5, 0.25, 0.0]) == step
