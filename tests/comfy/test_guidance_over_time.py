"""Guidance by curve: the numbers of runs, with every guider, and together with what else changes guidance."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from support.comfyui import comfyui_root, use_comfyui
from support.native import conditioning, empty, load, randn, relative, sample, spy

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

import comfy.samplers  # noqa: E402
import comfy_extras.nodes_custom_sampler as core_guiders  # noqa: E402

from opensora.nodes.guidance_over_time import GuidanceCurve  # noqa: E402
from opensora.opensora_models.caching.guidance_rows import GuidanceReuse  # noqa: E402
from opensora.opensora_models.caching.tables import StepTable  # noqa: E402
from opensora.opensora_models.native.core.curves import curve_of  # noqa: E402
from opensora.opensora_models.native.identity import model_identity  # noqa: E402
from opensora.opensora_models.native.model.step_cache import CachedRun, with_step_cache  # noqa: E402
from opensora.opensora_models.native.sampling.guidance_over_time import (  # noqa: E402
    GuidanceOverTime,
    with_guidance_over_time,
)
from opensora.opensora_models.native.sampling.guiders import (  # noqa: E402
    OpenSoraGuider,
    patch_guidance,
    with_given_frames,
)
from opensora.opensora_models.releases.guidance import Guidance  # noqa: E402
from opensora.opensora_models.sampling.factor_curve import FLAT, FactorCurve, read_curve  # noqa: E402
from opensora.opensora_models.sampling.guidance import lowered  # noqa: E402

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

STEPS = 5
LEVELS = torch.linspace(1, 0, STEPS + 1)
FALLING = read_curve("0:1, 1:0.2")
FIFTH = read_curve("0:0.2, 1:0.2")
NONE = read_curve("0:0, 1:0")


def over(model: Any, text: Any = FLAT, image: Any = FLAT, schedule: Any = None) -> Any:
    return with_guidance_over_time(model, GuidanceOverTime(text, image, schedule))


def prompts(latent: Tensor, given: bool) -> tuple[Any, Any]:
    positive = conditioning(9)
    if given:
        positive = with_given_frames(positive, randn(*latent.shape, seed=7), [0], [0])
    return positive, conditioning(4, seed=2)


def run(guider: Any, latent: Tensor, levels: Tensor = LEVELS, sampler: str = "euler") -> Tensor:
    chosen, noise = comfy.samplers.sampler_object(sampler), randn(*latent.shape, seed=5)
    with torch.inference_mode():
        out: Tensor = guider.sample(noise, latent, chosen, levels, disable_pbar=True, seed=5)
    return out


def ours(model: Any, given: bool = False, levels: Tensor = LEVELS, **settings: Any) -> Tensor:
    latent = empty(model.model.release.id, 3)
    guider = OpenSoraGuider(model, Guidance(**{"text_scale": 5.0, **settings}))
    guider.set_conds(*prompts(latent, given))
    return run(guider, latent, levels)


def cores(model: Any, cfg: float = 5.0, given: bool = False, sampler: str = "euler") -> Tensor:
    latent = empty(model.model.release.id, 3)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(*prompts(latent, given))
    guider.set_cfg(cfg)
    return run(guider, latent, sampler=sampler)


@pytest.fixture(scope="module", params=["1.2", "1.3", "2.0"])
def model(comfy: Path, tiny_models: Path, request: pytest.FixtureRequest) -> Any:
    return load(tiny_models, request.param)


def test_a_flat_curve_is_no_node_bit_for_bit(model: Any) -> None:
    assert GuidanceCurve.execute(model).args[0] is model
    assert GuidanceCurve.execute(model, text_curve={"points": [[0, 1], [1, 1]]}).args[0] is model
    wrapped = model.clone()
    flat = GuidanceOverTime()
    wrapped.add_wrapper_with_key("predict_noise", "x", flat)
    wrapped.add_wrapper_with_key("sampler_sample", "x", flat.announced)
    assert torch.equal(ours(wrapped), ours(model)) and torch.equal(cores(wrapped), cores(model))


def test_a_constant_factor_is_that_scale_in_every_sampler(model: Any) -> None:
    assert torch.equal(ours(over(model, FIFTH), text_scale=10.0), ours(model, text_scale=2.0))
    for sampler in ("euler", "heun", "dpmpp_2m", "euler_ancestral"):
        assert torch.equal(cores(over(model, FIFTH), 10.0, sampler=sampler), cores(model, 2.0, sampler=sampler))


def test_the_scale_of_every_step_is_the_curves(model: Any) -> None:
    seen: list[float] = []

    def look(call: dict[str, Any]) -> Tensor:
        seen.append(call["cond_scale"])
        return call["denoised"]

    watched = over(model, FALLING)
    watched.set_model_sampler_post_cfg_function(look, disable_cfg1_optimization=False)
    cores(watched, 10.0)
    assert seen == pytest.approx([10, 8, 6, 4, 2])
    seen.clear()
    ours(watched, text_scale=10.0)
    assert seen == pytest.approx([10, 8, 6, 4, 2])


def test_a_run_in_two_parts_counts_in_the_whole_one(model: Any) -> None:
    seen: list[float] = []

    def look(call: dict[str, Any]) -> Tensor:
        seen.append(call["cond_scale"])
        return call["denoised"]

    watched = over(model, FALLING, schedule=tuple(LEVELS.tolist()))
    watched.set_model_sampler_post_cfg_function(look)
    ours(watched, text_scale=10.0, levels=LEVELS[2:])
    assert seen == pytest.approx([6, 4, 2])


def test_an_accelerator_is_waited_for_as_often_however_many_steps_a_run_has() -> None:
    class Waits(TorchDispatchMode):
        """Counts the numbers that are read one by one."""

        count = 0

        def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
            Waits.count += function is torch.ops.aten._local_scalar_dense.default
            return function(*args, **(kwargs or {}))

    class Predict:
        """The guider's own prediction."""

        class_obj = SimpleNamespace(cfg=10.0)

        def __call__(self, x: Tensor, *rest: Any) -> Tensor:
            return x

    for steps in (4, 40):
        levels, x = torch.linspace(1, 0, steps + 1), torch.zeros(1, 4, 1, 2, 2)
        Waits.count = 0
        with Waits():
            GuidanceOverTime(FALLING)(Predict(), x, levels[1:2], {"transformer_options": {"sample_sigmas": levels}})
        assert Waits.count <= 1


def test_where_nothing_is_left_the_negative_row_is_not_computed(model: Any) -> None:
    late = read_curve("0:1, 0.5:1, 0.5:0, 1:0")
    for sampled in (lambda: ours(over(model, late)), lambda: cores(over(model, late))):
        with spy() as calls:
            sampled()
        assert sum(len(call["x"]) for call in calls) == 2 * 2 + 3
    assert torch.equal(cores(over(model, NONE)), cores(model, 1.0))
    assert torch.equal(cores(over(model, FALLING), 1.0), cores(model, 1.0))


def test_image_guidance_has_its_own_curve(tiny_models: Path) -> None:
    for version in ("1.3", "2.0"):
        model = load(tiny_models, version)
        small = ours(model, True, image_scale=2.0)
        assert torch.equal(ours(over(model, image=FIFTH), True, image_scale=10.0), small)
        assert relative(ours(over(model, FALLING), True, image_scale=2.0), small) > 1e-3
        alike = ours(over(model, FIFTH), True, text_scale=10.0, image_scale=None)
        assert torch.equal(alike, ours(model, True, text_scale=2.0, image_scale=None)), "an image scale of the text's"
        patched = patch_guidance(model, Guidance(text_scale=1.0, image_scale=2.0))
        tenfold = patch_guidance(model, Guidance(text_scale=1.0, image_scale=10.0))
        assert torch.equal(cores(over(tenfold, image=FIFTH), given=True), cores(patched, given=True))


def test_cores_dual_guider_has_both(tiny_models: Path) -> None:
    model = load(tiny_models, "1.3")
    latent = empty("1.3", 3)

    def dual(on: Any, text: float, image: float) -> Tensor:
        guider = core_guiders.Guider_DualCFG(on)
        guider.set_conds(*(conditioning(7, seed=number) for number in (1, 2, 3)))
        guider.set_cfg(text, image)
        return run(guider, latent)

    assert torch.equal(dual(over(model, FIFTH, FIFTH), 10.0, 20.0), dual(model, 2.0, 4.0))


def test_two_nodes_multiply_and_oscillation_fading_and_caches_go_along(model: Any) -> None:
    half = read_curve("0:0.5, 1:0.5")
    assert torch.equal(ours(over(over(model, half), half), text_scale=8.0), ours(model, text_scale=2.0))
    settings = {"oscillate_text": True, "force_steps": 1, "flaw_fix": True, "fade_image": True, "image_scale": 3.0}
    assert torch.equal(
        ours(over(model, FIFTH), **{**settings, "text_scale": 10.0}), ours(model, **{**settings, "text_scale": 2.0})
    )
    cached = CachedRun(StepTable("11010"), GuidanceReuse(2, 0.5))
    assert torch.equal(
        cores(with_step_cache(over(model, FIFTH), cached), 10.0), cores(with_step_cache(model, cached), 2.0)
    )


def test_masks_and_batches_go_along(tiny_models: Path) -> None:
    model, latent = load(tiny_models, "1.2"), empty("1.2", 3)
    mask = torch.ones(1, 1, *latent.shape[2:])
    mask[:, :, 0], mask[:, :, 1] = 0.0, 0.5
    start = randn(*latent.shape, seed=8)
    assert relative(sample(over(model, FALLING), start, mask=mask), sample(model, start, mask=mask)) > 1e-4
    pair = torch.cat([latent, latent])
    alone = sample(over(model, FALLING), latent)
    assert relative(sample(over(model, FALLING), pair)[:1], alone) < 1e-3


def test_the_sampler_says_which_way_the_scale_goes(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    def said(sampled: Any) -> str:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="opensora"):
            sampled()
        return " ".join(record.getMessage() for record in caplog.records)

    assert "Text guidance 7.5 falls to 1.5 over the run." in said(lambda: cores(over(model, FALLING), 7.5))
    rising = said(lambda: ours(over(model, read_curve("0:0.2, 1:1"), FALLING), text_scale=7.5))
    assert "Text guidance 7.5 rises from 1.5 to 7.5 over the run." in rising
    assert "This run has no image guidance of its own, so the curve of it is not used." in rising
    ended = said(lambda: cores(over(model, read_curve("0:1, 1:0"))))
    assert "falls to 1 over the run; in 1 of 5 steps it would be below 1 and is 1, no guidance." in ended
    assert "Text guidance 1 is no more than none (1)" in said(lambda: cores(over(model, FALLING), 1.0))


def test_several_nodes_say_one_course_of_a_scale(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    def said(on: Any) -> list[str]:
        caplog.clear()
        with caplog.at_level(logging.INFO, logger="opensora"):
            cores(on, 7.0)
        return [message for message in caplog.messages if "guidance" in message]

    half, none = read_curve("0:0.5"), "; in 1 of 5 steps it would be below 1 and is 1, no guidance."
    assert said(over(over(model, FALLING), half)) == [f"Text guidance 7 falls from 3.5 to 1 over the run{none}"]
    assert said(over(over(model, half), FALLING)) == [f"Text guidance 7 falls from 3.5 to 1 over the run{none}"]
    assert said(over(over(model, FALLING), image=half)) == [
        "Text guidance 7 falls to 1.4 over the run.",
        "This run has no image guidance of its own, so the curve of it is not used.",
    ]
    # The run is the first half of what the second curve goes over, so only its first half counts.
    longer = tuple(LEVELS.tolist())[:-1] + (0.2 - 0.05, 0.1, 0.05, 0.02, 0.01, 0.0)
    apart = over(over(model, half), read_curve("0:1, 1:0"), schedule=longer)
    assert said(apart) == ["Text guidance 7 falls from 3.5 to 1.94444 over the run."]
    stuck = over(over(model, FALLING), half, schedule=(0.5, 0.5, 0.5))
    assert said(stuck) == [
        "A curve of guidance whose noise levels do not fall from step to step is not used.",
        "Text guidance 7 falls to 1.4 over the run.",
    ]


def test_a_prediction_asks_each_curve_for_one_factor(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []
    own = FactorCurve.at

    def at(curve: FactorCurve, share: float) -> float:
        asked.append(share)
        return own(curve, share)

    monkeypatch.setattr(FactorCurve, "at", at)
    changing = GuidanceOverTime(FALLING, FALLING)
    levels = torch.linspace(1, 0, 61)
    options = {"transformer_options": {"sample_sigmas": levels}}
    seen: list[float] = []

    class Executor(SimpleNamespace):
        def __call__(self, *args: Any) -> None:
            seen.append(self.class_obj.cfg)

    executor = Executor(class_obj=SimpleNamespace(cfg=7.0))
    for level in levels[:-1]:
        changing(executor, torch.zeros(1), level.reshape(1), options)
    assert len(asked) == 2 * 60
    assert seen == [lowered(7.0, factor) for factor in FALLING.over(60)]


@pytest.mark.parametrize(
    ("points", "said"),
    [
        ("0:nan", "The factor of point 1 is 'nan', but must be a number between 0 and 1."),
        ("0:1, 1:1.5", "The factor of point 2 is 1.5, but must lie between 0 and 1; the nearest good value is 1."),
        ("0:inf", "The factor of point 1 is 'inf', but must be a number between 0 and 1."),
        (",".join(["0:1"] * 1001), "The curve has 1001 points, at most 1000 are allowed."),
        ("0:1:2", "Point 1 of the curve is '0:1:2'; a point is a share and a factor"),
    ],
)
def test_points_that_are_none_are_refused_by_both_inputs(points: str, said: str) -> None:
    said = said[0].lower() + said[1:]
    for name in ("text", "image"):
        refused = str(GuidanceCurve.validate_inputs(**{f"{name}_points": points}))
        assert refused.startswith(f"The input {name}_points is no curve: {said}")


def test_odd_points_that_are_a_curve_are_one() -> None:
    for points in (
        "",
        " ",
        ",;\n,",
        "1:0.2, 0:1",
        ", ".join(f"{place / 999}:{place % 7 / 7}" for place in range(1000)),
    ):
        assert GuidanceCurve.validate_inputs(text_points=points, image_points=points) is True
    assert read_curve("1:0.2, 0:1") == FALLING


def test_the_guider_has_its_own_scale_again_whatever_happens(model: Any) -> None:
    latent = empty(model.model.release.id, 3)
    guider = comfy.samplers.CFGGuider(over(model, FIFTH))
    guider.set_conds(*prompts(latent, False))
    guider.set_cfg(5.0)

    def fail(call: dict[str, Any]) -> Tensor:
        raise InterruptedError

    guider.model_options["sampler_post_cfg_function"] = [fail]
    with pytest.raises(InterruptedError):
        run(guider, latent)
    assert guider.cfg == 5.0


def test_curves_decide_what_a_model_is(model: Any) -> None:
    made = [over(model, curve) for curve in (FALLING, FALLING, NONE)]
    found = [model_identity({"model": each}) for each in made]
    assert [each.unknown for each in found] == [()] * 3
    assert found[0].digest == found[1].digest != found[2].digest


def test_text_and_drawn_curve_are_not_both_used(model: Any, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, logger="opensora"):
        GuidanceCurve.execute(model, text_points="0:1, 1:0.2", text_curve=[[0, 1], [1, 0.5]])
    assert any("text_curve is set aside" in record.getMessage() for record in caplog.records)
    with pytest.raises(ValueError, match=r"The input text_points is no curve: the factor of point 2 is 3"):
        GuidanceCurve.execute(model, text_points="0:1, 1:3")
    with pytest.raises(ValueError, match=r"The input text_curve is no curve: the factor of point 1 is 2"):
        GuidanceCurve.execute(model, text_curve={"points": [[0, 2]]})
    assert GuidanceCurve.validate_inputs(text_points="0:x") != True  # noqa: E712


def test_a_curve_of_cores_editor_is_followed_as_it_is_drawn() -> None:
    curve_types = pytest.importorskip("comfy_api.latest._input.curve_types", reason="this ComfyUI has no curves")
    points = [(0.0, 1.0), (0.2, 0.9), (0.35, 0.3), (0.8, 0.35), (1.0, 0.0)]
    for kind in (curve_types.LinearCurve, curve_types.MonotoneCubicCurve):
        drawn = kind(points)
        got = [curve_of(drawn).at(place / 97) for place in range(98)]
        assert got == pytest.approx([drawn.interp(place / 97) for place in range(98)], abs=1e-12)


def test_a_wire_of_cores_curve_editor_is_a_curve(model: Any) -> None:
    editor = pytest.importorskip("comfy_extras.nodes_curve", reason="this ComfyUI has no curves").CurveEditor
    curve = editor.execute({"points": [[0, 0.2], [1, 0.2]], "interpolation": "linear"}).args[0]
    assert torch.equal(cores(GuidanceCurve.execute(model, text_curve=curve).args[0], 10.0), cores(model, 2.0))
    assert editor.define_schema().node_id == "CurveEditor"


def test_workers_may_be_told_of_a_model_with_curves(tiny_models: Path) -> None:
    from opensora.opensora_models.native.model.parallel_settings import numbers_of, settings_of

    model = load(tiny_models, "1.3")
    patched = over(model, FALLING, FALLING)
    assert settings_of(patched) == settings_of(model) and numbers_of(patched) == numbers_of(model)


def test_without_cores_curves_the_node_has_the_same_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the older versions: sockets without an editor, and the numbers."""
    from comfy_api.latest import io

    names = [entry.id for entry in GuidanceCurve.define_schema().inputs]
    monkeypatch.delattr(io, "Curve", raising=False)
    entries = GuidanceCurve.define_schema().inputs
    assert [entry.id for entry in entries] == names
    assert [entry.get_io_type() for entry in entries if entry.id.endswith("_curve")] == ["CURVE", "CURVE"]


def test_context_windows_go_along(tiny_models: Path) -> None:
    import comfy.context_windows as windows

    model, latent = load(tiny_models, "1.2"), empty("1.2", 15)
    schedule = windows.get_matching_context_schedule("standard_static")
    fuse = windows.get_matching_fuse_method("flat")
    windowed = model.clone()
    windowed.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=schedule, fuse_method=fuse, context_length=5, context_overlap=0, context_stride=1,
        closed_loop=False, dim=2, freenoise=False,
    )  # fmt: skip
    assert torch.equal(sample(over(windowed, FIFTH), latent, cfg=10.0), sample(windowed, latent, cfg=2.0))


def test_every_segment_of_a_long_video_has_the_curve(tiny_models: Path) -> None:
    from opensora.opensora_models.native.sampling.clips import ClipRun
    from opensora.opensora_models.native.sampling.long_video import Inputs, LongVideo, sample_long_video
    from opensora.opensora_models.native.sampling.reference_inputs import ReferenceChain

    model, latent = load(tiny_models, "1.2"), {"samples": empty("1.2", 15)}

    def made(on: Any, cfg: float) -> Tensor:
        inputs = Inputs(on, conditioning(), conditioning(5, seed=2), latent, ReferenceChain())
        with torch.inference_mode():
            out: Tensor = sample_long_video(inputs, LongVideo(2, 5, ClipRun(2, 3, cfg), resume=False))[0]["samples"]
        return out

    assert torch.equal(made(over(model, FIFTH), 10.0), made(model, 2.0))
