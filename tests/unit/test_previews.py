"""Colours, pictures and the throttle of previews."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch

from opensora.opensora_models.previews.colours import (
    CELLS,
    Colours,
    colour_clip,
    fit_colours,
    mean_colours,
    whole_length,
)
from opensora.opensora_models.previews.colours_file import MOST_KEPT, colours_in, keep_colours
from opensora.opensora_models.previews.pictures import (
    LONGEST_SIDE,
    MOST_FRAMES,
    Mode,
    clip_picture,
    columns_for,
    evenly,
    sheet_of,
    small_pictures,
)
from opensora.opensora_models.previews.throttle import SHARE, Throttle
from opensora.opensora_models.releases.known import RELEASES

SOME = Colours(((0.5, 0.0, -0.25), (0.0, 1.0, 0.0)), (0.1, 0.2, 0.3))


@pytest.mark.parametrize("id", RELEASES)
def test_a_fit_over_the_clip_finds_the_map_an_encoder_has(id: str) -> None:
    """Colours -> latents by a random map, as an encoder might have it; the fit must give the way back."""
    release = RELEASES[id]
    channels, counting = release.latents.channels, release.latents.lengths.counting
    frames = whole_length(counting)
    assert counting.frames(counting.latents(frames)) == frames and counting.latents(frames) > 1
    generator = torch.Generator().manual_seed(3)
    encoder, offset = torch.randn(3, channels, generator=generator), torch.randn(channels, generator=generator)
    clip, side = colour_clip(frames, release.latents.space), CELLS * release.latents.space
    assert clip.shape == (frames, side, side, 3)
    wanted = mean_colours(clip, counting.latents(frames), CELLS, CELLS).reshape(-1, 3)
    latents = wanted @ encoder + offset + 0.01 * torch.randn(len(wanted), channels, generator=generator)
    found = fit_colours(latents, wanted)
    got = latents @ torch.tensor(found.factors) + torch.tensor(found.bias)
    assert float((got - wanted).abs().mean()) < 0.01 and float(wanted.std()) > 0.2


def test_known_factors_are_recovered() -> None:
    factors, bias = torch.randn(4, 3, generator=torch.Generator().manual_seed(1)), torch.tensor([0.1, -0.2, 0.3])
    latents = torch.randn(500, 4, generator=torch.Generator().manual_seed(2))
    found = fit_colours(latents, latents @ factors + bias)
    assert torch.allclose(torch.tensor(found.factors), factors, atol=1e-3)
    assert torch.allclose(torch.tensor(found.bias), bias, atol=1e-3)


def test_channels_without_a_word_get_no_huge_factors_and_no_numbers_are_refused() -> None:
    latents = torch.cat([torch.randn(100, 1, generator=torch.Generator().manual_seed(2)), torch.zeros(100, 3)], dim=1)
    found = fit_colours(latents, latents[:, :1].expand(100, 3))
    assert max(abs(factor) for row in found.factors[1:] for factor in row) < 1e-3
    latents[5, 2] = float("nan")
    with pytest.raises(ValueError, match="not numbers"):
        fit_colours(latents, latents[:, :1].expand(100, 3))


def test_pictures_lie_on_the_sheet_in_reading_order() -> None:
    pictures = torch.arange(1, 6, dtype=torch.uint8)[:, None, None, None].expand(5, 2, 4, 3)
    sheet = sheet_of(pictures)
    assert columns_for(5) == 3 and sheet.shape == (4, 12, 3)
    assert sheet[::2, ::4, 0].tolist() == [[1, 2, 3], [4, 5, 0]]


def test_pictures_are_small_and_have_the_colours_of_the_map() -> None:
    latents = torch.zeros(2, 3, 90, 160)
    latents[1, 1] = 0.5
    pictures = small_pictures(latents, torch.tensor(SOME.factors), torch.tensor(SOME.bias))
    assert pictures.shape == (3, 72, LONGEST_SIDE, 3) and pictures.dtype == torch.uint8
    assert pictures[0, 5, 5].tolist() == [140, 153, 165], "the bias alone"
    assert pictures[1, 5, 5].tolist() == [140, 216, 165], "and half of the second channel"
    assert small_pictures(latents[:, :, :4, :6], torch.tensor(SOME.factors), None).shape == (3, 4, 6, 3)
    assert small_pictures(latents * float("nan"), torch.tensor(SOME.factors), None).shape[0] == 3


def test_every_mode_takes_frames_from_the_first_to_the_last() -> None:
    assert evenly(45, MOST_FRAMES[Mode.LOOP]) == list(range(45)), "all of them"
    assert evenly(45, MOST_FRAMES[Mode.FIRST]) == [0] and evenly(45, MOST_FRAMES[Mode.OFF]) == []
    sheet = evenly(45, MOST_FRAMES[Mode.SHEET])
    assert sheet[0] == 0 and sheet[-1] == 44 and len(set(sheet)) == 9
    assert evenly(1, 9) == [0]


@pytest.mark.parametrize("cost", [0.0, 0.001, 0.03, 0.2, 3.0])
@pytest.mark.parametrize("step", [0.01, 1.0, 20.0])
def test_the_throttle_keeps_the_cost_below_its_share(cost: float, step: float) -> None:
    now = 0.0
    throttle = Throttle(clock=lambda: now)
    sent: list[float] = []
    for _ in range(3000):
        now += step
        if throttle.due():
            sent.append(now)
            with throttle.spending():
                now += cost
    gaps = [later - sooner for sooner, later in zip(sent, sent[1:], strict=False)]
    assert sent and min(gaps, default=1.0) >= 0.25
    assert throttle.spent == pytest.approx(cost * len(sent))
    assert len(sent) == 1 or throttle.spent <= SHARE * now + 1e-9, "at every end of a run but right after the first"
    if cost <= 0.02 * step and step >= 1:
        assert len(sent) == 3000, "a cheap preview is not held back"


def test_colours_are_kept_by_file_and_found_by_release(tmp_path: Path) -> None:
    file = tmp_path / "colours.json"
    keep_colours(file, "a", "1.2", SOME)
    keep_colours(file, "b", "2.0", SOME)
    keep_colours(file, "c", "1.2", SOME)
    assert list(colours_in(file, "1.2").items()) == [("a", SOME), ("c", SOME)]
    keep_colours(file, "a", "1.2", SOME)
    assert list(colours_in(file, "1.2")) == ["c", "a"], "the last used is the last"
    for number in range(MOST_KEPT):
        keep_colours(file, f"n{number}", "1.3", SOME)
    assert colours_in(file, "1.2") == {} and len(colours_in(file, "1.3")) == MOST_KEPT


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", "[" * 10_000, '{"a": 5}', '{"a": {"autoencoder": "1.2"}}',
        '{"a": {"autoencoder": "1.2", "factors": [[1, 2]], "bias": [0, 0, 0]}}',
        '{"a": {"autoencoder": "1.2", "factors": [[1, 2, NaN]], "bias": [0, 0, 0]}}',
        '{"a": {"autoencoder": "1.2", "factors": [[1, 2, "x"]], "bias": [0, 0, 0]}}',
        '{"a": {"autoencoder": "1.2", "factors": 7, "bias": [0, 0, 0]}}',
        f'{{"a": {{"autoencoder": "1.2", "factors": [[1, 2, 1{"0" * 400}]], "bias": [0, 0, 0]}}}}',
        '{"a": {"autoencoder": "1.2", "factors": {"x": 1}, "bias": [0, 0, 0]}}',
    ],
)  # fmt: skip
def test_a_damaged_file_is_as_good_as_none(tmp_path: Path, text: str) -> None:
    file = tmp_path / "colours.json"
    file.write_text(text, encoding="utf-8")
    assert colours_in(file, "1.2") == {}
    keep_colours(file, "good", "1.2", SOME)
    assert colours_in(file, "1.2") == {"good": SOME}
    assert "good" in json.loads(file.read_text(encoding="utf-8"))


def test_previews_of_a_large_clip_take_little_of_a_run_with_steps_of_a_second() -> None:
    """Real work beside a clock that steps turn on; `python dev.py bench previews` prints the numbers."""
    ahead = 0.0
    throttle = Throttle(clock=lambda: time.process_time() + ahead)  # whatever else the machine does
    latents = torch.randn(1, 16, 33, 96, 168, generator=torch.Generator().manual_seed(1))
    factors = torch.randn(16, 3, generator=torch.Generator().manual_seed(2))
    began, shown = throttle.clock(), 0
    for _ in range(40):
        ahead += 1.0
        if throttle.due():
            with throttle.spending():
                shown += clip_picture(latents, Mode.LOOP, factors, None)["frames"] == 33
    share = throttle.spent / (throttle.clock() - began)
    assert shown > 1 and share <= 1.2 * SHARE, f"{shown} of 40 steps shown, in {share:.2%} of the time"
