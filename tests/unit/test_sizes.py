"""Sizes the nodes offer, the refusals, and the cost sentence."""

from __future__ import annotations

import pytest

from opensora.opensora_models.releases import printed_sizes as sizes
from opensora.opensora_models.releases import stdit3_cost as cost


def test_a_wide_picture_is_written_height_first() -> None:
    assert sizes.image_size("720p", "9:16") == (720, 1280)
    assert sizes.image_size("720p", "16:9") == (1280, 720)
    assert sizes.image_size("240p_16d", "0.56") == (240, 416)


@pytest.mark.parametrize("resolution", ["256", "512", "1024", "2048", "2880"])
def test_square_sizes_the_original_hides_are_found(resolution: str) -> None:
    side = int(resolution)
    assert sizes.image_size(resolution, "1:1") == (side, side)


def test_a_missing_ratio_is_refused_with_the_nearest_one() -> None:
    with pytest.raises(ValueError, match=r"nearest good value is 0\.57, that is 192×336"):
        sizes.image_size("256", "9:16")


@pytest.mark.parametrize(("resolution", "ratio", "words"), [("721p", "9:16", "allowed are"), ("720p", "wide", "write")])
def test_unknown_names_are_refused_with_what_is_allowed(resolution: str, ratio: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        sizes.image_size(resolution, ratio)


@pytest.mark.parametrize(
    ("version", "given", "good"),
    [("1.2", (480, 854), "480×856"), ("1.3", (360, 640), "368×640"), ("1.2", (0, 64), "8×64")],
)
def test_a_size_of_broken_cells_is_refused_with_the_nearest_good_one(version, given, good: str) -> None:
    with pytest.raises(ValueError, match=f"the nearest good size is {good}"):
        sizes.check_size(version, *given)


def test_a_side_beyond_the_largest_class_is_refused() -> None:
    with pytest.raises(ValueError, match=f"at most {sizes.MAX_SIDE}"):
        sizes.check_size("1.2", 8, sizes.MAX_SIDE + 8)


def test_published_sizes_shrink_to_whole_cells() -> None:
    assert sizes.usable_size("1.2", 480, 854) == (480, 848)
    assert sizes.usable_size("1.3", 360, 640) == (352, 640)


@pytest.mark.parametrize(
    ("preset", "v12", "v13"), [("2s", 51, 49), ("4s", 102, 97), ("8s", 204, 193), ("16s", 408, 385)]
)
def test_presets_fill_the_groups_of_their_version(preset: str, v12: int, v13: int) -> None:
    assert (sizes.preset_frames("1.2", preset), sizes.preset_frames("1.3", preset)) == (v12, v13)


# TFLOP per row: an operation counter attached to the original network, text of 300 tokens.
@pytest.mark.parametrize(
    ("version", "latent", "tera"),
    [
        ("1.2", (15, 30, 53), 13.5),
        ("1.2", (15, 60, 106), 56.5),
        ("1.2", (30, 90, 160), 283.8),
        ("1.3", (35, 45, 80), 83.6),
        ("1.3", (35, 90, 160), 372.0),
    ],
)
def test_arithmetic_equals_the_counted_operations(version, latent, tera: float) -> None:
    assert cost.operations_per_row(cost.RELEASED[version], latent) / 1e12 == pytest.approx(tera, abs=0.05)


def test_the_sentence_tells_the_cut_and_the_latent() -> None:
    text = cost.summary("1.2", 51, 480, 848, (480, 854))
    assert "51 frames (2.1 s at 24 fps)" in text
    assert "published 480×854" in text
    assert "latent 4×15×60×106, 23,850 tokens" in text
    assert "published" not in cost.summary("1.3", 113, 720, 1280, (720, 1280))
