"""The words of the Reference node: which frames are taken and where they go; pictures of another size."""

from __future__ import annotations

import pytest
import torch

from opensora.opensora_models.releases.known import RELEASES
from opensora.opensora_models.releases.release import Release
from opensora.opensora_models.sampling import placements as p
from opensora.opensora_models.sampling.fitting import FITS, fit_pictures
from opensora.opensora_models.sampling.placements import Piece, latent_of_frame, plan, unused

CLIP = {"1.2": 15, "1.3": 15}


def pieces(placement: str, first: int, second: int = 0, version: str = "1.2", take: int = 0, at: int = 0):
    return plan(placement, (first, second), CLIP[version], version, take=take, at=at)


@pytest.mark.parametrize(
    ("placement", "first", "second", "wanted"),
    [
        (p.FIRST, 1, 0, [Piece(0, 0, 1, 0)]),
        (p.FIRST, 51, 0, [Piece(0, 0, 1, 0)]),
        (p.LAST, 1, 0, [Piece(0, 0, 1, -1)]),
        (p.LAST, 51, 0, [Piece(0, 50, 1, -1)]),
        (p.FIRST_AND_LAST, 1, 1, [Piece(0, 0, 1, 0), Piece(1, 0, 1, -1)]),
        (p.FIRST_AND_LAST, 2, 0, [Piece(0, 0, 1, 0), Piece(0, 1, 1, -1)]),
        (p.LOOP, 3, 0, [Piece(0, 0, 1, 0), Piece(0, 0, 1, -1)]),
        (p.FORWARDS, 40, 0, [Piece(0, 23, 17, 0)]),
        (p.BACKWARDS, 40, 0, [Piece(0, 0, 17, None)]),
        (p.CONNECT, 40, 20, [Piece(0, 23, 17, 0), Piece(1, 0, 17, None)]),
        (p.EDIT, 51, 0, [Piece(0, 0, 51, 0)]),
        (p.KEYFRAMES, 3, 0, [Piece(0, 0, 1, 0), Piece(0, 1, 1, 5), Piece(0, 2, 1, 10)]),
        (p.KEYFRAMES, 1, 0, [Piece(0, 0, 1, 0)]),
    ],
)
def test_placements(placement: str, first: int, second: int, wanted: list[Piece]) -> None:
    assert pieces(placement, first, second) == wanted


def test_every_placement_has_a_meaning() -> None:
    for version in ("1.2", "1.3"):
        for placement in p.PLACEMENTS:
            number = 3 if placement == p.KEYFRAMES else 17
            assert pieces(placement, number, 17, version)


def test_keyframes_of_13_are_spread_to_the_very_end() -> None:
    assert [piece.target for piece in pieces(p.KEYFRAMES, 3, version="1.3")] == [0, 7, 14]


def test_more_frames_can_be_taken() -> None:
    assert pieces(p.FORWARDS, 60, take=34) == [Piece(0, 26, 34, 0)]
    assert pieces(p.BACKWARDS, 60, take=33, version="1.3") == [Piece(0, 0, 33, None)]
    assert pieces(p.AT_POSITION, 60, take=17, at=5) == [Piece(0, 0, 17, 5)]


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: pieces(p.EDIT, 50), "of the 50 there are the nearest good value is 34"),
        (lambda: pieces(p.EDIT, 51, version="1.3"), "nearest good value is 49"),
        (lambda: pieces(p.FORWARDS, 20, take=34), "it has 20; the nearest good value is 17"),
        (lambda: pieces(p.FORWARDS, 9), "of the 9 there are the nearest good value is 1"),
        (lambda: pieces(p.KEYFRAMES, 4), "nearest good value is 3"),
        (lambda: pieces(p.CONNECT, 17), "connect what comes after to second_image"),
        (lambda: pieces(p.FIRST, 0), "connect one"),
    ],
)
def test_what_does_not_fit_is_refused(call, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_another_models_lengths_are_its_own_affair() -> None:
    assert plan(p.FORWARDS, (40, 0), 9, None, take=25, at=0) == [Piece(0, 15, 25, 0)]
    assert [piece.target for piece in plan(p.KEYFRAMES, (3, 0), 9, None, take=0, at=0)] == [0, 4, 8]
    with pytest.raises(ValueError, match="count the position in latent frames"):
        latent_of_frame(None, 8, 9)


@pytest.mark.parametrize(
    ("version", "frame", "latent"),
    [
        ("1.2", 0, 0),
        ("1.2", 1, 1),
        ("1.2", 4, 1),
        ("1.2", 16, 4),
        ("1.2", 17, 5),
        ("1.2", 50, 14),
        ("1.2", -1, -1),
        ("1.2", -17, -5),
        ("1.3", 16, 5),
        ("1.3", 17, 6),
        ("1.3", 48, 14),
        ("1.3", -1, -1),
        ("1.3", -49, -15),
    ],
)
def test_frames_are_found_in_their_latent_frame(version: str, frame: int, latent: int) -> None:
    assert latent_of_frame(version, frame, 15) == latent


@pytest.mark.parametrize("release", RELEASES.values(), ids=RELEASES)
def test_frames_outside_the_clip_are_refused_with_the_nearest_one(release: Release) -> None:
    counting = release.latents.lengths.counting
    frames = counting.frames(counting.latents(release.latents.lengths.first))
    for frame, best in ((frames, frames - 1), (10000, frames - 1), (-frames - 1, -frames)):
        with pytest.raises(ValueError, match=f"outside the clip of {frames} frames; the nearest good value is {best}."):
            latent_of_frame(release.id, frame, counting.latents(frames))
        latent_of_frame(release.id, best, counting.latents(frames))


@pytest.mark.parametrize(
    ("placement", "counts", "version", "said"),
    [
        (p.FORWARDS, (40, 0), "2.0", ["Of the 40 frames of the reference, counted from 0, frames 7 to 39 are used."]),
        (p.BACKWARDS, (20, 0), "1.3", ["Of the 20 frames of the reference, counted from 0, frames 0 to 16 are used."]),
        (p.FIRST, (17, 0), "1.2", ["Of the 17 frames of the reference, counted from 0, frame 0 is used."]),
        (p.FIRST_AND_LAST, (9, 0), "2.0", ["Of the 9 frames of the reference, counted from 0, frames 0, 8 are used."]),
        (p.FIRST, (1, 1), "2.0", ["The second reference is not used by this placement."]),
        (
            p.CONNECT, (9, 5), "2.0",
            [
                "Of the 9 frames of the reference, counted from 0, frame 8 is used.",
                "Of the 5 frames of the second reference, counted from 0, frame 0 is used.",
            ],
        ),
        (p.FORWARDS, (33, 0), "2.0", []),
        (p.LOOP, (1, 0), "1.3", []),
        (p.KEYFRAMES, (3, 0), "2.0", []),
    ],
)  # fmt: skip
def test_frames_that_are_not_taken_are_told(
    placement: str, counts: tuple[int, int], version: str, said: list[str]
) -> None:
    assert unused(plan(placement, counts, 33, version, take=0, at=0), counts) == said


def test_frames_of_an_image() -> None:
    assert latent_of_frame("1.2", 0, 1) == 0
    assert latent_of_frame("1.2", -1, 1) == -1


@pytest.mark.parametrize("fit", FITS)
@pytest.mark.parametrize("size", [(16, 64), (64, 16), (30, 50), (31, 51)])
def test_pictures_get_the_clips_size(fit: str, size: tuple[int, int]) -> None:
    pictures = torch.rand(2, 30, 50, 3, generator=torch.Generator().manual_seed(0))
    fitted, note = fit_pictures(pictures, *size, fit)
    assert fitted.shape == (2, *size, 3)
    assert (note is None) == (size == (30, 50))
    assert fitted.min() >= 0.0 and fitted.max() <= 1.0


def test_crop_keeps_proportions_and_the_middle_and_pad_keeps_everything() -> None:
    picture = torch.zeros(1, 32, 64, 3)
    picture[:, :, 31:33] = 1.0
    cropped, _ = fit_pictures(picture, 32, 32, "crop")
    assert torch.equal(cropped, picture[:, :, 16:48])
    framed = torch.zeros(1, 32, 64, 3)
    framed[:, 8:24, :, :] = 1.0
    padded, _ = fit_pictures(framed, 64, 64, "pad")
    assert torch.equal(padded[:, 16:48], framed)
    assert float(padded[:, :16].max()) == 0.0


def test_keyframes_leave_a_frame_to_make_where_frames_are_given_whole() -> None:
    with pytest.raises(ValueError, match="5 places, one of which is left to make; the nearest good value is 4"):
        plan(p.KEYFRAMES, (5, 0), 5, "2.0", take=0, at=0)
    assert [piece.target for piece in plan(p.KEYFRAMES, (4, 0), 5, "2.0", take=0, at=0)] == [0, 1, 3, 4]
    assert len(plan(p.KEYFRAMES, (5, 0), 5, "1.3", take=0, at=0)) == 5
