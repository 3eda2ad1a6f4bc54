"""Runs of Open-Sora 2.0: rows left out change nothing, scales fade as released, conditions stand where they should."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.mmdit.config import MMDiTConfig
from opensora.opensora_models.mmdit.network import MMDiT
from opensora.opensora_models.mmdit.tokens import reference_features
from opensora.opensora_models.releases.flow_shift import flow_shift
from opensora.opensora_models.releases.guidance import Guidance
from opensora.opensora_models.releases.known import CLIP_V2, PICTURE_V2, RELEASES
from opensora.opensora_models.releases.release import Release
from opensora.opensora_models.sampling import given_input, placements
from opensora.opensora_models.sampling.guidance import Branch, Scales
from opensora.opensora_models.sampling.references import Reference, lay_out
from opensora.opensora_models.sampling.schedule import sigmas
from opensora.opensora_models.sampling.three_rows import UNGUIDED, rows_of, run_scales, walk

CONFIG = MMDiTConfig(
    in_channels=8,
    vec_in_dim=6,
    context_in_dim=10,
    hidden_size=24,
    num_heads=2,
    depth=1,
    depth_single_blocks=1,
    axes_dim=(4, 4, 4),
)
FRAMES = 5


class Model:
    """A tiny seeded network with three texts and a reference; counts its rows."""

    def __init__(self, has_given: bool) -> None:
        torch.manual_seed(4)
        self.network, self.rows = MMDiT(CONFIG).eval(), 0
        self.texts, self.pooled = torch.randn(2, 4, 10), torch.randn(2, 6)
        self.given = torch.tensor([1.0, 0, 0, 0, 0]) * has_given
        self.latent = torch.randn(1, 2, FRAMES, 4, 4)

    @torch.no_grad()
    def predict(self, x: Tensor, sigma: Tensor, branches: Sequence[Branch]) -> list[Tensor]:
        self.rows += len(branches)
        text = [0 if branch is Branch.PROMPT else 1 for branch in branches]
        shown = [self.given * (branch is not Branch.NOTHING) for branch in branches]
        reference = torch.cat([reference_features(self.latent, given) for given in shown])
        out = self.network(
            x.repeat(len(text), 1, 1, 1, 1), sigma, self.texts[text], self.pooled[text], reference=reference
        )
        return [x - row[None] * sigma.view(-1, 1, 1, 1, 1) for row in out]


def all_rows(model: Model, noise: Tensor, levels: Tensor, scales: Sequence[Scales]) -> Tensor:
    """The original's loop: three rows in every step, mixed as velocities."""
    x = noise
    for step, each in enumerate(scales):
        sigma = levels[step : step + 1]
        prompt, image, nothing = ((x - row) / sigma for row in model.predict(x, sigma, list(Branch)))
        by_frame = torch.tensor(each.image).view(1, 1, -1, 1, 1)
        v = nothing + by_frame * (image - nothing) + each.text * (prompt - image)
        x = x + (levels[step + 1] - levels[step]) * v
    return x


@pytest.mark.parametrize(
    ("guidance", "has_given", "steps", "rows"),
    [
        (CLIP_V2, False, 50, 80),
        (PICTURE_V2, True, 50, 110),
        (CLIP_V2, True, 50, 110),
        (CLIP_V2, False, 20, 35),
        (PICTURE_V2, True, 20, 50),
        (replace(PICTURE_V2, oscillate_image=False), True, 20, 60),
        (replace(PICTURE_V2, oscillate_text=False), True, 20, 55),
        (Guidance(text_scale=1.0, image_scale=1.0), True, 20, 20),
    ],
)
def test_only_rows_that_count_are_computed_and_nothing_changes(
    guidance: Guidance, has_given: bool, steps: int, rows: int
) -> None:
    levels = sigmas(steps, flow_shift(4, FRAMES))
    scales = run_scales(guidance, levels.tolist(), FRAMES)
    noise = torch.randn(1, 2, FRAMES, 4, 4, generator=torch.Generator().manual_seed(1))
    few, full = Model(has_given), Model(has_given)
    finished = list(walk(few.predict, noise, levels, scales, has_given=has_given))[-1].after
    assert (few.rows, rows_of(scales, has_given)) == (rows, rows)
    torch.testing.assert_close(finished, all_rows(full, noise, levels, scales), atol=1e-4, rtol=1e-4)
    assert full.rows == 3 * steps


def test_the_image_scale_of_pictures_fades_over_all_steps_and_grows_along_the_clip() -> None:
    scales = run_scales(PICTURE_V2, sigmas(50).tolist(), 5)
    for step in (0, 7, 20, 48):
        top = 3 + (1 - 3) * step / 50
        assert scales[step].image == pytest.approx([1 + (top - 1) * frame / 4 for frame in range(5)])
    assert scales[11] == scales[49] == Scales(1.0, (1.0,))
    assert run_scales(CLIP_V2, sigmas(50).tolist(), 5)[48] == Scales(7.5, (3.0,))
    last = run_scales(replace(PICTURE_V2, oscillate_image=False), sigmas(8).tolist(), 5)[-1]
    assert last.image[-1] == pytest.approx(1 + 2 / 8)  # one step later it would be 1
    ended = run_scales(replace(PICTURE_V2, oscillate_image=False), sigmas(8).tolist(), 5, reaches_end=True)[-1]
    assert ended.image[-1] == pytest.approx(1.0)


def test_an_interval_of_noise_levels_leaves_the_rest_to_the_prompt() -> None:
    narrow = replace(CLIP_V2, sigma_start=0.85, sigma_end=0.35)
    levels = sigmas(10).tolist()
    guided_steps = [step for step, each in enumerate(run_scales(narrow, levels, 5)) if each != UNGUIDED]
    assert guided_steps == [2, 3, 4, 5, 6]


@pytest.mark.parametrize(
    ("tokens", "frames", "shift"),
    [(252, 33, 5.732594807691075), (2304, 33, 11.872096136178591), (2304, 1, 2.0666666666666664), (4096, 4, 6.0)],
)
def test_shift(tokens: int, frames: int, shift: float) -> None:
    assert flow_shift(tokens, frames) == pytest.approx(shift, rel=1e-12)


@pytest.mark.parametrize("wrong", [(0, 3), (256, 0)])
def test_a_clip_of_nothing_has_no_shift(wrong: tuple[int, int]) -> None:
    with pytest.raises(ValueError, match="both start at 1"):
        flow_shift(*wrong)


@pytest.mark.parametrize(
    ("kind", "lengths", "clip", "causal", "frames"),
    [
        ("t2v", [], 20, True, []),
        ("i2v_head", [1], 20, True, [(0, 0, 0)]),
        ("i2v_head", [4, 1], 20, True, [(0, 0, 0)]),
        ("i2v_tail", [4], 20, True, [(0, 3, 19)]),
        ("i2v_loop", [1, 4], 20, True, [(0, 0, 0), (1, 3, 19)]),
        ("i2v_loop", [1], 20, True, [(0, 0, 0), (0, 0, 19)]),
        ("v2v_head", [9], 20, True, [(0, k, k) for k in range(9)]),
        ("v2v_head", [12], 20, False, [(0, k, k) for k in range(8)]),
        ("v2v_tail", [12], 20, True, [(0, 3 + k, 11 + k) for k in range(9)]),
        ("v2v_tail_easy", [17], 20, True, [(0, k, 3 + k) for k in range(17)]),
        ("v2v_head_easy", [9], 20, True, [(0, k, k) for k in range(9)]),  # a short reference gives what it has
        ("v2v_head_easy", [17], 10, True, [(0, k, k) for k in range(10)]),
        ("v2v_head_half", [9], 20, True, [(0, k, k) for k in range(9)]),
        ("v2v_tail_half", [9], 20, True, [(0, k, 11 + k) for k in range(9)]),
        ("i2v_head", [1], 1, True, []),
    ],
)
def test_conditions_give_these_frames(
    kind: str, lengths: list[int], clip: int, causal: bool, frames: list[tuple[int, int, int]]
) -> None:
    references = [torch.arange(100.0 * i, 100 * i + n).view(1, n, 1, 1) for i, n in enumerate(lengths)]
    spans = given_input.condition_spans(kind, lengths, clip, causal=causal)
    latent, given = given_input.lay_in(references, spans, torch.zeros(1, clip, 1, 1))
    want = torch.zeros(clip)
    for reference, source, target in frames:
        want[target] = 100 * reference + source
    assert latent.flatten().tolist() == want.tolist()
    assert given.nonzero().flatten().tolist() == [target for _, _, target in frames]


PLACES = {
    "i2v_head": (placements.FIRST, (1, 0), 0),
    "i2v_tail": (placements.LAST, (7, 0), 0),
    "i2v_loop": (placements.FIRST_AND_LAST, (1, 1), 0),
    "v2v_head": (placements.FORWARDS, (70, 0), 0),
    "v2v_tail": (placements.BACKWARDS, (70, 0), 0),
    "v2v_head_easy": (placements.FORWARDS, (70, 0), 1),
    "v2v_tail_easy": (placements.BACKWARDS, (70, 0), 1),
}
"""What the Reference node calls a condition: placement, pictures in its inputs, which of the release's takes."""


@pytest.mark.parametrize("kind", PLACES)
@pytest.mark.parametrize("release", [RELEASES["2.0"], RELEASES["2.0 high compression"]], ids=lambda each: each.id)
@pytest.mark.parametrize("clip", [20, 32, 33])
def test_the_words_of_the_reference_node_mean_the_recorded_conditions(kind: str, release: Release, clip: int) -> None:
    placement, counts, which = PLACES[kind]
    take = release.given.takes[which] if kind.startswith("v2v") else 0
    pieces = placements.plan(placement, counts, clip, release.id, take=take, at=0)
    lengths = [release.latents.lengths.counting.latents(piece.count) for piece in pieces]
    latents = [torch.full((1, length, 1, 1), 1.0 + i).cumsum(1) for i, length in enumerate(lengths)]
    targets = [-n if piece.target is None else piece.target for piece, n in zip(pieces, lengths, strict=True)]
    chain = [Reference(latent, target) for latent, target in zip(latents, targets, strict=True)]
    placed = lay_out(chain, torch.zeros(1, clip, 1, 1), release=release)
    spans = given_input.condition_spans(kind, lengths, clip, causal=release.id == "2.0")
    latent, given = given_input.lay_in(latents, spans, torch.zeros(1, clip, 1, 1))
    assert sorted(placed.frames) == given.nonzero().flatten().tolist()
    assert torch.equal(placed.latent, latent)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: given_input.condition_spans("v2v_middle", [9], 20), "no condition 'v2v_middle'; use one of t2v, i2v"),
        (lambda: given_input.condition_spans("i2v_head", [], 20), "needs a reference, none was given"),
        (lambda: given_input.is_written_back("video"), "no condition 'video'"),
    ],
)
def test_unknown_conditions_are_refused(call: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        call()


def test_pictures_are_written_back_in_every_sample_and_clips_are_not() -> None:
    kinds = {kind: given_input.is_written_back(kind) for kind in given_input.CONDITIONS}
    assert {kind for kind, written in kinds.items() if written} == {"i2v_head", "i2v_tail", "i2v_loop"}
    finished, reference = torch.zeros(3, 2, 4, 1, 1), torch.ones(1, 2, 4, 1, 1)
    written = given_input.write_back(finished, reference, [0, 3])
    assert written[:, :, [0, 3]].eq(1).all() and written[:, :, 1:3].eq(0).all() and finished.eq(0).all()
    assert given_input.write_back(finished, reference, []) is finished


def test_the_mask_comes_first_and_hides_what_is_not_given() -> None:
    latent = torch.full((2, 3, 4, 1, 1), torch.nan)
    latent[:, :, 1] = 5.0
    features = reference_features(latent, torch.tensor([[0, 1, 0, 0], [0, 1, 0, 0]]))
    assert features[:, :, 1, 0, 0].tolist() == [[1, 5, 5, 5]] * 2
    assert features[:, :, [0, 2, 3]].eq(0).all()
