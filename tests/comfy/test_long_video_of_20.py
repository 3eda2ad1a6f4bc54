"""Long video of Open-Sora 2.0: what a segment takes over, how it is joined, and what is an experiment or refused."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from support.native import conditioning, load, randn

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

FRAMES = 12
SHAPES = {"2.0": (16, FRAMES, 2, 2), "2.0 high compression": (128, FRAMES, 1, 1)}


@pytest.fixture(scope="module")
def native(comfy: Path, tiny_models: Path) -> SimpleNamespace:
    """The parts under test, and the tiny models."""
    from opensora.opensora_models.native.messages import speaking
    from opensora.opensora_models.native.sampling import clips, guiders, long_video, reference_inputs
    from opensora.opensora_models.sampling.references import Reference

    models = {release: load(tiny_models, release) for release in SHAPES}
    return SimpleNamespace(
        clips=clips, guiders=guiders, long=long_video, inputs=reference_inputs, models=models, reference=Reference,
        speaking=speaking,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


class Vae:
    """Decodes latents to pictures that say which latent frames they come from, and notes what it encodes."""

    def __init__(self) -> None:
        self.encoded: list[Tensor] = []
        self.patcher = None

    def decode(self, latent: Tensor) -> Tensor:
        frames = [latent[0, 0, 0, 0, 0]] + [value for value in latent[0, 0, 1:, 0, 0] for _ in range(4)]
        return torch.stack(frames).reshape(1, -1, 1, 1, 1).expand(1, -1, 16, 16, 3)

    def encode(self, pictures: Tensor) -> Tensor:
        self.encoded.append(pictures)
        return torch.full((1, 16, (pictures.shape[0] - 1) // 4 + 1, 2, 2), 0.25)


class Long:
    """A long video of tiny segments that keeps what every segment was sampled from."""

    def __init__(self, native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, release: str = "2.0") -> None:
        self.native, self.seen = native, []
        latent = {"samples": torch.zeros(1, *SHAPES[release]), "opensora_release": release}
        self.inputs = native.long.Inputs(
            native.models[release], conditioning(), conditioning(5, 2), latent, native.inputs.ReferenceChain()
        )
        run = native.clips.ClipRun(steps=2, seed=7, cfg=4.0, image_cfg=3.0)
        self.video = native.long.LongVideo(segments=3, overlap=9, run=run, resume=False)
        real = native.long.sample_clip
        monkeypatch.setattr(native.long, "sample_clip", lambda *args: (self.seen.append(args), real(*args))[1])

    def make(self, **changes: Any) -> tuple[Tensor, list[str]]:
        inputs = {key: changes.pop(key) for key in ("chain", "vae", "positive") if key in changes}
        with self.native.speaking() as said:
            joined, _ = self.native.long.sample_long_video(
                replace(self.inputs, **inputs), replace(self.video, **changes)
            )
        assert joined["opensora_release"] == self.inputs.latent["opensora_release"]
        return joined["samples"], list(said)

    def given(self, segment: int) -> dict[str, Any]:
        return self.native.guiders.given_values(self.seen[segment][1])


@pytest.mark.parametrize(
    ("release", "overlap", "pictures"),
    [("2.0", 9, []), ("2.0", 1, [0]), ("2.0 high compression", 8, []), ("2.0 high compression", 1, [0])],
)
def test_segments_go_on_from_given_frames(
    native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, release: str, overlap: int, pictures: list[int]
) -> None:
    long = Long(native, monkeypatch, release)
    whole, said = long.make(overlap=overlap)
    assert whole.shape[2] == FRAMES + 2 * (FRAMES - overlap)
    assert long.given(0) == {}
    for segment in (1, 2):
        given = long.given(segment)
        assert given["opensora_given_frames"] == list(range(overlap)) and given["opensora_given_pictures"] == pictures
        assert "noise_mask" not in long.seen[segment][3]
    taken = long.given(1)["opensora_given_latent"][:, :, :overlap]
    assert torch.equal(taken, whole[:, :, FRAMES - overlap : FRAMES])
    assert not [sentence for sentence in said if "experiment" in sentence]
    assert bool([sentence for sentence in said if "connect the VAE" in sentence]) is (
        release == "2.0" or overlap == 1
    ), "the first latent frame of a clip of the high-compression release stands for four as well"


def test_other_overlaps_are_experiments(native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    _, said = Long(native, monkeypatch).make(segments=2, overlap=5)
    assert [sentence for sentence in said if "5 latent frames instead of 9 or 17" in sentence]


@pytest.mark.parametrize(("overlap", "count"), [(9, 33), (1, 1)])
def test_with_a_vae_the_end_is_encoded_as_the_beginning_of_a_clip(
    native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, overlap: int, count: int
) -> None:
    long, vae = Long(native, monkeypatch), Vae()
    whole, said = long.make(segments=2, overlap=overlap, vae=vae)
    assert len(vae.encoded) == 1 and vae.encoded[0].shape == (count, 16, 16, 3)
    assert torch.equal(vae.encoded[0], vae.decode(whole[:, :, :FRAMES])[0, -count:])
    assert long.given(1)["opensora_given_latent"][:, :, :overlap].eq(0.25).all()
    assert not [sentence for sentence in said if "connect the VAE" in sentence]


def test_a_picture_closes_the_last_segment(native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    long = Long(native, monkeypatch)
    closing = native.reference(randn(16, 1, 2, 2, seed=3), -1, segment=-1, release="2.0")
    chain = native.inputs.ReferenceChain((closing,))
    whole, said = long.make(segments=2, overlap=1, chain=chain)
    given = long.given(1)
    assert given["opensora_given_frames"] == given["opensora_given_pictures"] == [0, FRAMES - 1]
    assert torch.equal(whole[0, :, -1], closing.latent[:, 0]), "written back"
    assert not [sentence for sentence in said if "experiment" in sentence]
    _, said = long.make(segments=2, overlap=9, chain=chain)
    assert [sentence for sentence in said if "a clip together with other references" in sentence]


def test_where_references_of_a_segment_went_is_told(native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    long = Long(native, monkeypatch)
    opening, later, closing = (
        native.reference(randn(16, 1, 2, 2, seed=at + 9), at, segment=segment, release="2.0")
        for at, segment in ((0, 0), (0, 1), (-1, 1))
    )
    chain = native.inputs.ReferenceChain((opening, later, closing), ("told where it was made",))
    _, said = long.make(segments=2, overlap=1, chain=chain)
    assert "Segment 0: Reference 0 fills latent frame 0, kept as it is." in said
    assert f"Segment 1: Reference 2 fills latent frame {FRAMES - 1}, kept as it is." in said
    (covered,) = [sentence for sentence in said if "covered" in sentence]
    assert covered.startswith("Segment 1: Reference 1 is covered up to latent frame 0 ")
    assert "told where" not in " ".join(said) and len(said) == len(set(said))
    _, said = long.make(segments=2, overlap=9, chain=native.inputs.ReferenceChain((closing,)))
    assert sum("An experiment" in sentence for sentence in said) == 1


def test_an_overlap_strength_without_effect_is_told(native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    long = Long(native, monkeypatch)
    _, said = long.make(segments=2, overlap_strength=0.5)
    assert [sentence for sentence in said if "overlap strength 0.5 is not used" in sentence]
    _, said = long.make(segments=2)
    assert not [sentence for sentence in said if "overlap strength" in sentence]


def test_every_segment_has_its_own_prompt(native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    long = Long(native, monkeypatch)
    same, _ = long.make(segments=2)
    first, second = conditioning(opensora_segment=0), conditioning(6, 9, opensora_segment=1)
    changed, _ = long.make(segments=2, positive=first + second)
    assert torch.equal(long.seen[-1][1][0][0], second[0][0]) and long.given(-1)["opensora_given_frames"]
    assert torch.equal(changed[:, :, :FRAMES], same[:, :, :FRAMES])
    assert not torch.allclose(changed[:, :, FRAMES:], same[:, :, FRAMES:], atol=1e-3)


def test_what_does_not_fit_is_refused_before_anything_is_sampled(
    native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = Long(native, monkeypatch)
    ending = native.reference(randn(16, 3, 2, 2, seed=3), -3, segment=1, release="2.0")
    for changes, said in (
        ({"overlap": FRAMES}, "nearest good value is 11"),
        ({"method": "frame mask"}, "nearest good value is given frames"),
        ({"chain": native.inputs.ReferenceChain((ending,)), "overlap": 9}, "nothing is left to make.*value is 8"),
        ({"chain": native.inputs.ReferenceChain((replace(ending, edit_ratio=0.5),))}, "nearest good value is 0"),
        ({"chain": native.inputs.ReferenceChain((replace(ending, release="1.3"),))}, "encoded for Open-Sora 1.3"),
    ):
        with pytest.raises(ValueError, match=said):
            long.make(**changes)
    assert long.seen == []
    long.make(chain=native.inputs.ReferenceChain((ending,)), overlap=8, segments=2)


def test_a_vae_is_part_of_what_a_stored_segment_was_made_from(
    native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch
) -> None:
    from opensora.opensora_models.native.identity import model_identity

    long = Long(native, monkeypatch)
    parts = [
        model_identity(native.long._parts(replace(long.inputs, vae=vae), long.video)).digest
        for vae in (None, SimpleNamespace(weights=torch.ones(2)), SimpleNamespace(weights=torch.zeros(2)))
    ]
    assert len(set(parts)) == 3


def test_finished_segments_are_stored_and_taken(
    native: SimpleNamespace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    long = Long(native, monkeypatch)
    first, _ = long.make(resume=True)
    again, said = long.make(resume=True)
    assert len(long.seen) == 3 and torch.equal(again, first)
    (taken,) = [sentence for sentence in said if "taken from" in sentence]
    assert taken.endswith("segments 0 to 2, counted from 0, of 3.")
    long.make(resume=True, vae=Vae())
    assert len(long.seen) == 6
