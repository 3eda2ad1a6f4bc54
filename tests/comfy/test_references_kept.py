"""References that meet others, or what nobody reads: nothing that was given is lost without a word."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from support.native import conditioning, empty, load, randn
from support.runs import rooms

pytestmark = [pytest.mark.comfy, pytest.mark.compat]


@pytest.fixture(scope="module")
def native(comfy: Path) -> SimpleNamespace:
    return rooms()


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


def picture(native: SimpleNamespace, seed: int = 3, at: int = 0) -> Any:
    """A picture for clips of :func:`support.native.empty`."""
    return native.references.Reference(randn(*empty("1.3", 1).shape[1:], seed=seed), target_start=at)


def placed(native: SimpleNamespace, latent: dict[str, Any], positive: Any, negative: Any, *references: Any) -> Any:
    clip = native.clips.clip_size(latent)
    return native.inputs.place_references(native.inputs.ReferenceChain(references), latent, clip, positive, negative)


def test_frames_given_before_stay_beside_those_of_another_node(native: SimpleNamespace) -> None:
    """As a mask that is there does; where both have a frame, the later one is given."""
    latent, given = {"samples": empty("1.3", batch=2)}, native.guiders.given_values
    first, last, other = picture(native), picture(native, 4, at=-1), picture(native, 5)
    before = placed(native, latent, conditioning(), conditioning(5, 2), first)
    both = placed(native, latent, before.positive, before.negative, last)
    together = placed(native, latent, conditioning(), conditioning(5, 2), first, last)
    for each in (both.positive, both.negative):
        assert given(each)["opensora_given_frames"] == given(each)["opensora_given_pictures"] == [0, 4]
        assert torch.equal(given(each)["opensora_given_latent"], given(together.positive)["opensora_given_latent"])
    assert both.notes[-1] == "Latent frames given before, 0, stay as well." and before.notes == together.notes[:1]
    assert not given(before.positive)["opensora_given_latent"][:, :, 4].any(), "what came later is not written into it"
    over = placed(native, latent, both.positive, both.negative, other)
    assert given(over.positive)["opensora_given_frames"] == [0, 4] and "before, 4, stay" in over.notes[-1]
    assert torch.equal(given(over.positive)["opensora_given_latent"][1, :, 0], other.latent[:, 0])


def test_frames_given_before_count_where_some_must_be_made(native: SimpleNamespace) -> None:
    latent = {"samples": empty("2.0", 2), "opensora_release": "2.0"}
    first, last = picture(native), picture(native, at=-1)
    before = placed(native, latent, conditioning(), conditioning(5, 2), first)
    with pytest.raises(ValueError, match="fill all 2 latent frames"):
        placed(native, latent, before.positive, before.negative, last)
    longer = {**latent, "samples": empty("2.0", 3)}
    replaced = placed(native, longer, before.positive, before.negative, last)
    assert replaced.notes[-1] == "The frames given before are of another size of clip and are not used."
    assert native.guiders.given_values(replaced.positive)["opensora_given_frames"] == [2]


def test_a_mask_inside_given_frames_is_told(native: SimpleNamespace) -> None:
    half = torch.ones(1, 1, 5, 8, 10)
    half[..., 5:] = 0.0
    for frame, is_told in ((0, True), (1, False)):
        mask = torch.ones_like(half)
        mask[:, :, frame] = half[:, :, frame]
        latent = {"samples": randn(*empty("1.3").shape), "noise_mask": mask}
        notes = placed(native, latent, conditioning(), conditioning(5, 2), picture(native)).notes
        assert ("where it keeps, latent frame 0 stays as it is in the latent" in notes[-1]) is is_told


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_references_that_leave_nothing_to_make_are_told(version: str, native: SimpleNamespace) -> None:
    latent = {"samples": empty(version)}

    def said(**options: Any) -> str:
        whole = native.references.Reference(randn(*empty(version).shape[1:], seed=3), **options)
        return " ".join(placed(native, latent, conditioning(), conditioning(5, 2), whole).notes)

    assert "The references fill all 5 latent frames and leave nothing to make." in said()
    assert "nothing to make" not in said(length=4) + said(edit_ratio=0.5)


def test_frames_given_to_the_negative_prompt_alone_are_told(
    native: SimpleNamespace, tiny_models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    latent = {"samples": empty("1.3")}
    both = placed(native, latent, conditioning(), conditioning(), picture(native))
    model, run = load(tiny_models, "1.3"), native.clips.ClipRun(steps=1, seed=7, cfg=4.0)
    native.clips.sample_clip(model, both.positive, both.negative, latent, run)
    assert "connect both outputs" not in caplog.text
    native.clips.sample_clip(model, conditioning(), both.negative, latent, run)
    assert "The negative prompt holds given frames and the prompt does not" in caplog.text


def test_a_run_that_makes_no_numbers_says_so(
    native: SimpleNamespace, tiny_models: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent, run = {"samples": empty("1.2")}, native.clips.ClipRun(steps=1, seed=7, cfg=4.0)
    model = load(tiny_models, "1.2")
    native.clips.sample_clip(model, conditioning(), conditioning(), latent, run)
    assert "not numbers" not in caplog.text
    monkeypatch.setattr(native.clips.OpenSoraGuider, "sample", lambda *_, **__: latent["samples"] * float("nan"))
    native.clips.sample_clip(model, conditioning(), conditioning(), latent, run)
    assert "The run made values that are not numbers" in caplog.text


def test_what_stands_beside_a_latent_reference_is_told(comfy: Path) -> None:
    from opensora.nodes.references import AT_POSITION, FIRST, not_read

    assert not_read(FIRST, False, False) == not_read(AT_POSITION, False, False) == ""
    assert not_read("last frame", True, True).endswith("beside it: image, second_image, placement 'last frame'.")


def test_20_refuses_to_edit_a_clip_before_it_asks_for_another_strength(native: SimpleNamespace) -> None:
    clip = native.clips.clip_size({"samples": empty("2.0"), "opensora_release": "2.0"})
    for strength in (0.0, 0.5):
        placing = native.inputs.Placing("edit whole clip", strength=strength)
        with pytest.raises(ValueError, match="cannot edit some of them: encode the clip with your VAE"):
            native.inputs.encode_pictures(object(), (torch.zeros(17, 8, 8, 3), None), clip, placing)
