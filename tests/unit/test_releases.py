"""Releases as data: what the old modules say of 1.2 and 1.3 holds, and 2.0 counts, sizes and costs as released."""

from __future__ import annotations

import dataclasses

import pytest

from opensora.opensora_models.releases import groups as frames
from opensora.opensora_models.releases import printed_sizes as sizes
from opensora.opensora_models.releases.known import RELEASES, believed_release, release_named, releases_with
from opensora.opensora_models.releases.sizes import Computed, check_size
from opensora.opensora_models.releases.time_shift import shift_for
from opensora.opensora_models.sampling.effort import operations_per_row, rows_of_run, summary

V20, COMPRESSED = RELEASES["2.0"], RELEASES["2.0 high compression"]
EVERY = pytest.mark.parametrize("release", RELEASES.values(), ids=list(RELEASES))
OLD = pytest.mark.parametrize("version", frames.VERSIONS)


@OLD
def test_old_versions_are_described_as_their_own_modules_say(version: frames.Version) -> None:
    release = RELEASES[version]
    lengths, latents = release.latents.lengths, release.latents
    for count in range(1, 130):
        assert lengths.counting.latents(count) == frames.latent_frames(version, count)
        assert lengths.counting.frames(count) == frames.decoded_frames(version, count)
    for height, width in ((144, 256), (360, 640), (237, 426), (717, 1281)):
        assert latents.cells(17, height, width) == frames.latent_size(version, 17, height, width)
        assert release.times.shift(51, height, width) == shift_for(version, height, width, 51)
        assert release.sizes.multiple == sizes.SIZE_MULTIPLE[version]
    assert release.sizes.size("360p", "9:16") == sizes.image_size("360p", "9:16")


@OLD
def test_effort_of_old_versions_is_what_it_was(version: frames.Version) -> None:
    release, count = RELEASES[version], RELEASES[version].latents.lengths.nearest(51)
    rows, channels, tera, peta = {"1.2": (60, 4, 56.5, 3.39), "1.3": (50, 16, 60.7, 3.04)}[version]
    assert rows_of_run(release, "text", 15) == rows
    assert summary(release, count, 480, 848, (480, 854)) == (
        f"{count} frames ({count / 24:.1f} s at 24 fps) of height 480 × width 848 pixels (published 480×854, cut to "
        f"whole cells): latent {channels}×15×60×106, 23,850 tokens, {tera} TFLOP per network row, {peta} PFLOP for 30 "
        "steps with the released 1.1 B model."
    )
    assert "published" not in summary(release, count, 480, 848, (480, 848))


@EVERY
def test_good_lengths_come_back_as_long_and_the_nearest_is_good(release: object) -> None:
    lengths = release.latents.lengths
    for count in range(1, 200):
        nearest = lengths.nearest(count)
        assert lengths.is_good(nearest) and (nearest == count or not lengths.is_good(count))
        if lengths.is_good(count):
            lengths.check(count, release.title)
            assert lengths.counting.frames(lengths.counting.latents(count)) == count
        else:
            with pytest.raises(ValueError, match=rf"{count} was given; the nearest good value is {nearest}\."):
                lengths.check(count, release.title)
    assert lengths.longest is None or lengths.is_good(lengths.longest)
    for take in release.given.takes:
        assert lengths.is_good(take)


@pytest.mark.parametrize(
    ("release", "good", "nearest"),
    [
        (V20, [1, 5, 9, 125, 129], {2: 1, 3: 5, 7: 9, 128: 129, 130: 129}),
        (COMPRESSED, [1, 8, 12, 128], {3: 1, 4: 1, 5: 8}),
    ],
)
def test_lengths_of_2(release: object, good: list[int], nearest: dict[int, int]) -> None:
    lengths = release.latents.lengths
    assert all(lengths.is_good(count) for count in good)
    assert {count: lengths.nearest(count) for count in nearest} == nearest


@pytest.mark.parametrize("count", [0, -3])
@EVERY
def test_clips_of_nothing_are_refused(release: object, count: int) -> None:
    for counted in (release.latents.lengths.counting.latents, release.latents.lengths.counting.frames):
        with pytest.raises(ValueError, match=rf"at least 1 (latent )?frame, {count} was given"):
            counted(count)


@pytest.mark.parametrize(
    ("release", "clip", "shape"),
    [
        (V20, (129, 192, 336), (16, 33, 24, 42)),
        (V20, (129, 576, 1024), (16, 33, 72, 128)),
        (V20, (1, 200, 300), (16, 1, 26, 38)),  # filled up to whole tokens
        (COMPRESSED, (128, 576, 1024), (128, 32, 18, 32)),
    ],
)
def test_shapes_of_latents(release: object, clip: tuple[int, int, int], shape: tuple[int, ...]) -> None:
    assert release.latent_shape(*clip) == shape


@pytest.mark.parametrize(
    ("release", "clip", "shift"),
    [(V20, (129, 192, 336), 5.7326), (V20, (129, 576, 1024), 11.8721), (COMPRESSED, (128, 576, 1024), 6.5997)],
)
def test_shifts_of_released_clips(release: object, clip: tuple[int, int, int], shift: float) -> None:
    assert release.times.shift(*clip) == pytest.approx(shift, abs=5e-5)


@pytest.mark.parametrize(
    ("release", "clip", "tera"),
    [
        (V20, (129, 192, 336), 168.6),
        (V20, (129, 256, 256), 171.9),
        (V20, (65, 192, 336), 78.1),
        (V20, (129, 576, 1024), 5092),
        (V20, (65, 576, 1024), 1615),
        (COMPRESSED, (128, 576, 1024), 496.0),
    ],
)
def test_operations_of_a_row(release: object, clip: tuple[int, int, int], tera: float) -> None:
    assert operations_per_row(release, *clip) / 1e12 == pytest.approx(tera, rel=7e-4)


@pytest.mark.parametrize("release", [V20, COMPRESSED])
def test_rows_of_a_run(release: object) -> None:
    uses = ("text", "picture", "clip")
    assert [rows_of_run(release, use, 33) for use in uses] == [80, 110, 110]
    assert [rows_of_run(release, use, 33, 20) for use in uses] == [35, 50, 50]


def test_the_sentence_of_a_clip_says_its_shape_and_effort() -> None:
    text = summary(V20, 129, 192, 336, (192, 336))
    assert "129 frames (5.4 s at 24 fps)" in text and "latent 16×33×24×42, 8,316 tokens" in text
    assert "168.6 TFLOP per network row, 13.49 PFLOP for 50 steps with the released 11.9 B model" in text
    assert summary(V20, 1, 256, 256, (256, 256)).startswith("1 image")


def test_sizes_of_2_and_their_upright_forms() -> None:
    assert V20.sizes.size("256px", "16:9") == (192, 336) and V20.sizes.size("768px", "9:16") == (1024, 576)
    assert V20.sizes.size("768px", "1.78") == (576, 1024)  # a number near a named ratio
    assert COMPRESSED.sizes.size("768px", "2.39:1") == (480, 1184)
    assert V20.image_stage.size("768px", "2:1") == COMPRESSED.image_stage.size("768px", "2:1") == (544, 1088)
    for rule in (V20.sizes, COMPRESSED.sizes, V20.image_stage):
        for resolution in (*rule.resolutions, "512px"):
            for height, width in rule.table(resolution).values():
                check_size(rule, "Open-Sora 2.0", height, width)


def test_an_adjusted_size_is_never_farther_from_its_class() -> None:
    plain, adjusted = Computed(16), Computed(16, adjusted=True)
    for resolution in ("256px", "512px", "768px"):
        area = int(resolution.removesuffix("px")) ** 2
        for ratio, (height, width) in adjusted.table(resolution).items():
            before = plain.size(resolution, ratio)
            assert abs(height * width - area) <= abs(before[0] * before[1] - area)


@pytest.mark.parametrize(
    ("resolution", "ratio", "words"),
    [
        ("720p", "16:9", "no resolution class '720p'; allowed are 256px, 768px"),
        ("0px", "16:9", "no resolution class"),
        ("256px", "21:9", "no aspect ratio 21:9.*nearest good value is 2.39:1, that is 160×384"),
        ("256px", "wide", "no aspect ratio; write width:height"),
        ("256px", "1:0", "no aspect ratio"),
        ("256px", "-2", "no aspect ratio"),
        ("256px", "1:2:3", "no aspect ratio"),
    ],
)
def test_other_sizes_are_refused(resolution: str, ratio: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        V20.sizes.size(resolution, ratio)


@EVERY
def test_sides_are_multiples(release: object) -> None:
    multiple = release.sizes.multiple
    check_size(release.sizes, release.title, multiple * 10, multiple * 20)
    with pytest.raises(ValueError, match=f"multiples of {multiple} pixels.*nearest good size is {multiple}×{multiple}"):
        check_size(release.sizes, release.title, multiple + 1, 1)
    with pytest.raises(ValueError, match="at most 5760"):
        check_size(release.sizes, release.title, multiple, 5760 + multiple)


def test_what_decides_which_release_is_meant() -> None:
    assert believed_release(model="2.0", vae="1.3", latent="1.3", channels=16) is V20
    assert believed_release(vae="2.0", latent="1.3") is V20
    assert believed_release(latent="1.3", channels=16) is RELEASES["1.3"]
    assert believed_release(latent="1.2", channels=16) is None  # copied along by another program
    assert believed_release(latent="another model's", channels=4) is RELEASES["1.2"]
    assert believed_release(channels=128) is COMPRESSED
    assert believed_release(channels=16) is believed_release() is believed_release(channels=3) is None


def test_releases_are_found_by_name_and_channels() -> None:
    assert release_named("2.0") is V20
    with pytest.raises(ValueError, match="no Open-Sora '3.0'; known are 1.2, 1.3, 2.0, 2.0 high compression"):
        release_named("3.0")
    assert [release.id for release in releases_with(16)] == ["1.3", "2.0"]


@EVERY
def test_a_release_is_frozen_and_named_by_its_key(release: object) -> None:
    assert RELEASES[release.id] is release and set(release.guidance.presets) == {"text", "picture", "clip"}
    with pytest.raises(dataclasses.FrozenInstanceError):
        release.id = "other"
