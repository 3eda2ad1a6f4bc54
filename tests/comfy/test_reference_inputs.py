"""References and long video on the ComfyUI side: encoding, placing, segments, resuming; tiny weights, this process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from support.native import conditioning, empty, load, randn

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

Latent = dict[str, Any]


@pytest.fixture(scope="module")
def native(comfy: Path) -> SimpleNamespace:
    """The parts under test, imported once ComfyUI is there."""
    from opensora.opensora_models.native.sampling import clips, guiders, long_video, reference_inputs
    from opensora.opensora_models.releases.groups import latent_frames
    from opensora.opensora_models.sampling import placements, references

    return SimpleNamespace(
        clips=clips,
        guiders=guiders,
        inputs=reference_inputs,
        latent_frames=latent_frames,
        long=long_video,
        placements=placements,
        references=references,
    )


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


class FakeVae:
    """Counts what it is given; its latents say which frames they come from."""

    def __init__(self, native: SimpleNamespace, version: str) -> None:
        self.native, self.version = native, version
        self.seen: list[tuple[int, ...]] = []

    def encode(self, pictures: Tensor) -> Tensor:
        self.seen.append(tuple(pictures.shape))
        frames = self.native.latent_frames(self.version, pictures.shape[0])
        latent = torch.zeros(
            1, {"1.2": 4, "1.3": 16}[self.version], frames, *(side // 8 for side in pictures.shape[1:3])
        )
        return latent + pictures[0, 0, 0, 0] + 0.5


def film(frames: int, height: int = 64, width: int = 80) -> Tensor:
    """Pictures whose brightness is their number in thousandths."""
    return (torch.arange(frames).float() / 1000).reshape(-1, 1, 1, 1).expand(-1, height, width, 3).clone()


def encoded(native: SimpleNamespace, version: str, placement: str, *pictures: Tensor | None, **options: Any) -> Any:
    vae = FakeVae(native, version)
    clip = native.clips.clip_size({"samples": empty(version, 15)})
    placing = native.inputs.Placing(placement, **options)
    both = (*pictures, None)[:2]
    found, notes = native.inputs.encode_pictures(vae, both, clip, placing)
    return vae, clip, native.inputs.ReferenceChain().add(found, notes)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_only_frames_that_are_used_are_encoded(native: SimpleNamespace, version: str) -> None:
    places = native.placements
    vae, clip, chain = encoded(native, version, places.CONNECT, film(40), film(30))
    assert [shape[0] for shape in vae.seen] == [17, 17]
    placed = native.inputs.place_references(
        chain, {"samples": empty(version, 15)}, clip, conditioning(), conditioning(), method="frame mask"
    )
    values = placed.latent["samples"][0, 0, :, 0, 0]
    expected = [0.523] * 5 + [0.0] * 5 + [0.5] * 5
    torch.testing.assert_close(values, torch.tensor(expected))
    assert placed.latent["noise_mask"].flatten().tolist() == [0.0] * 5 + [1.0] * 5 + [0.0] * 5


def test_pictures_of_another_size_are_fitted_and_that_is_told(native: SimpleNamespace) -> None:
    vae, _, chain = encoded(native, "1.2", native.placements.FIRST, film(1, 100, 100), fit="pad")
    assert vae.seen == [(1, 64, 80, 3)]
    assert chain.notes == ("A reference of 100x100 was brought to 64x80 pixels (pad).",)


def test_pictures_without_a_vae_are_refused(native: SimpleNamespace) -> None:
    clip = native.clips.clip_size({"samples": empty("1.2", 15)})
    with pytest.raises(ValueError, match="connect one"):
        native.inputs.encode_pictures(None, (film(1), None), clip, native.inputs.Placing(native.placements.FIRST))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_pictures_that_are_no_numbers_are_refused(value: float, native: SimpleNamespace) -> None:
    with pytest.raises(ValueError, match="pictures hold values that are not numbers"):
        encoded(native, "1.2", "first frame", film(1) * value)


def chain_of(native: SimpleNamespace, *references: Any) -> Any:
    return native.inputs.ReferenceChain(references)


def picture(native: SimpleNamespace, version: str = "1.2", seed: int = 3, frames: int = 1, **options: Any) -> Any:
    return native.references.Reference(randn(*empty(version, frames).shape[1:], seed=seed), **options)


def test_12_writes_a_mask_and_13_given_frames(native: SimpleNamespace) -> None:
    for version, is_given in (("1.2", False), ("1.3", True)):
        latent = {"samples": empty(version)}
        clip = native.clips.clip_size(latent)
        chain = chain_of(native, picture(native, version), picture(native, version, target_start=-1))
        placed = native.inputs.place_references(chain, latent, clip, conditioning(), conditioning(5, 2), align=False)
        given = [native.guiders.given_values(each) for each in (placed.positive, placed.negative)]
        assert ("noise_mask" in placed.latent) is not is_given
        assert [bool(each) for each in given] == [is_given] * 2
        if is_given:
            assert given[0]["opensora_given_frames"] == [0, 4]
            assert placed.latent is latent


def test_edited_references_of_13_use_the_mask(native: SimpleNamespace) -> None:
    latent = {"samples": empty("1.3")}
    chain = chain_of(native, picture(native, "1.3", edit_ratio=0.4))
    placed = native.inputs.place_references(chain, latent, native.clips.clip_size(latent), conditioning(), [])
    assert placed.latent["noise_mask"][0, 0, 0, 0, 0] == pytest.approx(0.4)
    assert native.guiders.given_values(placed.positive) == {}


def test_a_mask_that_is_there_stays_where_no_reference_goes(native: SimpleNamespace) -> None:
    own = torch.tensor([1.0, 0.2, 1.0, 1.0, 0.7]).reshape(1, 1, 5, 1, 1)
    latent = {"samples": randn(*empty().shape), "noise_mask": own}
    chain = chain_of(native, picture(native, target_start=1), picture(native, target_start=2, edit_ratio=0.5))
    clip = native.clips.clip_size(latent)
    placed = native.inputs.place_references(chain, latent, clip, [], [], align=False)
    mask = placed.latent["noise_mask"]
    torch.testing.assert_close(mask[0, 0, :, 0, 0], torch.tensor([1.0, 0.0, 0.5, 1.0, 0.7]))
    assert torch.equal(placed.latent["samples"][:, :, 4], latent["samples"][:, :, 4])


def test_the_strategy_text_replaces_places_and_comes_back(native: SimpleNamespace) -> None:
    latent = {"samples": empty("1.2", 15)}
    chain = chain_of(native, picture(native), picture(native, seed=4))
    clip = native.clips.clip_size(latent)
    text = "0,1,0,0,1,0.0;0,0,0,-1,1,0.3"
    placed = native.inputs.place_references(chain, latent, clip, [], [], strategy=text)
    assert placed.strategy == text
    assert placed.latent["noise_mask"].flatten()[[0, 10]].tolist() == pytest.approx([0.0, 0.3])
    assert torch.equal(placed.latent["samples"][0, :, 0], chain.references[1].latent[:, 0])


def test_given_frames_without_conditioning_are_refused(native: SimpleNamespace) -> None:
    latent = {"samples": empty("1.3")}
    with pytest.raises(ValueError, match="connect both positive and negative"):
        native.inputs.place_references(
            chain_of(native, picture(native, "1.3")), latent, native.clips.clip_size(latent), conditioning(), []
        )


def test_kept_frames_come_back_bit_for_bit(native: SimpleNamespace, tiny_models: Path) -> None:
    model = load(tiny_models, "1.2")
    latent = {"samples": randn(*empty().shape), "noise_mask": torch.tensor([0.0, 1, 1, 0.5, 0]).reshape(1, 1, 5, 1, 1)}
    run = native.clips.ClipRun(steps=3, seed=1, cfg=4.0)
    done = native.clips.sample_clip(model, conditioning(), conditioning(5, 2), latent, run)["samples"]
    for frame in (0, 4):
        assert torch.equal(done[:, :, frame], latent["samples"][:, :, frame])
    for frame in (1, 2, 3):
        assert not torch.allclose(done[:, :, frame], latent["samples"][:, :, frame], atol=1e-2)


def test_weights_that_never_learned_given_frames_get_a_mask(native: SimpleNamespace, tiny_models: Path) -> None:
    model = load(tiny_models, "1.3")
    assert native.inputs.method_for(model, "1.3", "automatic") == "automatic"
    for part in model.model.diffusion_model.x_embedder_cond.parameters():
        part.zero_()
    assert native.inputs.method_for(model, "1.3", "automatic") == "frame mask"


# ---- long video ----


class Long:
    """A long video of tiny segments."""

    def __init__(self, native: SimpleNamespace, model: Any, version: str, folder: Path, monkeypatch: Any) -> None:
        import folder_paths

        monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folder))
        self.native, self.version, self.folder = native, version, folder / native.long.STORE_FOLDER
        self.inputs = native.long.Inputs(
            model, conditioning(), conditioning(5, 2), {"samples": empty(version, 15)}, native.inputs.ReferenceChain()
        )
        run = native.clips.ClipRun(steps=2, seed=7, cfg=4.0)
        self.video = native.long.LongVideo(segments=3, overlap=5, run=run)

    def make(self, **changes: Any) -> Tensor:
        inputs = {key: changes.pop(key) for key in ("positive", "chain") if key in changes}
        joined, self.report = self.native.long.sample_long_video(
            replace(self.inputs, **inputs), replace(self.video, **changes)
        )
        return joined["samples"]

    def stored(self) -> list[str]:
        return sorted(path.name for path in self.folder.glob("*/segment_*"))


@pytest.fixture(params=["1.2", "1.3"])
def long(request: Any, native: SimpleNamespace, tiny_models: Path, tmp_path: Path, monkeypatch: Any) -> Long:
    return Long(native, load(tiny_models, request.param), request.param, tmp_path, monkeypatch)


def test_segments_join_without_repeats_and_are_stored(long: Long) -> None:
    whole = long.make()
    assert whole.shape[2] == 15 + 2 * 10
    assert long.stored() == [f"segment_{index:04d}.safetensors" for index in range(3)]
    assert "35 latent frames" in long.report
    again = long.make()
    assert torch.equal(whole, again)
    assert torch.equal(whole, long.make(resume=False))


def test_an_interrupted_run_goes_on_and_ends_the_same(long: Long, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = long.make(resume=False, drift_control=0.5)
    real, calls = long.native.long.sample_clip, []

    def interrupted(*args: Any) -> Any:
        calls.append(args[-1].seed)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(long.native.long, "sample_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        long.make(drift_control=0.5)
    assert len(long.stored()) == 1
    resumed = long.make(drift_control=0.5)
    assert calls == [7, 8, 8, 9]
    assert torch.equal(resumed, whole)


def test_more_segments_later_only_make_the_new_ones(long: Long, monkeypatch: pytest.MonkeyPatch) -> None:
    short = long.make(segments=2)
    real, seeds = long.native.long.sample_clip, []
    monkeypatch.setattr(long.native.long, "sample_clip", lambda *args: (seeds.append(args[-1].seed), real(*args))[1])
    longer = long.make(segments=3)
    assert seeds == [9]
    assert torch.equal(longer[:, :, :25], short)


def test_changed_settings_never_mix_with_stored_segments(long: Long) -> None:
    first = long.make(segments=2)
    other = long.make(segments=2, run=replace(long.video.run, cfg=5.0))
    assert not torch.equal(first, other)
    assert len(list(long.folder.iterdir())) == 2


def test_texts_of_segments_that_are_not_made_are_told(long: Long, caplog: pytest.LogCaptureFixture) -> None:
    texts = [entry for number in (0, 1, 3) for entry in conditioning(6, 9, opensora_segment=number)]
    long.make(resume=False, segments=4, positive=texts)
    assert "not used: the video has" not in caplog.text
    long.make(resume=False, segments=1, positive=texts)
    assert "The texts from segments 1, 3 on are not used: the video has 1 segment, counted from 0." in caplog.messages


def test_latent_frames_that_are_cut_off_are_told(long: Long, caplog: pytest.LogCaptureFixture) -> None:
    long.make(resume=False, segments=2)
    assert "cut off" not in caplog.text
    if long.version == "1.3":  # 1.2 overlaps by whole groups only
        assert long.make(resume=False, segments=2, overlap=14).shape[2] == 15
        assert "The last 1 of 16 latent frames are cut off, so that whole groups of 5 are left. The last" in caplog.text
        assert "is made in vain. An overlap of 5 or a multiple of it loses none." in caplog.text
        caplog.clear()
        assert long.make(resume=False, segments=2, overlap=3).shape[2] == 25
        assert "The last 2 of 27 latent frames are cut off" in caplog.text and "in vain" not in caplog.text


def test_every_segment_has_its_own_prompt_and_noise(long: Long) -> None:
    same = long.make(resume=False, segments=2)
    late = conditioning() + conditioning(6, 9, opensora_segment=1)
    late[0][1]["opensora_segment"] = 0
    changed = long.make(resume=False, segments=2, positive=late)
    assert torch.equal(changed[:, :, :15], same[:, :, :15])
    assert not torch.allclose(changed[:, :, 15:], same[:, :, 15:], atol=1e-2)
    repeated = long.make(resume=False, segments=2, seeds=long.native.long.SAME_SEED)
    assert torch.equal(repeated[:, :, :15], same[:, :, :15])
    assert not torch.equal(repeated, same)


def test_a_reference_for_the_last_segment_waits_for_it(long: Long) -> None:
    closing = picture(long.native, long.version, target_start=-1, segment=-1)
    whole = long.make(segments=2, chain=chain_of(long.native, closing))
    plain = long.make(segments=2)
    assert torch.equal(whole[:, :, :15], plain[:, :, :15])
    assert not torch.allclose(whole[:, :, 15:], plain[:, :, 15:], atol=1e-2)
    if long.version == "1.2":  # 1.2 puts a picture on the start of its last group
        assert torch.equal(whole[0, :, -5], closing.latent[:, 0])


def test_a_continuing_segment_starts_from_the_end_of_the_one_before(
    long: Long, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = long.native.long.sample_clip, []
    monkeypatch.setattr(long.native.long, "sample_clip", lambda *args: (seen.append(args), real(*args))[1])
    whole = long.make(segments=2, resume=False)
    _, positive, negative, latent, _ = seen[1]
    if long.version == "1.2":
        assert latent["noise_mask"].flatten().tolist() == [0.0] * 5 + [1.0] * 10
        assert torch.equal(latent["samples"][:, :, :5], whole[:, :, 10:15])
    else:
        for each in (positive, negative):
            given = long.native.guiders.given_values(each)
            assert given["opensora_given_frames"] == [0, 1, 2, 3, 4]
            assert torch.equal(given["opensora_given_latent"][:, :, :5], whole[:, :, 10:15])


def test_what_does_not_fit_is_refused_before_anything_is_sampled(long: Long) -> None:
    with pytest.raises(ValueError, match="nearest good value is 10" if long.version == "1.2" else "value is 14"):
        long.make(overlap=15)
    far = picture(long.native, long.version, segment=5)
    with pytest.raises(ValueError, match="nearest good value is 2"):
        long.make(chain=chain_of(long.native, far))
    assert long.stored() == []


def test_a_lora_or_another_model_means_another_run(long: Long) -> None:
    long.make(segments=1)
    model = long.inputs.model.clone()
    name = next(key for key in model.model.state_dict() if key.endswith("attn.proj.weight"))
    model.add_patches({name: (torch.ones_like(model.model.state_dict()[name]) * 0.1,)}, 0.5)
    long.inputs = replace(long.inputs, model=model)
    long.make(segments=1)
    assert len(list(long.folder.iterdir())) == 2


# ---- Open-Sora 2.0 ----


def v2_clip(native: SimpleNamespace, release: str = "2.0", frames: int = 12) -> tuple[Latent, Any]:
    """An empty LATENT and its size."""
    from opensora.opensora_models.releases.known import RELEASES

    latents = RELEASES[release].latents
    samples = torch.zeros(1, latents.channels, frames, 4, 6)
    sides = (side * latents.space for side in samples.shape[-2:])
    clip = native.clips.ClipSize(RELEASES[release], *sides, latents.lengths.counting.frames(frames), frames)
    return {"samples": samples, "opensora_release": release}, clip


class V2Vae:
    """Latents of constant brightness: that of the first frame, and how many frames were encoded together."""

    def __init__(self, release: str = "2.0") -> None:
        from opensora.opensora_models.releases.known import RELEASES

        self.latents = RELEASES[release].latents
        self.seen: list[Tensor] = []

    def encode(self, pictures: Tensor) -> Tensor:
        self.seen.append(pictures)
        shape = self.latents.cells(*pictures.shape[:3])
        return torch.zeros(1, self.latents.channels, *shape) + pictures[0, 0, 0, 0] + pictures.shape[0]


@pytest.mark.parametrize(
    ("release", "placement", "take", "encoded_frames", "given", "pictures"),
    [
        ("2.0", "first frame", 0, [1], [0], [0]),
        ("2.0", "loop (same first and last)", 0, [1, 1], [0, 11], [0, 11]),
        ("2.0", "extend forwards", 0, [33], list(range(9)), []),
        ("2.0", "extend backwards", 0, [33], list(range(3, 12)), []),
        ("2.0", "connect two clips", 0, [1, 1], [0, 11], [0, 11]),
        ("2.0", "connect two clips", 5, [5, 5], [0, 1, 10, 11], []),
        ("2.0 high compression", "extend forwards", 0, [32], list(range(8)), []),
    ],
)
def test_20_is_given_frames_and_told_which_are_pictures(
    native: SimpleNamespace, release: str, placement: str, take: int, encoded_frames: list[int], given: list[int],
    pictures: list[int],
) -> None:  # fmt: skip
    latent, clip = v2_clip(native, release)
    vae = V2Vae(release)
    size = (clip.height, clip.width)
    found, _ = native.inputs.encode_pictures(
        vae, (film(40, *size), film(35, *size)), clip, native.inputs.Placing(placement, take=take)
    )
    assert [each.shape[0] for each in vae.seen] == encoded_frames
    chain = native.inputs.ReferenceChain().add(found, [])
    placed = native.inputs.place_references(chain, latent, clip, conditioning(), conditioning(5, 2))
    assert placed.latent is latent and "noise_mask" not in latent
    for each in (placed.positive, placed.negative):
        values = native.guiders.given_values(each)
        assert values["opensora_given_frames"] == given and values["opensora_given_pictures"] == pictures
    assert ("experiment" in " ".join(placed.notes)) is (take == 5)


@pytest.mark.parametrize("count", [1, 33])
def test_20_resizes_as_the_original_and_can_be_told_otherwise(native: SimpleNamespace, count: int) -> None:
    from opensora.opensora_models.sampling.pictures import fit_as_original

    _, clip = v2_clip(native)
    pictures = torch.rand(count, 50, 70, 3, generator=torch.Generator().manual_seed(1))
    placing = native.inputs.Placing("first frame" if count == 1 else "extend forwards")
    for fit, original in (("crop", True), ("crop, smooth", False)):
        vae = V2Vae()
        native.inputs.encode_pictures(vae, (pictures, None), clip, replace(placing, fit=fit))
        assert torch.equal(vae.seen[0], fit_as_original(pictures, clip.height, clip.width)) is original


@pytest.mark.parametrize("release", ["1.2", "1.3"])
def test_other_releases_resize_as_before(native: SimpleNamespace, release: str) -> None:
    ways = [
        encoded(native, release, native.placements.FIRST, film(1, 50, 70), fit=fit)[2].references[0].latent
        for fit in ("crop", "crop, smooth")
    ]
    assert torch.equal(*ways)


def test_a_method_that_20_does_not_have_is_refused(native: SimpleNamespace) -> None:
    latent, clip = v2_clip(native)
    chain = native.inputs.ReferenceChain((native.references.Reference(torch.ones(16, 1, 4, 6)),))
    with pytest.raises(ValueError, match="one time for all frames.*nearest good value is given frames"):
        native.inputs.place_references(chain, latent, clip, [], [], method="frame mask")
    native.inputs.check_references(chain, latent, clip, method="given frames")


def test_references_tell_their_release_where_the_latent_does_not(native: SimpleNamespace) -> None:
    latent, _ = v2_clip(native)
    chain = native.inputs.ReferenceChain((native.references.Reference(torch.ones(16, 1, 4, 6), release="2.0"),))
    unmarked = {"samples": latent["samples"]}
    placed = native.inputs.place_references(
        chain, unmarked, native.inputs.clip_of(unmarked, chain), conditioning(), conditioning(5, 2)
    )
    assert native.guiders.given_values(placed.positive)["opensora_given_pictures"] == [0]


def test_references_of_another_release_are_refused_though_their_channels_are_the_same(native: SimpleNamespace) -> None:
    latent, clip = v2_clip(native)
    held = {"samples": torch.ones(1, 16, 1, 4, 6), "opensora_release": "1.3"}
    references = native.inputs.latent_references(held, clip, native.inputs.Placing("first frame"))
    with pytest.raises(ValueError, match="encoded for Open-Sora 1.3 but the clip is made with Open-Sora 2.0"):
        native.inputs.check_references(native.inputs.ReferenceChain(tuple(references)), latent, clip)


@pytest.mark.parametrize("held", [True, False], ids=["latent", "picture"])
def test_20_does_not_edit_with_a_strength(native: SimpleNamespace, held: bool) -> None:
    _, clip = v2_clip(native)
    placing = native.inputs.Placing("first frame", strength=0.3)
    with pytest.raises(ValueError, match="strength 0.3 was asked for, the nearest good value is 0"):
        if held:
            native.inputs.latent_references({"samples": torch.ones(1, 16, 1, 4, 6)}, clip, placing)
        else:
            native.inputs.encode_pictures(V2Vae(), (film(1), None), clip, placing)


def test_a_network_without_an_input_for_references_is_named(native: SimpleNamespace, tiny_models: Path) -> None:
    model = load(tiny_models, "2.0")
    assert native.inputs.method_for(model, "2.0", "automatic") == "automatic"
    del model.model.diffusion_model.cond_in
    with pytest.raises(ValueError, match="no input for references; load Open-Sora 2.0"):
        native.inputs.method_for(model, "2.0", "automatic")
