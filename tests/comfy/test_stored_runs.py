"""What a stored piece was made from: a run takes it only if nothing that changes its numbers has changed."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from support.native import empty, load, model_file, sample
from support.processes import output, python
from support.runs import CHANGES, VAE_CHANGES, Run, lora, node, option, rooms

pytestmark = [pytest.mark.comfy, pytest.mark.compat]


@pytest.fixture(scope="module")
def native(comfy: Path) -> SimpleNamespace:
    return rooms()


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.inference_mode():
        yield


SAMPLED = (
    *("rounding", "compute dtype", "weights in bf16", "EasyCache", "LazyCache", "lora", "lora strength", "cfg", "seed"),
    *("ModelSamplingSD3", "our guidance", "after cfg", "after cfg, other closure", "wrapper", "prompt", "negative"),
    *("noise mask", "reference", "reference strength", "a row of a large weight", "APG", "drift control"),
)
"""Changes whose results are compared as well."""
NEUTRAL = ("ModelSamplingSD3", "our guidance")
"""Our sampler brings its own schedule and guidance; these change no number in it."""


@pytest.fixture(scope="module")
def base(native: SimpleNamespace, tiny_models: Path) -> Any:
    with torch.inference_mode():
        return Run.make(native, tiny_models).identity()


@pytest.fixture(scope="module")
def seen() -> dict[str, str]:
    """Identities of the changes looked at so far."""
    return {}


@pytest.mark.parametrize("change", CHANGES)
def test_every_change_is_another_run(
    change: str, native: SimpleNamespace, tiny_models: Path, base: Any, seen: dict[str, str]
) -> None:
    first, again = (CHANGES[change](Run.make(native, tiny_models)).identity() for _ in range(2))
    assert first.unknown == () and base.unknown == ()
    assert first == again, "the same change is the same run, whichever objects carry it"
    assert first.digest != base.digest and first.digest not in seen
    seen[first.digest] = change


@pytest.mark.parametrize("change", SAMPLED)
def test_a_changed_run_gives_what_it_gives_without_a_store(
    change: str, native: SimpleNamespace, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    before, _ = Run.make(native, tiny_models).result(resume=True)
    changed, report = CHANGES[change](Run.make(native, tiny_models)).result(resume=True)
    whole, _ = CHANGES[change](Run.make(native, tiny_models)).result(resume=False)
    assert torch.equal(changed, whole) and "earlier run" not in report
    assert change in NEUTRAL or not torch.equal(changed, before)


@pytest.mark.parametrize("version", ["1.2", "1.3"])
def test_an_unchanged_run_is_taken_from_the_store_and_that_is_told(
    version: str, native: SimpleNamespace, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    said: list[str] = []
    monkeypatch.setattr(native.long, "tell", lambda *sentences, level=0: said.extend(sentences if not level else ()))
    first, report = Run.make(native, tiny_models, version).result(resume=True)
    assert said == [] and "earlier run" not in report
    monkeypatch.setattr(native.long, "sample_clip", None)
    second, report = Run.make(native, tiny_models, version).result(resume=True)
    assert torch.equal(first, second)
    (folder,) = (tmp_path / native.long.STORE_FOLDER).iterdir()
    assert len(said) == 1 and said[0] in report
    assert "segments 0 to 1, counted from 0, of 2" in said[0]
    assert folder.name in said[0] and "opensora_segments" in said[0]


def test_segments_of_the_first_version_are_made_anew_and_that_is_told(
    native: SimpleNamespace,
    tiny_models: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    run = Run.make(native, tiny_models)
    whole, _ = run.result(resume=False)
    for name in ("0123456789abcdef", run.identity().digest[:16]):
        old = tmp_path / native.long.STORE_FOLDER / name
        old.mkdir(parents=True)
        (old / "manifest.json").write_text('{"run": "x"}', encoding="utf-8")
        save_file({"latent": torch.zeros_like(whole)}, old / "segment_0000.safetensors")
    with caplog.at_level("INFO", logger="opensora"):
        assert torch.equal(run.result(resume=True)[0], whole)
    said = caplog.text  # one line of each
    assert (
        "Segments of version 0.1 in" in said and "has no record of what it holds; it is removed and made again" in said
    )


MORE = ("SLG", "RescaleCFG", "CFG-Zero*", "our shift", "hook", "bypass lora", "merge", "compile")
STABLE = [name for name in SAMPLED if name != "APG"]  # APG keeps its running average in its function


@pytest.mark.parametrize("change", [*STABLE, *MORE])
def test_sampling_does_not_change_what_a_run_is(change: str, native: SimpleNamespace, tiny_models: Path) -> None:
    plain = Run.make(native, tiny_models)
    before = plain.identity()
    run = CHANGES[change](
        replace(plain) if change in ("rounding", "weights in bf16") else plain.patched(lambda m: m.clone())
    )
    if change != "a row of a large weight":
        assert plain.identity() == before
    own = run.identity()
    sample(run.inputs.model, empty("1.2", 10), run.inputs.positive, run.inputs.negative)
    assert run.identity() == own, "the model is loaded and patched now"
    if change != "a row of a large weight":
        assert plain.identity() == before, "the other clone of the model is loaded and patched"


DECIDES = frozenset({
    *("patches", "object_patches", "weight_wrapper_patches", "model_options", "force_cast_weights", "attachments"),
    *("additional_models", "callbacks", "wrappers", "injections", "hook_patches", "forced_hooks", "is_clip"),
})  # fmt: skip
"""Attributes of core's patchers that decide results."""


def stored_in(module: Any, kinds: str) -> Iterator[tuple[str, str]]:
    """What the source of classes with such a name stores in an attribute: the name it is stored in, the attribute."""
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    for part in ast.walk(ast.Module([each for each in tree.body if getattr(each, "name", "").startswith(kinds)], [])):
        if isinstance(part, ast.Attribute) and isinstance(part.ctx, ast.Store) and isinstance(part.value, ast.Name):
            yield part.value.id, part.attr
        elif isinstance(part, ast.Call) and isinstance(part.func, ast.Name) and part.func.id == "setattr":
            owner, name = part.args[:2]
            if isinstance(owner, ast.Name) and isinstance(name, ast.Constant):
                yield owner.id, str(name.value)


def test_every_attribute_of_cores_patchers_is_a_note_or_decides(native: SimpleNamespace) -> None:
    """Also of the one that streams weights, which no CPU has: a note that is not known makes stored work anew."""
    import comfy.model_patcher

    found = {name for owner, name in stored_in(comfy.model_patcher, "ModelPatcher") if owner in ("self", "n")}
    assert found >= {"patches", "pinned"}
    unknown = found - native.identity.PATCHER_NOTES - DECIDES
    assert not unknown, "add to PATCHER_NOTES what only tells how a model is kept, else to DECIDES above"


def test_every_attribute_core_sets_on_layers_of_a_loaded_model_is_a_note(native: SimpleNamespace) -> None:
    import comfy.model_patcher
    import comfy.pinned_memory

    found = [*stored_in(comfy.model_patcher, "ModelPatcher"), *stored_in(comfy.pinned_memory, "")]
    names = {name for owner, name in found if owner in ("m", "item", "module", "s")}
    assert names >= {"comfy_cast_weights", "seed_key"}
    assert not {name for name in names if not native.identity.MODULE_NOTES.fullmatch(name)}


def test_what_the_patcher_of_streamed_weights_notes_changes_nothing(native: SimpleNamespace, tiny_models: Path) -> None:
    run = Run.make(native, tiny_models)
    before = run.identity()
    run.inputs.model._last_prepare_log_key = (1, 2, 3)
    run.inputs.model._free_methods, run.inputs.model._last_free_log_time = {"vbar": 2}, 17.5
    assert run.identity() == before and before.unknown == ()


LAYOUTS = {"1.2": {}, "1.3": {}, "2.0": {}, "2.0 high compression": {}, "2.0 apart": {"modulations_apart": True}}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_where_patched_weights_are_does_not_count_whatever_they_are_of(
    layout: str, native: SimpleNamespace, tiny_models: Path
) -> None:
    """Every weight, and what refers to the layer that has it: its own methods, methods and lists kept elsewhere."""
    import comfy.model_management

    model = load(tiny_models, layout.removesuffix(" apart"), **LAYOUTS[layout])
    network = model.model.diffusion_model
    network.final_layer.others = [*network.modules()][1:4]
    network.final_layer.forward_of_another = [*network.modules()][-1].forward
    model.model_options["transformer_options"]["of_the_network"] = network.forward
    patched, weights = model.clone(), network.state_dict(prefix="diffusion_model.")
    assert set(patched.add_patches({name: (torch.full_like(each, 0.1),) for name, each in weights.items()})) == set(
        weights
    )

    def digests() -> list[str]:
        found = [native.identity.model_identity({"model": each}) for each in (model, patched)]
        assert not any(each.unknown for each in found)
        return [each.digest for each in found]

    before = digests()
    for loaded in (patched, model, patched.clone()):
        comfy.model_management.load_models_gpu([loaded])
        assert (len(loaded.backup) > 0) == (loaded is not model) and digests() == before
    comfy.model_management.unload_all_models()
    assert digests() == before and before[0] != before[1]


def test_a_context_handler_that_has_run_is_the_same(native: SimpleNamespace, tiny_models: Path) -> None:
    patch = node(
        "nodes_context_windows", "ContextWindowsManualNode", 10, 5, "standard_static", 1, False, "pyramid", 2, False
    )
    run = Run.make(native, tiny_models).patched(patch)
    before = run.identity()
    sample(run.inputs.model, empty("1.2", 15))
    assert run.identity() == before and before.unknown == ()


def test_a_file_with_the_same_small_tensors_is_another_model(
    native: SimpleNamespace, tiny_models: Path, base: Any, tmp_path: Path
) -> None:
    weights = load_file(model_file(tiny_models, "1.2"))
    name = max(weights, key=lambda key: weights[key].numel())
    weights[name] = weights[name].clone()
    weights[name].view(-1)[-7] += 1.0
    (tmp_path / "diffusion_models").mkdir()
    save_file(weights, model_file(tmp_path, "1.2"))
    assert Run.make(native, tmp_path).identity().digest != base.digest


def test_the_same_weights_under_another_name_are_the_same_model(
    native: SimpleNamespace, tiny_models: Path, base: Any, tmp_path: Path
) -> None:
    (tmp_path / "diffusion_models").mkdir()
    save_file(dict(reversed(load_file(model_file(tiny_models, "1.2")).items())), model_file(tmp_path, "1.2"))
    assert Run.make(native, tmp_path).identity() == base


IDENTITY = """
from pathlib import Path
from support.comfyui import use_comfyui
use_comfyui()
import test_stored_runs as here
with torch.inference_mode():
    print(*here.some_identities(here.rooms(), Path(sys.argv[1])))
"""


def some_identities(native: SimpleNamespace, models: Path) -> list[str]:
    run = Run.make(native, models)
    changes = ("our guidance", "EasyCache", "lora", "hook", "ModelSamplingSD3", "SLG")
    found = [run.identity().digest, *(CHANGES[name](run).identity().digest for name in changes)]
    vae = native.vae.load_vae(models / "vae" / "random-vae-v1.2.safetensors")
    return [*found, native.identity.model_identity({"vae": native.identity.vae_parts(vae)}).digest]


def test_another_process_finds_the_same_run(
    native: SimpleNamespace, tiny_models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHASHSEED", "1")  # the order of sets of words differs
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    found = some_identities(native, tiny_models)
    assert output(python(IDENTITY, tiny_models)).split()[-8:] == found and len(set(found)) == 8


def test_what_cannot_be_compared_is_not_stored_and_that_is_told(
    native: SimpleNamespace, tiny_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import folder_paths

    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path))
    said: list[str] = []
    monkeypatch.setattr(native.long, "tell", lambda *sentences, level=0: said.extend(sentences if not level else ()))
    run = Run.make(native, tiny_models).patched(option("stream", (number for number in range(3))))
    results = [run.result(resume=True)[0] for _ in range(2)]
    assert torch.equal(*results)
    assert len(said) == 2 and "are not stored" in said[0] and "[stream]" in said[0] and "generator" in said[0]
    assert list(tmp_path.iterdir()) == []


def test_weights_are_read_once(native: SimpleNamespace, tiny_models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.make(native, tiny_models)
    first = run.identity()
    monkeypatch.setattr(native.identity._Describer, "_read", None)
    assert run.identity() == first
    assert run.patched(lora(0.1, 0.5)).identity() != first


def test_reading_weights_can_be_interrupted(native: SimpleNamespace, tiny_models: Path) -> None:
    def stop() -> None:
        raise InterruptedError

    run = Run.make(native, tiny_models)
    with pytest.raises(InterruptedError):
        native.identity.model_identity({"model": run.inputs.model}, stop)
    assert run.identity().unknown == ()


# ---- decoded parts ----


@pytest.mark.parametrize("change", VAE_CHANGES)
def test_every_change_of_a_vae_is_another_video(change: str, native: SimpleNamespace, tiny_models: Path) -> None:
    def identity(vae: Any) -> str:
        found = native.identity.model_identity({"vae": native.identity.vae_parts(vae)})
        assert found.unknown == ()
        return found.digest

    def loaded() -> Any:
        return native.vae.load_vae(tiny_models / "vae" / "random-vae-v1.3.safetensors")

    plain, changed = loaded(), loaded()
    before = identity(plain)
    assert identity(changed) == before
    native.decoding.decode_images(plain, torch.zeros(1, 16, 5, 4, 4), None, "256")
    assert identity(plain) == before
    VAE_CHANGES[change](changed)
    assert identity(changed) != before
