"""Shapes and durations of menus: one writing for all releases, each with its own sizes, lengths and costs."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from opensora.opensora_models.mmdit.config import RELEASED, RELEASED_HIGH_COMPRESSION
from opensora.opensora_models.mmdit.network import MMDiT
from opensora.opensora_models.releases.known import IMAGE_STAGE, RELEASES
from opensora.opensora_models.releases.printed_sizes import aspect_ratios
from opensora.opensora_models.releases.shapes import (
    ASPECT_RATIOS,
    SECONDS,
    frames_of,
    label_of,
    ratio_of,
    size_of,
    usable_size,
)
from opensora.opensora_models.sampling.effort import memory_sentence, released_needs, summary

V20, COMPRESSED = RELEASES["2.0"], RELEASES["2.0 high compression"]


def test_labels_of_before_are_there_and_words_fit_the_sizes() -> None:
    assert {label_of(ratio) for ratio in aspect_ratios()} <= set(ASPECT_RATIOS)
    assert ASPECT_RATIOS["9:16 (wide)"] == "9:16" and list(ASPECT_RATIOS) == sorted(ASPECT_RATIOS, key=ratio_of)
    for release in RELEASES.values():
        for label in ASPECT_RATIOS:
            for resolution in release.sizes.resolutions:
                try:
                    height, width = size_of(release.sizes, release.title, resolution, label)
                except ValueError:
                    continue
                word = label.partition("(")[2].rstrip(")")
                assert {"wide": height < width, "tall": height > width, "square": height == width}[word], label
                assert abs(math.log(height / width / ratio_of(label))) < 0.2, (resolution, label)


@pytest.mark.parametrize(
    ("version", "resolution", "label", "size"),
    [
        ("1.2", "480p", "9:16 (wide)", (480, 854)),
        ("1.2", "360p", "1:1 (square)", (480, 480)),
        ("2.0", "256px", "9:16 (wide)", (192, 336)),
        ("2.0", "768px", "9:16 (wide)", (576, 1024)),
        ("2.0", "768px", "16:9 (tall)", (1024, 576)),
        ("2.0", "768px", "27:50 (wide)", (560, 1040)),
        ("2.0", "768px", "1:2.39 (wide)", (496, 1184)),
        ("2.0 high compression", "768px", "1:2 (wide)", (544, 1056)),
        (IMAGE_STAGE, "768px", "1:2 (wide)", (544, 1088)),
        (IMAGE_STAGE, "768px", "3:4 (wide)", (672, 880)),
    ],
)
def test_sizes(version: str, resolution: str, label: str, size: tuple[int, int]) -> None:
    sizes: Any = V20.image_stage if version == IMAGE_STAGE else RELEASES[version].sizes
    assert size_of(sizes, version, resolution, label) == size


def test_published_sizes_shrink_to_whole_cells() -> None:
    assert usable_size(RELEASES["1.2"].sizes, 480, 854) == (480, 848)
    assert usable_size(RELEASES["1.3"].sizes, 360, 640) == (352, 640)
    for release in (V20, COMPRESSED):
        for label in ("9:16 (wide)", "1:1 (square)", "3:2 (tall)"):
            size = size_of(release.sizes, release.title, "768px", label)
            assert usable_size(release.sizes, *size) == size


def test_classes_and_shapes_of_another_release_are_refused_with_the_nearest() -> None:
    for resolution, near in (("144p", "256px"), ("256", "256px"), ("720p", "768px"), ("4k", "768px")):
        with pytest.raises(ValueError, match=rf"2\.0 has 256px and 768px; the nearest good value is {near}\."):
            size_of(V20.sizes, V20.title, resolution, "9:16 (wide)")
    with pytest.raises(ValueError, match=r"nearest good value is 256px, with aspect_ratio 1:2\.39 \(wide\)\."):
        size_of(V20.sizes, V20.title, "240p", "3:8 (wide)")
    with pytest.raises(ValueError, match=r"nearest good value is 27:50 \(wide\)\."):
        size_of(V20.sizes, V20.title, "768px", "9:17 (wide)")
    with pytest.raises(ValueError, match=r"nearest good value is 9:21 \(wide\)\."):
        size_of(RELEASES["1.2"].sizes, "Open-Sora 1.2", "480p", "1:2.39 (wide)")


def test_durations() -> None:
    said = {version: [frames_of(release, each) for each in SECONDS] for version, release in RELEASES.items()}
    assert said == {
        "1.2": [51, 102, 119, 204, 408, 816],
        "1.3": [49, 97, 113, 193, 385, 769],
        "2.0": [49, 97, 129, 193, 385, 769],
        "2.0 high compression": [48, 96, 128, 192, 384, 768],
    }
    for version, release in RELEASES.items():
        assert all(release.latents.lengths.is_good(count) for count in said[version])


@pytest.mark.parametrize(("release", "config"), [(V20, RELEASED), (COMPRESSED, RELEASED_HIGH_COMPRESSION)])
def test_the_number_of_weights_is_the_networks(release: Any, config: Any) -> None:
    with torch.device("meta"):
        network = MMDiT(config)
    assert release.weights == pytest.approx(sum(each.numel() for each in network.parameters()), rel=2e-3)


def test_the_sentence_about_2_tells_the_clip() -> None:
    text = summary(V20, 129, 576, 1024, (576, 1024))
    assert "129 frames (5.4 s at 24 fps)" in text and "latent 16×33×72×128, 76,032 tokens" in text
    assert "for 50 steps with the released 11.9 B model" in text


@pytest.mark.parametrize(
    ("size", "card", "words"),
    [
        ((192, 336), 12, ["bf16 streams", "fp8 fits"]),
        ((192, 336), 24, ["bf16 fits", "fp8 fits"]),
        ((576, 1024), 3, ["bf16 does not fit even", "fp8 does not fit even"]),
        ((576, 1024), 12, ["bf16 streams", "fp8 streams"]),
        ((576, 1024), 24, ["bf16 streams", "fp8 fits"]),
        ((576, 1024), 48, ["bf16 fits", "fp8 fits"]),
    ],
)
def test_memory_is_told_for_the_card(size: tuple[int, int], card: int, words: list[str]) -> None:
    needs = released_needs(V20, 129, *size)
    assert needs is not None
    said = memory_sentence(needs, card * 2**30)
    assert all(word in said for word in [*words, f"{card}.0 GB to use"])


def test_memory_without_a_card_or_a_count() -> None:
    needs = released_needs(V20, 129, 192, 336)
    assert needs is not None
    said = memory_sentence(needs, None)
    assert said.endswith("ComfyUI uses no graphics card here.") and "to use" not in said
    assert released_needs(RELEASES["1.2"], 51, 480, 848) is None
