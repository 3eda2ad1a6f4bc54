"""The step cache in real samplers: exact where nothing is left out, right about rows, masks, windows and runs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from support.comfyui import comfyui_root, use_comfyui
from support.core_nodes import call
from support.native import conditioning, empty, load, randn, relative, sample, spy
from support.shipped import DEMO

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

from opensora.opensora_models.caching.guidance_rows import GuidanceReuse  # noqa: E402
from opensora.opensora_models.caching.stack import StackCache  # noqa: E402
from opensora.opensora_models.caching.table_file import ENDING, CalibratedTables, save_new_tables  # noqa: E402
from opensora.opensora_models.caching.tables import StepTable  # noqa: E402
from opensora.opensora_models.native.folders import shipped_tables  # noqa: E402
from opensora.opensora_models.native.model import step_cache  # noqa: E402
from opensora.opensora_models.native.model.step_cache import CachedRun, has_step_cache, with_step_cache  # noqa: E402
from opensora.opensora_models.native.sampling.cached_steps import CalibrationRun, calibrate  # noqa: E402
from opensora.opensora_models.native.sampling.guiders import patch_guidance, with_given_frames  # noqa: E402
from opensora.opensora_models.releases.guidance import Guidance  # noqa: E402

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = [pytest.mark.comfy, pytest.mark.compat]
VERSIONS = ("1.2", "1.3", "2.0")
STEPS = 6


def cached(model: Any, flags: str, every: int = 1, after: float = 0.3) -> Any:
    """The MODEL with a table of flags."""
    return with_step_cache(model, CachedRun(StepTable(flags), GuidanceReuse(every, after)))


class Blocks:
    """Counts rows that go through the blocks of a MODEL's network."""

    def __init__(self, model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self.rows, kind = 0, type(model.model.diffusion_model)
        original = kind._run_blocks

        def counted(network: Any, tokens: Any, *more: Any) -> Any:
            self.rows += len(tokens[0] if isinstance(tokens, list) else tokens)
            return original(network, tokens, *more)

        monkeypatch.setattr(kind, "_run_blocks", counted)


@pytest.mark.parametrize("version", VERSIONS)
def test_all_computed_and_off_are_bit_equal_and_a_table_computes_what_it_says(
    tiny_models: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, latent = load(tiny_models, version), empty(version)
    plain = sample(model, latent, steps=STEPS)
    assert torch.equal(sample(cached(model, "1" * STEPS), latent, steps=STEPS), plain)
    off = with_step_cache(cached(model, "100000"), None)
    assert not has_step_cache(off) and torch.equal(sample(off, latent, steps=STEPS), plain)
    blocks = Blocks(model, monkeypatch)
    some = sample(cached(model, "110100"), latent, steps=STEPS)
    assert blocks.rows == 3 * 2
    assert not torch.equal(some, plain) and relative(some, plain) < 0.5
    again = sample(cached(model, "110100"), latent, steps=STEPS)
    assert torch.equal(again, some), "every run begins anew"
    assert torch.equal(sample(model, latent, steps=STEPS), plain), "the model itself is as it was"


def test_rows_in_one_batch_and_one_by_one_are_the_same(tiny_models: Path) -> None:
    model, latent = cached(load(tiny_models, "1.2"), "101010"), empty("1.2", batch=2)
    both = sample(model, latent, steps=STEPS)
    model.model.memory_required = lambda *_, **__: 1e18  # ComfyUI then asks row by row
    try:
        assert relative(sample(model, latent, steps=STEPS), both) < 1e-4
    finally:
        del model.model.memory_required


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_kept_is_counted_where_comfyui_makes_room(
    tiny_models: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    load_models, made, asked = comfy.model_management.load_models_gpu, [], []

    def noted(models: Any, memory_required: float = 0, **options: Any) -> Any:
        asked.append((memory_required, options["minimum_memory_required"]))
        return load_models(models, memory_required=memory_required, **options)

    class Kept(StackCache):
        def __init__(self, table: StepTable) -> None:
            super().__init__(table)
            made.append(self)

    monkeypatch.setattr(comfy.model_management, "load_models_gpu", noted)
    monkeypatch.setattr(step_cache, "StackCache", Kept)
    model, latent = load(tiny_models, version), torch.zeros(2, *empty(version).shape[1:-1], 5)
    for each in (model, cached(model, "1" * STEPS), cached(model, "110100")):
        sample(each, latent, steps=STEPS)
    (plain, least), all_computed, (more, more_at_least) = asked
    assert all_computed == (plain, least)
    assert made[0].most_rows == 2 and more - plain == more_at_least - least == made[0].most_bytes > 0
    sample(model, latent, steps=STEPS)
    assert asked[-1] == (plain, least)


@pytest.mark.parametrize("sampler", ("euler", "heun", "dpmpp_2m", "euler_ancestral"))
def test_other_samplers_and_numbers_of_steps(tiny_models: Path, sampler: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model, latent = load(tiny_models, "1.2"), empty("1.2")
    blocks = Blocks(model, monkeypatch)
    assert sample(cached(model, "1010"), latent, steps=8, sampler=sampler).isfinite().all()
    assert blocks.rows == 2 * 2, "each of the two spans is computed once, in two rows"


def test_frames_of_a_mask_are_right(tiny_models: Path) -> None:
    """A frame that becomes noisy in a reused step makes that step a computed one."""
    model, latent = load(tiny_models, "1.2"), empty("1.2")
    mask = torch.ones(1, 1, *latent.shape[2:])
    mask[:, :, 0], mask[:, :, 1] = 0.0, 0.5
    given = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    plain = sample(model, given, steps=STEPS, mask=mask)
    assert torch.equal(sample(cached(model, "1" * STEPS), given, steps=STEPS, mask=mask), plain)
    some = sample(cached(model, "100000"), given, steps=STEPS, mask=mask)
    assert torch.allclose(some[:, :, 0], plain[:, :, 0], atol=1e-5), "kept frames stay"
    assert some.isfinite().all() and not torch.equal(some, plain)


@pytest.mark.parametrize("version", ("1.3", "2.0"))
def test_rows_of_given_frames_are_not_mixed_up(tiny_models: Path, version: str) -> None:
    """Oscillating image guidance asks for two rows in one step and three in the next, by core's formula."""
    latent = empty(version)
    given = torch.randn(latent.shape, generator=torch.Generator().manual_seed(4))
    positive = with_given_frames(conditioning(), given, [0])
    guidance = Guidance(text_scale=1.0, image_scale=3.0, oscillate_text=False, oscillate_image=True, force_steps=2)
    model = patch_guidance(load(tiny_models, version), guidance)
    plain = sample(model, latent, positive, steps=STEPS)
    assert torch.equal(sample(cached(model, "1" * STEPS), latent, positive, steps=STEPS), plain)
    some = sample(cached(model, "101111"), latent, positive, steps=STEPS)
    assert relative(some, plain) < 0.5
    with spy() as calls:
        sample(model, latent, positive, steps=STEPS)
    names = {name for call in calls for name in call["transformer_options"]["uuids"]}
    assert len(names) == 3, "the row without given frames has a name of its own"


def test_unguided_rows_are_left_out_late_in_the_run(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, latent = load(tiny_models, "1.2"), empty("1.2")
    plain = sample(model, latent, steps=STEPS)
    blocks = Blocks(model, monkeypatch)
    some = sample(cached(model, "1", every=2, after=0.3), latent, steps=STEPS)
    assert blocks.rows == 6 + 4  # two steps before, then every second of four
    assert relative(some, plain) < 0.5 and not torch.equal(some, plain)


def test_a_clip_of_a_batch_is_made_as_if_alone(tiny_models: Path) -> None:
    model, noise = cached(load(tiny_models, "1.2"), "101010", every=2), randn(*empty("1.2", batch=2).shape, seed=8)
    both = sample(model, empty("1.2", batch=2), noise=noise, steps=STEPS)
    for clip in (0, 1):
        alone = sample(model, empty("1.2"), noise=noise[clip : clip + 1], steps=STEPS)
        assert relative(both[clip : clip + 1], alone) < 1e-4


def test_windows_are_kept_apart(
    executor: Executor, tiny_models: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Two windows of the same prompts: what one of them added is nothing to the other."""
    executor.validate({"1": {"class_type": "ContextWindowsManual", "inputs": {}}})  # has core's extra nodes read
    latent = empty("1.2", frames=8)
    caplog.set_level("INFO", "opensora")

    def windowed(model: Any) -> Any:
        (patched,) = call("ContextWindowsManual", model=model, context_length=5, context_overlap=2, dim=2)
        return patched

    model = load(tiny_models, "1.2")
    plain = sample(windowed(model), latent, steps=STEPS)
    for flags, every, most in (("101010", 1, 0.5), ("1", 2, 0.5)):
        some = sample(windowed(cached(model, flags, every)), latent, steps=STEPS)
        assert not torch.equal(some, plain) and relative(some, plain) < most
    blocks = Blocks(model, monkeypatch)
    sample(windowed(cached(model, "100000")), latent, steps=STEPS)
    assert blocks.rows == 2 * 2, "each window is computed once, in two rows"
    assert "kept were 4 rows" in caplog.text


def test_a_step_that_easycache_leaves_out_disturbs_nothing(
    executor: Executor, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor.validate({"1": {"class_type": "EasyCache", "inputs": {}}})  # has core's extra nodes read
    model, latent = load(tiny_models, "1.3"), empty("1.3")
    ours = cached(model, "110110")

    def easy(threshold: float) -> Any:
        return call("EasyCache", model=ours, reuse_threshold=threshold, start_percent=0.0, end_percent=1.0)[0]

    alone = sample(ours, latent, steps=STEPS)
    assert torch.equal(sample(easy(0.0), latent, steps=STEPS), alone)
    blocks = Blocks(model, monkeypatch)
    both = sample(easy(3.0), latent, steps=STEPS)
    assert 2 * 2 <= blocks.rows < 4 * 2 and both.isfinite().all()
    assert torch.equal(sample(ours, latent, steps=STEPS), alone)


def test_rows_on_two_devices_at_once_are_the_same(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI's MultiGPU CFG Split: every row in a thread of its own, with a copy of the network."""
    model, latent = load(tiny_models, "1.2"), empty("1.2")
    if not hasattr(model, "deepclone_multigpu"):
        pytest.skip("this ComfyUI has no multi-GPU support")
    want = sample(cached(model, "101010", every=2), latent, steps=STEPS)
    other = model.deepclone_multigpu(new_load_device=torch.device("cpu", 0))  # as the core node makes it
    other.is_multigpu_base_clone = True
    split = cached(model, "101010", every=2)
    split.set_additional_models("multigpu", [other])
    blocks = Blocks(model, monkeypatch)
    with spy() as calls:
        got = sample(split, latent, steps=STEPS)
    assert {each["transformer_options"]["multigpu_thread_device"].index for each in calls} == {None, 0}
    assert relative(got, want) < 1e-4
    assert blocks.rows < STEPS * 2


def test_unguided_rows_follow_frames_that_become_noisy(tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clean frame's rows do not differ; that would stand in for guidance once the frame takes part."""
    model, latent = load(tiny_models, "1.2"), empty("1.2")
    mask = torch.ones(1, 1, *latent.shape[2:])
    mask[:, :, 1] = 0.5
    given = torch.randn(latent.shape, generator=torch.Generator().manual_seed(3))
    blocks = Blocks(model, monkeypatch)
    sample(cached(model, "1", every=STEPS, after=0.1), given, steps=STEPS, mask=mask)
    assert blocks.rows == STEPS + 1 + 2, "two rows in the two first steps, and where the frame begins"


@pytest.mark.parametrize("version", ("1.3", "2.0"))
def test_unguided_rows_of_given_frames_are_each_reused(
    tiny_models: Path, version: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    latent = empty(version)
    positive = with_given_frames(conditioning(), randn(*latent.shape, seed=4), [0])
    guided = Guidance(text_scale=1.0, image_scale=3.0, oscillate_text=False, oscillate_image=False)
    model = patch_guidance(load(tiny_models, version), guided)
    plain, blocks = sample(model, latent, positive, steps=STEPS), Blocks(model, monkeypatch)
    some = sample(cached(model, "1", every=2, after=0.3), latent, positive, steps=STEPS)
    assert blocks.rows == 3 * 4 + 2, "three rows in four steps, the prompt's alone in two"
    assert not torch.equal(some, plain) and relative(some, plain) < 0.5


@pytest.mark.parametrize("levels", [[0.1, 0.4, 0.7, 0.9], [1.0, 0.5, 0.5, 0.0]])
def test_a_run_whose_noise_does_not_fall_is_computed_and_told(
    tiny_models: Path, levels: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    model, latent, sigmas = load(tiny_models, "1.2"), empty("1.2"), torch.tensor(levels)
    plain = sample(model, latent, sigmas=sigmas)
    assert torch.equal(sample(cached(model, "100", every=2), latent, sigmas=sigmas), plain)
    assert "do not fall from step to step" in caplog.text


def test_what_is_kept_is_gone_after_a_run_that_was_stopped(tiny_models: Path) -> None:
    model, latent, seen = cached(load(tiny_models, "1.2"), "100000"), empty("1.2"), []

    def stop(*arguments: Any) -> None:
        seen.append(arguments)
        raise InterruptedError

    with pytest.raises(InterruptedError):
        sample(model, latent, steps=STEPS, callback=stop)
    fresh = sample(model, latent, steps=STEPS)
    assert seen and torch.equal(fresh, sample(cached(load(tiny_models, "1.2"), "100000"), latent, steps=STEPS))


@pytest.mark.parametrize("version", VERSIONS)
def test_a_model_is_calibrated_and_its_tables_do_as_they_say(tiny_models: Path, version: str) -> None:
    model, latent = load(tiny_models, version), {"samples": empty(version)}
    with torch.inference_mode():
        found = calibrate(model, [conditioning(), conditioning(4, seed=9)], conditioning(5, seed=2), latent,
                          CalibrationRun(5, 1, 4.0, longest=2))  # fmt: skip
    assert found.release == version and len(found.levels) == 5
    assert found.tables[found.rows] == "11111" and found.errors[found.rows] == 0.0
    errors = [found.errors[count] for count in sorted(found.errors)]
    assert errors == sorted(errors, reverse=True) and errors[0] > 0


def test_the_node_takes_tables_of_every_kind(
    tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import folder_paths

    from opensora.nodes.step_cache import StepCache

    monkeypatch.setattr(folder_paths, "output_directory", str(tmp_path))
    tables = CalibratedTables("1.3", (1.0, 0.75, 0.5, 0.25), {4: "1010", 6: "1110", 8: "1111"})
    save_new_tables(lambda: tmp_path / f"a{ENDING}", tables)
    save_new_tables(lambda: tmp_path / f"wide{ENDING}", replace(tables, made={"network_width": 1152}))
    model = load(tiny_models, "1.3")

    def made(table: str, percent: int = 60, steps: str = "1010", every: int = 1, of: Any = model) -> Any:
        (patched,) = StepCache.execute(of, table, percent, steps, every, 0.35).result
        return patched

    assert not has_step_cache(made("off")) and not has_step_cache(made("from steps", steps="111"))
    assert has_step_cache(made("from steps")) and has_step_cache(made("off", every=2))
    assert not has_step_cache(made("off", of=made("from steps"))), "off takes an earlier cache away"
    assert has_step_cache(made(f"a{ENDING} [output]")) and not has_step_cache(made(f"a{ENDING} [output]", 100))
    assert "numbers of another release" not in caplog.text
    assert has_step_cache(made("1.2 published, 18 of 30")) and "numbers of another release" in caplog.text
    with pytest.raises(ValueError, match="were measured on 1.3, but the model is Open-Sora 1.2"):
        made(f"a{ENDING} [output]", of=load(tiny_models, "1.2"))
    assert has_step_cache(made(f"wide{ENDING} [output]")) and "on a network 1152 wide" in caplog.text
    with pytest.raises(ValueError, match="begins with 1"):
        made("from steps", steps="0101")
    with pytest.raises(ValueError, match="is not among the saved step tables"):
        made("b.steptable.json [output]")


def test_tables_that_come_with_the_pack_fit_the_models_they_are_named_after(caplog: pytest.LogCaptureFixture) -> None:
    from opensora.nodes.step_cache import StepCache
    from opensora.opensora_models.native.model.loading import load_model

    for name, path in shipped_tables().items():
        model = load_model(DEMO / "diffusion_models" / f"{path.name.removesuffix(ENDING)}.safetensors")
        (patched,) = StepCache.execute(model, name, 60, "1", 1, 0.35).result
        assert has_step_cache(patched)
    assert "measure its own" not in caplog.text


def test_a_cache_that_replaces_another_says_so(tiny_models: Path, caplog: pytest.LogCaptureFixture) -> None:
    once = cached(load(tiny_models, "1.2"), "100000")
    assert "step cache already" not in caplog.text
    assert not has_step_cache(with_step_cache(once, None)) and "step cache already" not in caplog.text
    cached(once, "110000")
    assert "The MODEL has a step cache already, which this one replaces." in caplog.text


@pytest.mark.parametrize("name", ["EasyCacheNode", "LazyCacheNode"])
def test_a_cache_of_core_beside_it_is_told(name: str, tiny_models: Path, caplog: pytest.LogCaptureFixture) -> None:
    from comfy_extras import nodes_easycache

    core, model = getattr(nodes_easycache, name), load(tiny_models, "1.2")
    cores = core.execute(model, 0.2, 0.15, 0.95, False).result[0]
    sample(cores, empty("1.2"), steps=STEPS)
    assert "neither knows" not in caplog.text
    sample(cached(cores, "110100"), empty("1.2"), steps=STEPS)
    assert "EasyCache or LazyCache leaves steps of this run out as well" in caplog.text
