"""A MODEL with a worker in real samplers: as alone, with patches, masks, given frames, caches and interrupts."""

from __future__ import annotations

import asyncio
import gc
import io
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from support.comfyui import comfyui_root, use_comfyui
from support.native import conditioning, empty, load, randn, relative, sample, spy
from support.processes import gone

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

import comfy.model_management  # noqa: E402
import folder_paths  # noqa: E402
from comfy.patcher_extension import WrappersMP  # noqa: E402
from comfy.weight_adapter import LoRAAdapter  # noqa: E402

from opensora.nodes import OpenSoraExtension  # noqa: E402
from opensora.opensora_models.caching.guidance_rows import GuidanceReuse  # noqa: E402
from opensora.opensora_models.caching.tables import StepTable  # noqa: E402
from opensora.opensora_models.checkpoint.settings import Choices  # noqa: E402
from opensora.opensora_models.native.cost import cost_sentences  # noqa: E402
from opensora.opensora_models.native.identity import model_identity  # noqa: E402
from opensora.opensora_models.native.model import mmdit_model, parallel, parallel_settings  # noqa: E402
from opensora.opensora_models.native.model.parallel import in_parallel  # noqa: E402
from opensora.opensora_models.native.model.parallel_settings import loaded, numbers_of, settings_of  # noqa: E402
from opensora.opensora_models.native.model.step_cache import CachedRun, with_step_cache  # noqa: E402
from opensora.opensora_models.native.outputs import OutputFile  # noqa: E402
from opensora.opensora_models.native.sampling.guidance_over_time import (  # noqa: E402
    GuidanceOverTime,
    with_guidance_over_time,
)
from opensora.opensora_models.native.sampling.guiders import patch_guidance  # noqa: E402
from opensora.opensora_models.native.sampling.samplers import patch_shift  # noqa: E402
from opensora.opensora_models.native.vae import decoding  # noqa: E402
from opensora.opensora_models.native.vae import helped as vae_helped  # noqa: E402
from opensora.opensora_models.native.vae.decoding import decode_images, decoded_groups  # noqa: E402
from opensora.opensora_models.native.vae.vae import load_vae  # noqa: E402
from opensora.opensora_models.parallel.memory import Sharing  # noqa: E402
from opensora.opensora_models.parallel.on_ray import LOCAL  # noqa: E402
from opensora.opensora_models.parallel.wire import Wire  # noqa: E402
from opensora.opensora_models.parallel.workers import Workers  # noqa: E402
from opensora.opensora_models.releases.guidance import Guidance  # noqa: E402
from opensora.opensora_models.releases.known import RELEASES  # noqa: E402
from opensora.opensora_models.sampling.factor_curve import read_curve  # noqa: E402
from opensora.opensora_models.storage.temporary import TemporaryFolder  # noqa: E402
from opensora.opensora_models.vae.video_file import GroupedVideo  # noqa: E402

pytestmark = [pytest.mark.comfy, pytest.mark.compat]
TWO = "cpu x 2"
SAME = 2e-5


@pytest.fixture(scope="module")
def one_worker() -> Iterator[Workers]:
    started = parallel.workers_on(["cpu", "cpu"])
    yield started
    started.close()


@pytest.fixture
def workers(one_worker: Workers, monkeypatch: pytest.MonkeyPatch) -> Workers:
    """One worker for nearly all tests, since its start takes seconds."""
    monkeypatch.setattr(parallel, "workers_on", lambda devices: one_worker)
    return one_worker


def shared(model: Any) -> Any:
    return in_parallel(model, TWO)[0]


def helped(workers: Workers, model: Any, *args: Any, **options: Any) -> torch.Tensor:
    """Sampled with the worker, which really was asked."""
    workers.said = ""
    out = sample(shared(model), *args, **options)
    assert workers.said.startswith("2 ranks as ") and len(workers.pids) == 1
    return out


@pytest.mark.parametrize("version", ["1.2", "1.3", "2.0"])
def test_samplers_give_what_they_give_alone(tiny_models: Path, workers: Workers, version: str) -> None:
    model, latent = load(tiny_models, version), empty(version)
    assert relative(helped(workers, model, latent), sample(model, latent)) < SAME
    given = conditioning(opensora_given_latent=randn(*latent.shape, seed=9), opensora_given_frames=[0])
    if version != "1.2":
        assert relative(helped(workers, model, latent, given), sample(model, latent, given)) < SAME


def test_what_acts_around_the_network_needs_no_telling(tiny_models: Path, workers: Workers) -> None:
    """A shift, guidance on the MODEL, a wrapper: only ComfyUI's own process samples."""
    model, latent = load(tiny_models, "1.3"), empty("1.3")
    around = patch_guidance(patch_shift(model, 3.0), Guidance(oscillate_text=True, force_steps=1))
    around.add_wrapper_with_key(
        WrappersMP.DIFFUSION_MODEL, "half", lambda run, x, *args, **more: run(x / 2, *args, **more)
    )
    alone = sample(around, latent)
    assert relative(alone, sample(model, latent)) > 100 * SAME
    assert relative(helped(workers, around, latent), alone) < SAME
    assert relative(helped(workers, model, latent), sample(model, latent)) < SAME


def test_guidance_over_time_comes_along(tiny_models: Path, workers: Workers) -> None:
    model, latent = load(tiny_models, "1.3"), empty("1.3")
    curved = with_guidance_over_time(model, GuidanceOverTime(read_curve("0:1, 1:0.1")))
    alone = sample(curved, latent)
    assert relative(helped(workers, curved, latent), alone) < SAME
    after = with_guidance_over_time(shared(model), GuidanceOverTime(read_curve("0:1, 1:0.1")))
    assert relative(sample(after, latent), alone) < SAME and relative(sample(model, latent), alone) > 100 * SAME


def test_masks_patches_and_caches_come_along(tiny_models: Path, workers: Workers) -> None:
    model, latent = load(tiny_models, "1.2"), randn(*empty("1.2").shape, seed=8)
    mask = torch.ones(1, 1, 5, 8, 10)
    mask[:, :, 0] = 0
    assert relative(helped(workers, model, latent, mask=mask), sample(model, latent, mask=mask)) < SAME
    patched = model.clone()
    key = "diffusion_model.spatial_blocks.1.mlp.fc2.weight"
    weight = patched.model.state_dict()[key]
    assert patched.add_patches({key: ("diff", (randn(*weight.shape, seed=3),))}, 0.5) == [key]
    plain = sample(model, latent)
    changed = sample(patched, latent)
    assert relative(changed, plain) > 100 * SAME and relative(helped(workers, patched, latent), changed) < SAME
    assert relative(helped(workers, model, latent), plain) < SAME
    cached = with_step_cache(model, CachedRun(StepTable("101"), GuidanceReuse(1, 0.3)))
    few = sample(cached, latent)
    assert relative(few, plain) > 10 * SAME and relative(helped(workers, cached, latent), few) < SAME


@pytest.mark.parametrize("sampler", ["euler", "dpm_2"])  # the second asks between the noise levels of the run, too
def test_layers_that_are_kept_apart_come_along(tiny_models: Path, workers: Workers, sampler: str) -> None:
    model, latent = load(tiny_models, "2.0", modulations_apart=True), empty("2.0")
    key = "diffusion_model.double_blocks.0.img_mod.lin.weight"
    patched = model.clone()
    assert patched.add_patches({key: ("diff", (randn(*model.model.state_dict()[key].shape, seed=3),))}, 0.5) == [key]
    alone = sample(patched, latent, sampler=sampler)
    assert relative(alone, sample(model, latent, sampler=sampler)) > 100 * SAME
    assert relative(helped(workers, patched, latent, sampler=sampler), alone) < SAME


def test_an_interrupt_ends_the_run_and_not_the_worker(tiny_models: Path, workers: Workers) -> None:
    model, latent = load(tiny_models, "1.2"), empty("1.2")
    plain, before = helped(workers, model, latent), workers.pids

    def cancel(step: int, *_: Any) -> None:
        raise comfy.model_management.InterruptProcessingException

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(shared(model), latent, callback=cancel)
    assert torch.equal(helped(workers, model, latent), plain) and workers.pids == before


def test_what_workers_cannot_be_told_is_named(tiny_models: Path, workers: Workers) -> None:
    model, latent = load(tiny_models, "1.2"), empty("1.2")
    patched = model.clone()
    patched.set_model_attn1_output_patch(lambda out, options: out)
    with pytest.raises(ValueError, match="Workers cannot be told of patches on this MODEL"):
        sample(shared(patched), latent)
    exchanged = model.clone()
    exchanged.add_object_patch("diffusion_model.final_layer", torch.nn.Identity())
    with pytest.raises(ValueError, match="an exchanged part of this MODEL, 'diffusion_model.final_layer'"):
        in_parallel(exchanged, TWO)
    split = model.clone()
    split.set_additional_models("multigpu", [model.clone()])
    with pytest.raises(ValueError, match="a model beside the network of this MODEL, 'multigpu'"):
        in_parallel(split, TWO)
    compiled = model.clone()
    compiled.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "torch.compile", lambda executor, *args: executor(*args))
    with pytest.raises(ValueError, match="a compiled network of this MODEL"):
        in_parallel(compiled, TWO)
    two_heads = load(tiny_models, "2.0")
    with pytest.raises(ValueError, match="7 devices cannot share this model.* nearest good value is cpu x 6.$"):
        in_parallel(two_heads, "cpu x 7")
    assert in_parallel(two_heads, "cpu x 6")[0] is not two_heads


def test_where_weights_are_streamed_files_and_settings_are_compared(
    tiny_models: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch
) -> None:
    """ComfyUI with a GPU keeps weights as the file has them, which workers do not."""
    for module in (parallel_settings, vae_helped):
        monkeypatch.setattr(module, "streamed", lambda patcher: True)  # in this process alone
    model, latent = load(tiny_models, "1.2"), empty("1.2")
    vae, latents = load_vae(tiny_models / "vae" / "random-vae-v1.2.safetensors"), randn(1, 4, 7, 6, 5)
    patched = model.clone()
    key = "diffusion_model.spatial_blocks.1.mlp.fc2.weight"
    patched.add_patches({key: ("diff", (randn(*patched.model.state_dict()[key].shape, seed=3),))}, 0.5)
    for each in (model, patched):
        assert relative(helped(workers, each, latent), sample(each, latent)) < SAME
    with torch.inference_mode():
        alone = decode_images(vae, latents, None, "256")
        assert torch.equal(decode_images(in_parallel(model, TWO, vae)[1], latents, None, "256"), alone)
    digests = {numbers_of(each) for each in (model, patched, load(tiny_models, "1.3"))}
    assert len(digests) == 3 and numbers_of(load(tiny_models, "1.2")) in digests


@pytest.mark.parametrize("version", ["1.2", "1.3", "2.0"])
def test_a_lora_on_every_layer_comes_along_before_and_while_it_is_loaded(
    tiny_models: Path, workers: Workers, version: str
) -> None:
    """As patches, the model loaded without them and with them; tables, whose layers carry a method, are among them."""
    model, latent = load(tiny_models, version), empty(version)
    patched = model.clone()
    for name, weight in model.model.diffusion_model.named_parameters("diffusion_model"):
        if weight.ndim == 2:
            halves = randn(len(weight), 2, seed=1), 0.02 * randn(2, weight.shape[1], seed=2)
            patched.add_patches({name: LoRAAdapter({name}, (*halves, 2.0, None, None, None))}, 0.7)
    tables = ("scale_shift_table", "modulation.lin", "_mod.lin")
    assert any(table in name for name in patched.patches for table in tables)
    plain = sample(model, latent)
    first = helped(workers, patched, latent)
    assert len(patched.backup) == len(patched.patches) and relative(first, plain) > 100 * SAME
    assert torch.equal(helped(workers, patched, latent), first) and relative(first, sample(patched, latent)) < SAME
    assert relative(helped(workers, model, latent), plain) < SAME


def test_settings_and_patches_arrive_as_they_are(tiny_models: Path) -> None:
    """Through the wire and into another MODEL, whose numbers have the same digest."""
    model = load(tiny_models, "1.3", weight_dtype="bf16", choices=Choices(window=4))
    key = "diffusion_model.temporal_blocks.1.mlp.fc1.weight"
    rows, columns = model.model.state_dict()[key].shape
    low_rank = LoRAAdapter({"a"}, (randn(rows, 2, seed=1), randn(2, columns, seed=2), 1.5, None, None, None))
    model.add_patches({key: low_rank}, 0.7)
    model.add_patches({(key, (0, 1, 4)): ("diff", (randn(4, columns, seed=3),))}, -0.5, 0.9)
    sent = io.BytesIO()
    Wire(io.BytesIO(), sent).send("load", settings=settings_of(model))
    message = Wire(io.BytesIO(sent.getvalue()), io.BytesIO()).receive()
    assert message is not None
    with torch.inference_mode():
        again = loaded(message[1]["settings"])
    assert numbers_of(again) == numbers_of(model) != numbers_of(load(tiny_models, "1.3", weight_dtype="bf16"))
    again.patches[key].pop()
    assert numbers_of(again) != numbers_of(model)


CLIPS = {"vae-v1.2": (2, 4, 7, 6, 5), "vae-v1.3": (1, 16, 9, 6, 5), "vae-v2.0": (1, 16, 3, 34, 6)}


@pytest.mark.parametrize("name", CLIPS)
def test_pieces_of_a_decode_go_round(
    tiny_models: Path, workers: Workers, name: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """To the last bit as alone; the MODEL stays loaded beside the VAE, an interrupt ends nobody."""
    caplog.set_level("INFO")
    vae, model = load_vae(tiny_models / "vae" / f"random-{name}.safetensors"), load(tiny_models, "1.2")
    with_workers, both = in_parallel(model, TWO, vae)
    assert vae.workers is None and both.workers is workers
    latents, plain = randn(*CLIPS[name]), sample(with_workers, empty("1.2"))
    with torch.inference_mode():
        alone = decode_images(vae, latents, None, "256")
        assert torch.equal(decode_images(both, latents, None, "256"), alone)
    assert "2 ranks decoded " in caplog.text and workers.holds("vae") and workers.holds("model")
    pids = workers.pids

    def cancel() -> None:
        raise comfy.model_management.InterruptProcessingException

    with torch.inference_mode():
        with monkeypatch.context() as pressed, pytest.raises(comfy.model_management.InterruptProcessingException):
            pressed.setattr(decoding, "interrupted", cancel)
            decode_images(both, latents, None, "256")
        groups = torch.cat(list(decoded_groups(both, latents, None, both.tile_plan(256, 256))), dim=1)
    assert torch.equal(groups.flatten(0, 1), alone) and workers.pids == pids
    assert torch.equal(sample(with_workers, empty("1.2")), plain)


def test_a_shared_video_is_no_interrupted_call(
    tiny_models: Path,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Behind the last group the decode ends, and workers stay together."""
    caplog.set_level("INFO")
    vae, latents = load_vae(tiny_models / "vae" / "random-vae-v1.2.safetensors"), randn(1, 4, 15, 4, 4)
    both = shared_after_a_run(tiny_models, vae)
    with torch.inference_mode():
        alone = video(vae, latents, tmp_path / "alone", monkeypatch)
        assert video(both, latents, tmp_path / "together", monkeypatch) == alone
        crew = workers._crew
        assert crew is not None and "2 ranks decoded 3 pieces of this clip in turn." in caplog.text
        assert video(both, latents, tmp_path / "again", monkeypatch) == alone and workers._crew is crew


def test_a_shared_video_with_holes_is_decoded_by_workers_that_stay_together(
    tiny_models: Path,
    workers: Workers,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whose call ends with the last group in front of one that is there; the groups in between are not decoded."""
    caplog.set_level("INFO")
    vae, latents = load_vae(tiny_models / "vae" / "random-vae-v1.2.safetensors"), randn(1, 4, 35, 4, 4)
    both = shared_after_a_run(tiny_models, vae)
    with torch.inference_mode():
        alone = video(vae, latents, tmp_path / "alone", monkeypatch)
        with monkeypatch.context() as cut_off, pytest.raises(comfy.model_management.InterruptProcessingException):
            cut_off.setattr(GroupedVideo, "join_new", interrupt)
            video(both, latents, tmp_path / "together", monkeypatch)
        crew = workers._crew
        parts = sorted((tmp_path / "together").rglob("0*.mp4"))
        assert crew is not None and len(parts) == 7
        for number in (1, 2, 4, 5):
            parts[number].unlink() if number % 2 else parts[number].write_bytes(b"damaged")
        caplog.clear()
        assert video(both, latents, tmp_path / "together", monkeypatch) == alone and workers._crew is crew
    assert "3 of 7 groups are there" in caplog.text
    assert [line for line in caplog.messages if " ranks " in line] == 2 * [
        "2 ranks decoded 2 pieces of this clip in turn."
    ]


def shared_after_a_run(tiny_models: Path, vae: Any) -> Any:
    """The VAE with workers that hold the MODEL as well, so that they stay when a decode has ended."""
    model, both = in_parallel(load(tiny_models, "1.2"), TWO, vae)
    sample(model, empty("1.2"))
    return both


def interrupt(*args: Any) -> None:
    raise comfy.model_management.InterruptProcessingException


def video(vae: Any, latents: torch.Tensor, folder: Path, monkeypatch: pytest.MonkeyPatch) -> bytes:
    """The file that Decode to Video makes."""
    folder.mkdir(exist_ok=True)
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folder))
    kept = OutputFile(folder, "clip.latent", "")
    return decoding.decode_to_video(vae, latents, None, 24.0, "mp4 (h264)", 18, "256", kept, None).path.read_bytes()


def test_what_gpus_of_a_cluster_do_is_asked_of_all_that_share() -> None:
    """One rank on the CPU, be it ComfyUI's own, and nothing goes from card to card."""
    assert not workers_that(["cpu", "gpu", "gpu"])._direct and workers_that(["0", "gpu", "gpu"])._direct
    assert [workers_that(devices).count for devices in (["0", "gpu"], ["cpu", "cpu", "cpu"])] == [1, 2]


def workers_that(devices: list[str]) -> Workers:
    """Not started."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(torch.distributed, "is_nccl_available", lambda: True)
        return parallel.workers_on_ray(None, LOCAL, devices)


def test_how_work_was_dealt_is_told_of_this_run(
    tiny_models: Path, workers: Workers, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where the run before it had more rows, and as many rows of another clip; rows that may be left out are told
    as such.
    """
    caplog.set_level("INFO")
    model, told = shared(load(tiny_models, "1.2")), list[str]()
    for cfg, frames in ((1.0, 5), (4.0, 5), (1.0, 5), (1.0, 10)):
        caplog.clear()
        sample(model, empty("1.2", frames), cfg=cfg)
        told += [line for line in caplog.messages if line.startswith("2 ranks as ")]
        assert " of a step with 2 rows at most, as 2 x 1." in caplog.text
    assert told[1].startswith("2 ranks as 2 x 1") and told[0].startswith("2 ranks as 1 x 2")
    assert told[2] == told[0] != told[3] and len(told) == 4


def test_comfyui_clears_what_a_killed_one_left_when_it_starts(
    executor: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    lives, left = TemporaryFolder("ranks"), tmp_path / "opensora-ranks-left"
    left.mkdir()
    (left / "lock").touch()
    asyncio.run(OpenSoraExtension().on_load())
    assert list(tmp_path.iterdir()) == [Path(lives.name)]


def test_unloading_a_model_ends_its_workers(tiny_models: Path) -> None:
    """As ComfyUI unloads it, and as it forgets it; another copy of the network keeps them."""
    model, latent = load(tiny_models, "1.2"), empty("1.2")
    parallel_model = shared(model)
    workers = parallel_model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, parallel.KEY)[0].workers
    out, pids = sample(parallel_model, latent), workers.pids
    sample(model, latent)  # takes its place on the device
    assert workers.pids == pids != []
    assert torch.equal(sample(parallel_model, latent), out) and workers.pids == pids
    comfy.model_management.unload_all_models()
    assert gone(pids) and workers.pids == []
    assert torch.equal(sample(parallel_model, latent), out)
    pids = workers.pids
    del parallel_model, workers
    gc.collect()
    assert len(pids) == 1 and gone(pids)


def test_comfyui_makes_room_for_a_share_and_is_told_so(
    tiny_models: Path, workers: Workers, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """While a run is prepared and while it samples; before and after it, and for others, a MODEL needs what it did."""
    caplog.set_level("INFO")
    model, latent = load(tiny_models, "1.3"), empty("1.3")
    parallel_model, network = shared(model), model.model
    assert not model_identity({"model": parallel_model}).unknown, "what is made by it can be stored"
    rows = [2, *latent.shape[1:]]
    alone, asked = network.memory_required(rows), []
    with network.shared_among(Sharing(2)):
        share = network.memory_required(rows)
    assert share < alone

    def noted(*args: Any, memory_required: float, **kwargs: Any) -> None:
        asked.append(memory_required)
        load_models(*args, memory_required=memory_required, **kwargs)

    load_models = comfy.model_management.load_models_gpu
    monkeypatch.setattr(comfy.model_management, "load_models_gpu", noted)
    during: list[float] = []
    sample(parallel_model, latent, callback=lambda *_: during.append(network.memory_required(rows)))
    assert asked[0] == during[0] == share and "Each of 2 devices holds all weights" in caplog.text
    sample(model, latent)
    assert asked[-1] == alone == network.memory_required(rows) and "sharing" not in vars(network)


def test_size_and_length_tells_what_each_device_needs(tiny_models: Path, workers: Workers) -> None:
    model = load(tiny_models, "1.2")
    shape = [1, 4, 15, 60, 106]
    (plain, *_), (said, *_) = (cost_sentences(RELEASES["1.2"], each, shape, None) for each in (model, shared(model)))
    assert " on each of " not in plain and " on each of 2 devices" in said and "two rows, shared as 2 x 1" in said


def test_rows_of_long_clips_go_together_where_devices_share_them(tiny_models: Path, workers: Workers) -> None:
    """One device computes them one by one; several would then have to share every row."""
    model, latent = load(tiny_models, "2.0"), empty("2.0")
    prompts = conditioning(7, seed=1), conditioning(7, seed=2)  # as long as one another, as encoded ones are
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(mmdit_model, "MOST_TOKENS_TOGETHER", 1)
        with spy() as calls:
            alone = sample(model, latent, *prompts)
        assert {len(call["x"]) for call in calls} == {1}
        assert relative(helped(workers, model, latent, *prompts), alone) < SAME
    assert workers.said.startswith("2 ranks as 2 x 1")
