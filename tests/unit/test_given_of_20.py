"""Given frames of Open-Sora 2.0: what the words of the Reference node mean, and what is refused or an experiment."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from opensora.opensora_models.releases.known import RELEASES
from opensora.opensora_models.sampling import given_input, masks
from opensora.opensora_models.sampling import placements as p
from opensora.opensora_models.sampling.fitting import fit_pictures
from opensora.opensora_models.sampling.pictures import fit_as_original
from opensora.opensora_models.sampling.placements import Piece, latent_of_frame, plan
from opensora.opensora_models.sampling.references import Placed, Reference, apply_strategy, lay_out
from opensora.opensora_models.sampling.segments import check_overlap, join

V2, HC = "2.0", "2.0 high compression"
CLIP = 33


def pieces(placement: str, first: int, second: int = 0, release: str = V2, clip: int = CLIP, **options: int) -> Any:
    return plan(placement, (first, second), clip, release, **{"take": 0, "at": 0, **options})


@pytest.mark.parametrize(
    ("release", "placement", "first", "second", "take", "wanted"),
    [
        (V2, p.FIRST, 129, 0, 0, [Piece(0, 0, 1, 0)]),
        (V2, p.LAST, 129, 0, 0, [Piece(0, 128, 1, -1)]),
        (V2, p.FIRST_AND_LAST, 1, 1, 0, [Piece(0, 0, 1, 0), Piece(1, 0, 1, -1)]),
        (V2, p.LOOP, 1, 0, 0, [Piece(0, 0, 1, 0), Piece(0, 0, 1, -1)]),
        (V2, p.FORWARDS, 100, 0, 0, [Piece(0, 67, 33, 0)]),
        (V2, p.FORWARDS, 100, 0, 65, [Piece(0, 35, 65, 0)]),
        (V2, p.BACKWARDS, 100, 0, 0, [Piece(0, 0, 33, None)]),
        (V2, p.BACKWARDS, 100, 0, 65, [Piece(0, 0, 65, None)]),
        (V2, p.CONNECT, 40, 50, 0, [Piece(0, 39, 1, 0), Piece(1, 0, 1, -1)]),
        (V2, p.CONNECT, 40, 50, 33, [Piece(0, 7, 33, 0), Piece(1, 0, 33, None)]),
        (V2, p.AT_POSITION, 5, 0, 0, [Piece(0, 0, 5, 0)]),
        (V2, p.KEYFRAMES, 3, 0, 0, [Piece(0, 0, 1, 0), Piece(0, 1, 1, 16), Piece(0, 2, 1, 32)]),
        (HC, p.FORWARDS, 100, 0, 0, [Piece(0, 68, 32, 0)]),
        (HC, p.BACKWARDS, 100, 0, 64, [Piece(0, 0, 64, None)]),
        (HC, p.CONNECT, 40, 50, 0, [Piece(0, 39, 1, 0), Piece(1, 0, 1, -1)]),
    ],
)
def test_placements(release: str, placement: str, first: int, second: int, take: int, wanted: list[Piece]) -> None:
    assert pieces(placement, first, second, release, take=take) == wanted


@pytest.mark.parametrize("release", [V2, HC])
@pytest.mark.parametrize(
    ("placement", "take", "kind"),
    [
        (p.FIRST, 0, "i2v_head"),
        (p.LAST, 0, "i2v_tail"),
        (p.LOOP, 0, "i2v_loop"),
        (p.FIRST_AND_LAST, 0, "i2v_loop"),
        (p.CONNECT, 0, "i2v_loop"),
        (p.FORWARDS, 0, "v2v_head"),
        (p.BACKWARDS, 0, "v2v_tail"),
        (p.FORWARDS, 1, "v2v_head_easy"),
        (p.BACKWARDS, 1, "v2v_tail_easy"),
    ],
)
def test_words_give_the_frames_of_the_originals_conditions(release: str, placement: str, take: int, kind: str) -> None:
    rules = RELEASES[release]
    counting = rules.latents.lengths.counting
    found, references = pieces(placement, 129, 129, release, take=rules.given.takes[1] * take), []
    for piece in found:
        count = counting.latents(piece.count)
        latent = torch.randn(rules.latents.channels, count, 2, 2, generator=torch.Generator().manual_seed(piece.start))
        references.append(Reference(latent, -count if piece.target is None else piece.target, release=release))
    clip = torch.zeros(rules.latents.channels, CLIP, 2, 2)
    placed = lay_out(references, clip, release=rules)
    lengths = [reference.frames for reference in references]
    spans = given_input.condition_spans(kind, lengths, CLIP, causal=release == V2)
    latent, given = given_input.lay_in([reference.latent for reference in references], spans, clip)
    assert torch.equal(placed.latent, latent)
    assert placed.frames == tuple(given.nonzero().flatten().tolist())
    assert (placed.pictures == placed.frames) is given_input.is_written_back(kind)
    assert not [note for note in placed.notes if "experiment" in note]


def laid(*references: Reference, clip: int = 12) -> Placed:
    return lay_out(references, torch.zeros(16, clip, 2, 2), release=RELEASES[V2])


def given(latents: int = 1, start: int = 0, **options: Any) -> Reference:
    return Reference(torch.ones(16, latents, 2, 2), start, **options)


@pytest.mark.parametrize(
    ("references", "what"),
    [
        ([given(1, 5)], "frames given between the ends"),
        ([given(9, 1)], "frames given between the ends"),
        ([given(2), given(2, -2)], "a clip together with other references or a given clip of 2 latent frames"),
        ([given(9), given(1, -1)], "a clip together with other references"),
        ([given(5)], "a given clip of 5 latent frames instead of 9 or 17"),
    ],
)
def test_what_was_not_trained_is_an_experiment_and_told(references: list[Reference], what: str) -> None:
    told = [note for note in laid(*references).notes if note.startswith("An experiment")]
    assert len(told) == 1 and what in told[0] and "33 or 65 frames of a clip" in told[0]


def test_other_releases_and_other_models_experiment_nowhere() -> None:
    for release in (RELEASES["1.3"], None):
        placed = lay_out([given(1, 5)], torch.zeros(16, 12, 2, 2), release=release)
        assert not [note for note in placed.notes if "experiment" in note]


def strategy(text: str) -> Placed:
    return laid(*apply_strategy([given()], masks.parse_strategy(text)))


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: pieces(p.EDIT, 33), "cannot edit some of them: encode the clip with your VAE.*denoise below 1"),
        (lambda: pieces(p.FORWARDS, 65, take=65, clip=9), "fill 17 latent frames.*nearest good value is 29"),
        (lambda: pieces(p.BACKWARDS, 33, clip=9), "must keep some of its own; the nearest good value is 29"),
        (lambda: pieces(p.FORWARDS, 33, clip=2), "nearest good value is 1"),
        (lambda: pieces(p.FORWARDS, 20), "do not fill the groups of Open-Sora 2.0.*nearest good value is 17"),
        (lambda: pieces(p.FORWARDS, 34, release=HC, take=33), "2.0 high compression.*nearest good value is 32"),
        (lambda: pieces(p.FORWARDS, 30, take=33), "it has 30; the nearest good value is 29"),
        (lambda: pieces(p.FIRST, 1, clip=1), "a single picture from words alone.*nearest good value is 5 frames"),
        (lambda: pieces(p.CONNECT, 33), "connect what comes after to second_image"),
        (lambda: pieces(p.KEYFRAMES, 13, clip=12), "nearest good value is 11"),
        (lambda: laid(given(edit_ratio=0.3)), "one time for all frames.*strength 0.3.*nearest good value is 0"),
        (lambda: strategy("0,0,0,-1,1,0.5"), "strength 0.5 was asked for, the nearest good value is 0"),
        (lambda: laid(given(12)), "nothing is left to make; give at most 41 frames"),
        (lambda: laid(given(1), clip=1), "a single picture from words alone"),
        (lambda: laid(given(release="1.3")), "encoded for Open-Sora 1.3 but the clip is made with Open-Sora 2.0"),
        (lambda: laid(Reference(torch.zeros(128, 1, 2, 2))), "128 latent channels but the clip has 16"),
        (lambda: check_overlap(V2, 33, 33), "^Segments overlap by at most 32 of their 33.*nearest good value is 32"),
        (lambda: check_overlap(V2, 1, 1), "Segments of 1 latent frame are too short to overlap"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused(call: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        call()


def test_a_strategy_without_strengths_is_only_another_way_to_write_places() -> None:
    assert strategy("0,0,0,-1,1,0").frames == (11,)


def test_the_size_that_is_asked_for_counts_the_releases_own_pixels() -> None:
    release = RELEASES[HC]
    with pytest.raises(ValueError, match="nearest good size is 128x64 pixels"):
        lay_out([Reference(torch.zeros(128, 1, 2, 2))], torch.zeros(128, 8, 4, 2), release=release)


@pytest.mark.parametrize(
    ("release", "frame", "latent"),
    [
        (V2, 0, 0),
        (V2, 1, 1),
        (V2, 4, 1),
        (V2, 5, 2),
        (V2, 128, 32),
        (V2, -1, -1),
        (V2, -4, -1),
        (V2, -5, -2),
        (V2, -129, -33),
        (HC, 0, 0),
        (HC, 3, 0),
        (HC, 4, 1),
        (HC, -1, -1),
        (HC, -5, -2),
    ],
)
def test_frames_are_found_in_their_latent_frame(release: str, frame: int, latent: int) -> None:
    assert latent_of_frame(release, frame, CLIP) == latent


def test_joined_segments_keep_every_latent_frame() -> None:
    group = RELEASES[V2].latents.lengths.counting.group
    clips = [torch.full((1, 16, 12, 1, 1), float(number)) for number in range(3)]
    assert join(clips, 1, group).shape[2] == 12 + 2 * 11
    assert join(clips, 9, group)[0, 0, :, 0, 0].tolist() == [0.0] * 12 + [1.0] * 3 + [2.0] * 3


@pytest.mark.parametrize("count", [1, 5])
def test_crop_is_the_originals_where_that_is_asked_for_and_smooth_never_is(count: int) -> None:
    pictures = torch.rand(count, 40, 70, 3, generator=torch.Generator().manual_seed(1))
    original, note = fit_pictures(pictures, 32, 32, "crop", original=True)
    assert torch.equal(original, fit_as_original(pictures, 32, 32)) and note
    plain = fit_pictures(pictures, 32, 32, "crop")[0]
    assert not torch.equal(original, plain)
    for fit in ("crop, smooth", "pad", "stretch"):
        ways = [fit_pictures(pictures, 32, 32, fit, original=way)[0] for way in (True, False)]
        assert torch.equal(*ways)
    assert torch.equal(fit_pictures(pictures, 32, 32, "crop, smooth", original=True)[0], plain)
