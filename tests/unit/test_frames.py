"""Frame counting and good lengths, against the recorded tables of the original."""

from __future__ import annotations

import pytest

from opensora.opensora_models.releases import groups as frames
from opensora.opensora_models.releases.known import RELEASES

# Frames → latent frames: the original's pipelines, run on clips of these lengths.
RECORDED = {
    "1.2": {1: 1, 4: 1, 16: 4, 17: 5, 18: 6, 20: 6, 33: 9, 34: 10, 37: 11, 51: 15, 68: 20, 102: 30, 204: 60, 408: 120},
    "1.3": {1: 1, 17: 5, 33: 10, 49: 15, 65: 20, 81: 25, 97: 30, 113: 35, 25: 8, 40: 12},
}


@pytest.mark.parametrize("version", frames.VERSIONS)
def test_latent_frames_are_those_of_the_original(version: frames.Version) -> None:
    assert {count: frames.latent_frames(version, count) for count in RECORDED[version]} == RECORDED[version]


def test_decoded_frames_are_those_of_the_original() -> None:
    assert [frames.decoded_frames("1.2", count) for count in (1, 5, 6, 10, 15)] == [1, 17, 18, 34, 51]
    assert [frames.decoded_frames("1.3", count) for count in (1, 5, 8, 10, 12, 35)] == [1, 17, 25, 33, 37, 113]


@pytest.mark.parametrize("version", frames.VERSIONS)
def test_good_lengths_fill_their_groups(version: frames.Version) -> None:
    lengths = RELEASES[version].latents.lengths
    good = [count for count in range(1, 500) if lengths.is_good(count)]
    assert good[:4] == ([1, 17, 34, 51] if version == "1.2" else [1, 17, 33, 49])
    assert all(count == 1 or frames.latent_frames(version, count) % frames.GROUP_LATENTS == 0 for count in good)


@pytest.mark.parametrize("version", RELEASES)
def test_no_good_length_is_nearer_than_the_named_one(version: str) -> None:
    lengths = RELEASES[version].latents.lengths
    candidates = [count for count in range(1, 340) if lengths.is_good(count)]
    for count in range(1, 300):
        nearest = lengths.nearest(count)
        assert lengths.is_good(nearest)
        assert abs(nearest - count) == min(abs(each - count) for each in candidates)


@pytest.mark.parametrize(
    ("version", "given", "good"),
    [("1.2", 50, 51), ("1.3", 51, 49), ("1.2", 0, 1), ("1.3", 8, 1), ("2.0", 128, 129),
     ("2.0 high compression", 129, 128)],
)  # fmt: skip
def test_a_ragged_length_is_refused_with_the_nearest_good_value(version: str, given: int, good: int) -> None:
    with pytest.raises(ValueError, match=rf"{given} was given; the nearest good value is {good}\.$"):
        RELEASES[version].latents.lengths.check(given, RELEASES[version].title)


@pytest.mark.parametrize("function", [frames.latent_frames, frames.decoded_frames])
def test_an_empty_clip_is_refused(function) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        function("1.2", 0)
