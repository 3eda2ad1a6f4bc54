"""Sizes of 1.2 and 1.3, and their arithmetic; what holds for every release is in test_shapes.py."""

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
