"""Open-Sora Strength over Clip: the node, the frames of runs, and every other place that uses references."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from support.comfyui import comfyui_root, use_comfyui
from support.native import conditioning, empty, load, randn

if TYPE_CHECKING:
    from support.comfyui import Executor

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

from opensora.nodes.references import PlaceReferences  # noqa: E402
from opensora.nodes.strength_over_clip import StrengthCurve  # noqa: E402
from opensora.opensora_models.native.messages import speaking  # noqa: E402
from opensora.opensora_models.native.sampling.clips import RELEASE_KEY, ClipRun, sample_clip  # noqa: E402
from opensora.opensora_models.native.sampling.long_video import (  # noqa: E402
    Inputs,
    LongVideo,
    sample_long_video,
)
from opensora.opensora_models.native.sampling.reference_inputs import ReferenceChain  # noqa: E402
from opensora.opensora_models.sampling.factor_curve import read_curve  # noqa: E402
from opensora.opensora_models.sampling.references import Reference  # noqa: E402

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

RISING = "0:0, 1:1"
RUN = ClipRun(steps=4, seed=1, cfg=3.0)


def chain_of(version: str, frames: int, *, strength: float = 1.0, **more: Any) -> ReferenceChain:
    latent = randn(*empty(version, frames).shape[1:], seed=3)
    return ReferenceChain((Reference(latent, edit_ratio=strength, release=version, **more),))


def clip_of(version: str, frames: int) -> dict[str, Any]:
    return {"samples": empty(version, frames), RELEASE_KEY: version}


def curved(chain: ReferenceChain, points: str = RISING, number: int = -1, **more: Any) -> ReferenceChain:
    made: ReferenceChain = StrengthCurve.execute(chain, number, points, **more).args[0]
    return made


def placed(chain: ReferenceChain, latent: dict[str, Any], **more: Any) -> tuple[dict[str, Any], str, str]:
    """The latent, the strategy and the report of Place References."""
    given: dict[str, Any] = {"method": "automatic", "mask_strategy": "", "align": True, **more}
    found = PlaceReferences.execute(chain, latent, positive=conditioning(), negative=conditioning(5, 2), **given).args
    return found[0], found[3], found[4]


def sampled(model: Any, chain: ReferenceChain, latent: dict[str, Any], **more: Any) -> Tensor:
    with torch.inference_mode():
        found = placed(chain, latent, **more)[0]
        out: Tensor = sample_clip(model, conditioning(), conditioning(5, 2), found, RUN)["samples"]
    return out


@pytest.fixture(scope="module", params=["1.2", "1.3"])
def version(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_every_frame_has_its_own_strength(version: str) -> None:
    latent, _, report = placed(curved(chain_of(version, 10)), clip_of(version, 10))
    mask = latent["noise_mask"].flatten()
    assert torch.equal(mask, torch.tensor([number / 9 for number in range(10)])), "also in 1.3, by the frame mask"
    assert "fills latent frames 0 to 9, edited with a strength that rises from 0 to 1." in report


def test_what_is_kept_comes_back_and_the_rest_is_made(version: str, tiny_models: Path) -> None:
    """0.5 is the reference until noise has fallen to half; with four steps on a shifted schedule that is later."""
    chain = curved(chain_of(version, 10), "0:0, 0.4:0, 1:1")
    model, latent = load(tiny_models, version), clip_of(version, 10)
    done, reference = sampled(model, chain, latent), chain.references[0].latent
    assert torch.equal(done[0, :, :4], reference[:, :4])
    far = [(done[0, :, frame] - reference[:, frame]).abs().mean().item() for frame in range(10)]
    assert all(distance > 1e-3 for distance in far[6:]) and far[9] > far[4]


def test_a_flat_curve_is_no_node_bit_for_bit(version: str, tiny_models: Path) -> None:
    chain, latent, model = chain_of(version, 10, strength=0.6), clip_of(version, 10), load(tiny_models, version)
    drawn = {"points": [[0, 1], [0.3, 1], [1, 1]], "interpolation": "monotone_cubic"}
    flat = [curved(chain, ""), curved(chain, "0:1, 1:1"), curved(chain, "", strength_curve=drawn)]
    assert all(each.references[0] is chain.references[0] for each in flat)
    wanted = sampled(model, chain, latent)
    assert torch.equal(sampled(model, flat[2], latent), wanted)
    assert not torch.equal(sampled(model, curved(chain), latent), wanted)


def test_a_constant_factor_is_that_strength(version: str, tiny_models: Path) -> None:
    model, latent = load(tiny_models, version), clip_of(version, 10)
    half = sampled(model, curved(chain_of(version, 10), "0:0.5"), latent)
    assert torch.equal(half, sampled(model, chain_of(version, 10, strength=0.5), latent))


def test_a_strategy_made_of_a_curve_gives_the_same_run(version: str, tiny_models: Path) -> None:
    chain, latent = chain_of(version, 5).add(chain_of(version, 5, target_start=4).references, ()), clip_of(version, 15)
    chain = curved(curved(chain, "0:0.2, 1:0.8", 0), RISING, 1)
    first, strategy, report = placed(chain, latent)
    again, same, _ = placed(chain_of(version, 5).add(chain.references[1:], ()), latent, mask_strategy=strategy,
                            align=False)  # fmt: skip
    assert torch.equal(first["noise_mask"], again["noise_mask"]) and torch.equal(first["samples"], again["samples"])
    assert len(strategy.split(";")) == 10 and same == strategy
    assert ("references 0 to 1 by groups of one strength each" in report) == (version == "1.2")


def test_only_a_strategy_that_aligning_would_move_asks_for_none() -> None:
    latent = clip_of("1.2", 10)
    for points, asks in (("0:0.5", False), ("0:0, 0.5:0, 0.5:1, 1:1", False), (RISING, True)):
        chain = curved(chain_of("1.2", 10), points)
        first, strategy, report = placed(chain, latent)
        again, *_ = placed(chain_of("1.2", 10), latent, mask_strategy=strategy)
        assert ("read it with align off" in report) == asks
        assert torch.equal(first["noise_mask"], again["noise_mask"]) != asks


def test_what_a_strategy_sets_aside_is_told() -> None:
    latent, _, report = placed(curved(chain_of("1.2", 5)), clip_of("1.2", 10), mask_strategy="0,0,0,5,5,0.3")
    assert latent["noise_mask"].flatten()[5:].tolist() == pytest.approx([0.3] * 5)
    assert "The curve on the strength of reference 0 is not used: the mask strategy has a strength" in report


def test_given_frames_have_no_strength_and_that_is_told() -> None:
    for chain in (chain_of("1.3", 5, strength=0.5), curved(chain_of("1.3", 5))):
        report = placed(chain, clip_of("1.3", 10), method="given frames")[2]
        assert "The strength of reference 0 is not used: given frames are shown to the model as they are" in report
    kept = curved(chain_of("1.3", 5), "0:0")
    for chain in (kept, chain_of("1.3", 5, strength=0.0)):
        for method in ("given frames", "automatic"):
            latent, _, report = placed(chain, clip_of("1.3", 10), method=method)
            assert "not used" not in report and "noise_mask" not in latent, "a curve at 0 keeps all, so 1.3 is shown it"


@pytest.mark.parametrize("release", ["2.0", "2.0 high compression"])
def test_a_release_that_only_keeps_is_told_and_refuses_strengths(
    release: str, caplog: pytest.LogCaptureFixture
) -> None:
    kept = curved(chain_of(release, 3, strength=0.0))
    assert caplog.messages == [
        f"The curve changes nothing: Open-Sora {release} can only keep the frames of reference 0 as they are."
    ]
    assert "noise_mask" not in placed(kept, clip_of(release, 9))[0]
    # A reference of another origin, whose node could not know: the sampler's door says it.
    with pytest.raises(
        ValueError, match=r"one time for all frames.*strength 0\.5 was asked.*nearest good value is 0\."
    ):
        placed(curved(chain_of(release, 3)), clip_of(release, 9))


def test_a_long_video_has_the_curve_over_each_segments_own_frames(
    version: str, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    chain = curved(chain_of(version, 5, segment=-1, target_start=-5), "0:1, 1:0")
    model, latent = load(tiny_models, version), clip_of(version, 10)
    inputs = Inputs(model, conditioning(), conditioning(5, 2), latent, chain)
    video = LongVideo(2, 5, RUN, method="frame mask")
    with torch.inference_mode(), speaking() as said:
        joined, _ = sample_long_video(inputs, video)
        other, report = sample_long_video(Inputs(*_with_chain(inputs, curved(chain, "0:0.5"))), video)
        _, again = sample_long_video(inputs, video)
    last = chain.references[0].latent
    assert torch.equal(joined["samples"][0, :, -1], last[:, -1])
    assert not torch.equal(joined["samples"][0, :, -5], last[:, 0])
    assert not torch.equal(joined["samples"], other["samples"]) and "taken from" not in report
    assert "Made by an earlier run" in again, "the same curve is the same run"
    assert "Segment 1: Reference 0 fills latent frames 5 to 9, edited with a strength that falls from 1 to 0." in said


def _with_chain(inputs: Inputs, chain: ReferenceChain) -> tuple[Any, ...]:
    return inputs.model, inputs.positive, inputs.negative, inputs.latent, chain


def test_what_it_does_is_told_on_the_node(caplog: pytest.LogCaptureFixture) -> None:
    cases = {
        "its strength rises from 0 to 0.5 over its 5 latent frames": (chain_of("1.2", 5, strength=0.5), RISING),
        "The curve is flat at 1: the references are as they were.": (chain_of("1.2", 5, strength=0.5), "0:1"),
        "a factor on it leaves it there": (chain_of("1.2", 5, strength=0.0), RISING),
        "single latent frame": (chain_of("1.2", 1), "0:0.5, 1:1"),
    }
    for sentence, (chain, points) in cases.items():
        caplog.clear()
        with caplog.at_level(logging.INFO, "opensora"):
            curved(chain, points)
        (record,) = caplog.records
        assert sentence in record.message and (record.levelno == logging.WARNING) == ("leaves it there" in sentence)


def test_numbers_are_preferred_to_the_drawn_curve_and_that_is_told(caplog: pytest.LogCaptureFixture) -> None:
    made = curved(chain_of("1.2", 5), "0:0.5", strength_curve=[[0, 1], [1, 0]])
    assert made.references[0].curves == (read_curve("0:0.5"),)
    assert caplog.messages[0] == (
        "The numbers of strength_points are used and the curve of strength_curve is set aside; empty one of them."
    )


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        ({"points": "0:1, 1:3"}, "The input strength_points is no curve: the factor of point 2 is 3"),
        ({"points": "", "strength_curve": {"points": [[0, 2]]}}, "The input strength_curve is no curve: the factor of"),
        ({"number": 3}, "There is no reference 3 in a chain of 1, counted from 0; the nearest good value is 0"),
        ({"number": 0.5}, "The input reference is 0.5, but must be a whole number between -10000 and 10000."),
        ({"chain": ReferenceChain()}, "The chain holds no reference whose strength could follow a curve"),
        ({"chain": 3}, "The input references got 3, but needs a chain of references; connect Open-Sora Reference"),
    ],
)
def test_bad_input_is_refused_in_one_sentence(inputs: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        curved(**{"chain": chain_of("1.2", 5), **inputs})


def test_a_wire_of_cores_curve_editor_is_a_curve() -> None:
    editor = pytest.importorskip("comfy_extras.nodes_curve", reason="this ComfyUI has no curves").CurveEditor
    curve = editor.execute({"points": [[0, 0], [1, 1]], "interpolation": "linear"}).args[0]
    assert curved(chain_of("1.2", 5), "", strength_curve=curve).references[0].ratios == (0, 0.25, 0.5, 0.75, 1)


def test_without_cores_curves_the_node_has_the_same_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the older versions: a socket without an editor, and the numbers."""
    from comfy_api.latest import io

    names = [entry.id for entry in StrengthCurve.define_schema().inputs]
    monkeypatch.delattr(io, "Curve", raising=False)
    entries = StrengthCurve.define_schema().inputs
    assert [entry.id for entry in entries] == names
    assert entries[-1].get_io_type() == "CURVE"


def test_a_timeline_shows_the_strengths_of_a_chain_before_it(executor: Executor) -> None:
    prompt = {
        "vae": _node("OSoraVAELoader", vae_name="random-vae-v1.2.safetensors", spatial_vae="none", dtype="default",
                     temporal_overlap=True),
        "clip": _node("OSoraEmptyLatent", version="1.2", height=64, width=64, frames=34, batch_size=1),
        "film": _node("EmptyImage", width=64, height=64, batch_size=17, color=0x336699),
        "reference": _node("OSoraReference", vae=["vae", 0], clip_latent=["clip", 0], image=["film", 0],
                           placement="at position", position=-6, frames=0, strength=1.0, resize="crop", segment=0,
                           position_unit="latent frame"),
        "curve": _node("OSoraStrengthCurve", references=["reference", 0], reference=-1, strength_points=RISING),
        "plan": _node("OSoraTimeline", vae=["vae", 0], clip_latent=["clip", 0], references=["curve", 0],
                      plan="0,0,0,0,1,0", resize="crop", **{"pictures.picture0": ["film", 0]}),
    }  # fmt: skip
    chain, latent = executor.run(prompt, ("plan", 0), ("clip", 0))
    (before,) = json.loads(executor.shown("plan")["opensora_timeline"][0])["before"]
    assert (before["target_start"], before["length"]) == (5, 5), "where it lands in the groups of 1.2"
    assert before["strengths"] == [0.0, 0.25, 0.5, 0.75, 1.0]
    assert placed(chain, latent)[0]["noise_mask"].flatten().tolist() == [0, 1, 1, 1, 1, 0, 0.25, 0.5, 0.75, 1]


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
