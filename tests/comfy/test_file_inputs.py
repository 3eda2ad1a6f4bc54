"""Every input that names a file: listed, by wire, replaced, gone, in a crowd, and with a strange name."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from support.comfyui import COLLECTOR, Executor, NodeError, comfyui_root, use_comfyui

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

from comfy_api.internal import first_real_override  # noqa: E402 (needs ComfyUI in the process)
from comfy_api.latest import io  # noqa: E402

from opensora.nodes import NODES  # noqa: E402
from opensora.nodes.files import FileInput  # noqa: E402
from opensora.opensora_models.caching.table_file import ENDING as TABLE_ENDING  # noqa: E402
from opensora.opensora_models.caching.table_file import FORMAT as TABLE_FORMAT  # noqa: E402
from opensora.opensora_models.native import files as native_files  # noqa: E402
from opensora.opensora_models.native.files import CONDITIONING_ENDING, SavedFiles, WeightFiles  # noqa: E402
from opensora.opensora_models.text.conditioning_file import save_conditioning  # noqa: E402
from opensora.opensora_models.vae.latent_file import save_latent  # noqa: E402

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

Prompt = dict[str, dict[str, Any]]
WIRE = "OSoraTestWire"
RUNS_AGAIN = {("OSoraStored", "fingerprint_inputs")}
"""What is kept changes without the graph."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


# For each input that names a file: the tiny file below models/, or the ending of a saved one; and the other inputs.
INPUTS: dict[tuple[str, str], tuple[str, dict[str, Any]]] = {
    ("OSoraModelLoader", "model_name"): (
        "diffusion_models/random-v1.2.safetensors",
        {"weight_dtype": "default", "rounding": "accurate", "window": 0, "spatial_rotary": "automatic"},
    ),
    ("OSoraVAELoader", "vae_name"): (
        "vae/random-vae-v1.2.safetensors",
        {"spatial_vae": "none", "dtype": "fp32", "temporal_overlap": True},
    ),
    ("OSoraVAELoader", "spatial_vae"): (
        "vae/spatial_vae.module.",
        {"vae_name": "temporal.safetensors", "dtype": "fp32", "temporal_overlap": True},
    ),
    ("OSoraTextEncoderLoader", "text_encoder_name"): (
        "text_encoders/random-t5.safetensors",
        {"precision": "default", "device": "default"},
    ),
    ("OSoraTextEncoderLoader", "clip_l_name"): (
        "text_encoders/random-clip-l.safetensors",
        {"text_encoder_name": "random-t5.safetensors", "precision": "default", "device": "default"},
    ),
    ("OSoraLoadConditioning", "file"): (CONDITIONING_ENDING, {}),
    ("OSoraLoadLatent", "file"): (".latent", {}),
    ("OSoraStepCache", "table"): (
        TABLE_ENDING,
        {"model": ["model", 0], "computed_percent": 50, "steps": "1", "guidance_every": 1, "guidance_after": 0.3},
    ),
}
MODEL = node("OSoraModelLoader", **INPUTS["OSoraModelLoader", "model_name"][1], model_name="random-v1.2.safetensors")
TABLES = {"format": TABLE_FORMAT, "release": "1.2", "levels": [1.0, 0.5], "tables": {"2": "10", "4": "11"}}
each_input = pytest.mark.parametrize(("kind", "name"), INPUTS, ids=lambda value: value)


class Wire:
    """A node that hands a file's name on, as nodes that build names do."""

    INPUT_TYPES = classmethod(lambda cls: {"required": {"value": ("*",)}})
    VALIDATE_INPUTS = classmethod(lambda cls, input_types: True)
    RETURN_TYPES = ("COMBO",)
    FUNCTION = "give"

    def give(self, value: Any) -> tuple[Any]:
        return (value,)


@pytest.fixture(autouse=True)
def wire(monkeypatch: pytest.MonkeyPatch) -> None:
    import nodes

    monkeypatch.setitem(nodes.NODE_CLASS_MAPPINGS, WIRE, Wire)


@pytest.fixture
def models(executor: Executor, tiny_models: Path, tmp_path: Path) -> Iterator[Path]:
    """Folders of this test's own beside the shared ones."""
    import folder_paths

    before = {kind: list(folder_paths.folder_names_and_paths[kind][0]) for kind in os.listdir(tiny_models)}
    for kind in before:
        (tmp_path / kind).mkdir()
        folder_paths.add_model_folder_path(kind, str(tmp_path / kind))
    half_a_vae(tiny_models, "temporal_vae.", tmp_path / "vae" / "temporal.safetensors")
    yield tmp_path
    for kind, folders in before.items():
        folder_paths.folder_names_and_paths[kind][0][:] = folders


def half_a_vae(tiny_models: Path, prefix: str, path: Path) -> None:
    """The tensors of the tiny 1.2 VAE under a prefix, without it."""
    with safe_open(tiny_models / "vae" / "random-vae-v1.2.safetensors", "pt") as file:
        tensors = {name[len(prefix) :]: file.get_tensor(name) for name in file.keys() if name.startswith(prefix)}  # noqa: SIM118
        save_file(tensors, path, metadata=file.metadata())


def write(kind: str, path: Path, tiny_models: Path) -> None:
    """A file of a kind of ``INPUTS``."""
    if kind == CONDITIONING_ENDING:
        part = [[torch.zeros(1, 2, 4), {}]]
        save_conditioning(path, {"positive": part, "negative": part})
    elif kind == TABLE_ENDING:
        path.write_text(json.dumps(TABLES), encoding="utf-8")
    elif kind == ".latent":
        save_latent(path, torch.zeros(1, 4, 5, 4, 4), {}, None)
    elif kind.endswith("."):
        half_a_vae(tiny_models, Path(kind).name, path)
    else:
        shutil.copy(tiny_models / kind, path)


def put(kind: str, name: str, models: Path, tiny_models: Path) -> tuple[Path, str]:
    """A file of that kind and the name it is listed under; saved files go into the output folder."""
    import folder_paths

    if kind.startswith("."):
        folder, listed = Path(folder_paths.get_output_directory()), f"{name}{kind} [output]"
        path = folder / f"{name}{kind}"
    else:
        path = models / Path(kind).parent / f"{name}.safetensors"
        listed = path.name
    write(kind, path, tiny_models)
    return path, listed


def loading(kind: str, name: str, value: Any, others: dict[str, Any]) -> Prompt:
    load = node(kind, **others, **{name: value})
    needed = {"model": MODEL} if "model" in others else {}
    return {**needed, "load": load, "end": node(COLLECTOR, value=["load", 0], name="x")}


def menus(kind: Any) -> dict[str, list[Any]]:
    """The choices of every menu of a node, those inside dynamic menus too."""
    waiting, found = list(kind.define_schema().inputs), {}
    while waiting:
        entry = waiting.pop()
        if isinstance(entry, io.Combo.Input):
            found[entry.id] = list(entry.options or [])
        for option in getattr(entry, "options", None) or []:
            waiting += getattr(option, "inputs", None) or []
    return found


def test_every_menu_that_follows_the_disk_names_files(models: Path, tiny_models: Path) -> None:
    before = {kind: menus(kind) for kind in NODES}
    for kind, _ in INPUTS.values():
        put(kind, "a-new-file", models, tiny_models)
    changed = {(kind, name) for kind in NODES for name, options in menus(kind).items() if options != before[kind][name]}
    schemas = [(kind, entry) for kind in NODES for entry in kind.define_schema().inputs]
    assert changed == {(kind, entry.id) for kind, entry in schemas if isinstance(entry, FileInput)}
    assert {(kind.define_schema().node_id, name) for kind, name in changed} == set(INPUTS)


@pytest.mark.parametrize("kind", NODES, ids=lambda kind: kind.define_schema().node_id)
def test_what_comes_by_wire_is_none_before_the_run(kind: Any, executor: Executor) -> None:
    """ComfyUI asks for validation and fingerprint before any wire has brought a value."""
    for name in ("validate_inputs", "fingerprint_inputs"):
        asked = first_real_override(kind, name)
        if asked is not None:
            names = [entry.id for entry in kind.define_schema().inputs]
            parameters = inspect.signature(asked).parameters
            takes_all = any(each.kind is each.VAR_KEYWORD for each in parameters.values())
            answers = [asked(**{each: None for each in names if takes_all or each in parameters}) for _ in range(2)]
            if (kind.define_schema().node_id, name) in RUNS_AGAIN:
                assert answers[0] != answers[1]
            else:
                assert answers[0] == answers[1] and (name == "fingerprint_inputs" or answers[0] is True)


@each_input
def test_a_name_by_wire(kind: str, name: str, executor: Executor, models: Path, tiny_models: Path) -> None:
    """The same graph again executes nothing; a replaced file is noticed, once."""
    source, others = INPUTS[kind, name]
    path, listed = put(source, "wired", models, tiny_models)
    prompt = loading(kind, name, ["name", 0], others) | {"name": node(WIRE, value=listed)}

    def runs_again() -> bool:
        executor.run(prompt)
        return "load" not in executor.cached()

    executor.reset()
    assert [runs_again(), runs_again(), runs_again()] == [True, False, False]
    stamp = time.time() + 100
    os.utime(path, (stamp, stamp))  # overwritten in place, which its folder does not tell
    assert [runs_again(), runs_again()] == [True, False]
    write(source, models / "other", tiny_models)
    os.replace(models / "other", path)
    assert [runs_again(), runs_again()] == [True, False]
    prompt["name"]["inputs"]["value"] = put(source, "wired too", models, tiny_models)[1]
    assert [runs_again(), runs_again()] == [True, False]


@each_input
def test_a_name_from_the_menu(kind: str, name: str, executor: Executor, models: Path, tiny_models: Path) -> None:
    source, others = INPUTS[kind, name]
    path, listed = put(source, "chosen", models, tiny_models)
    executor.reset()
    answers = []
    for changed in (False, False, True, False):
        if changed:
            os.utime(path, (5000, 5000))
        executor.run(loading(kind, name, listed, others))
        answers.append("load" in executor.cached())
    assert answers == [False, True, False, True]


WAYS_OUT = ("..", "../../etc/passwd", "/etc/passwd", "../../etc/passwd [output]")
BAD_NAMES = (*WAYS_OUT, "gone.safetensors", "", "a\0b", "\udcff.latent", "x [output]", "a" * 5000)


@each_input
def test_a_bad_name_by_wire_is_one_sentence(
    kind: str, name: str, executor: Executor, models: Path, tiny_models: Path
) -> None:
    source, others = INPUTS[kind, name]
    _, listed = put(source, "good", models, tiny_models)
    schema = next(each for each in NODES if each.define_schema().node_id == kind).define_schema()
    files = next(entry for entry in schema.inputs if entry.id == name).files
    prompt = loading(kind, name, ["name", 0], others)
    for bad in BAD_NAMES:
        with pytest.raises(NodeError, match="the nearest good value is '.+'") as caught:
            executor.run(prompt | {"name": node(WIRE, value=bad)})
        assert caught.value.node_id == "load" and "\n" not in caught.value.message.strip()
        assert len(caught.value.message) < 500 and "\0" not in caught.value.message
        suggestion = re.search("the nearest good value is '(.+)'", caught.value.message)
        assert suggestion and files.path(suggestion[1]).is_file() and suggestion[1] in files.names()
    with pytest.raises(NodeError, match="needs the name of a file"):
        executor.run(prompt | {"name": node(WIRE, value=3)})
    executor.run(prompt | {"name": node(WIRE, value=listed)})


def test_a_file_that_goes_while_it_is_cached_is_missed(executor: Executor, models: Path, tiny_models: Path) -> None:
    for (kind, name), (source, others) in INPUTS.items():
        path, listed = put(source, "short-lived", models, tiny_models)
        prompt = loading(kind, name, ["name", 0], others) | {"name": node(WIRE, value=listed)}
        executor.run(prompt)
        path.unlink()
        with pytest.raises(NodeError, match="short-lived"):
            executor.run(prompt)


def test_a_saved_name_wired_into_the_load_node(executor: Executor) -> None:
    """New files beside the loaded one are no reason to load again."""
    encoder = {"text_encoder_name": "random-t5.safetensors", "precision": "default", "device": "default"}
    text = {"clip": ["encoder", 0], "prompt": "a cat", "negative_prompt": "a dog", "clean": True}
    prompt = loading("OSoraLoadConditioning", "file", ["name", 0], {}) | {
        "encoder": node("OSoraTextEncoderLoader", **encoder),
        "text": node("OSoraTextEncode", **text),
        "save": node("OSoraSaveConditioning", positive=["text", 0], negative=["text", 1], filename_prefix="wired/x"),
        "name": node(WIRE, value=["save", 0]),
    }
    executor.run(prompt)
    executor.run(prompt)
    assert executor.cached() >= {"encoder", "text", "save", "name", "load"}


def test_everything_that_is_read_counts(models: Path, tiny_models: Path) -> None:
    """Other shards and settings beside a file change what is loaded."""
    kinds = [files for files in vars(native_files).values() if isinstance(files, WeightFiles)]
    assert len(kinds) == 3
    for files in kinds:
        folder = models / files.category
        for shard in ("m-00001-of-00002.safetensors", "m-00002-of-00002.safetensors"):
            (folder / shard).touch()
        before = {files.fingerprint("m-00001-of-00002.safetensors")}
        for other in ("m-00002-of-00002.safetensors", "config.json", "m-00001-of-00002.json"):
            (folder / other).write_text("{}")
            before.add(files.fingerprint("m-00001-of-00002.safetensors"))
        assert len(before) == 4


def test_weights_are_listed_as_comfyui_lists_them(models: Path, tiny_models: Path) -> None:
    import folder_paths

    for files in [files for files in vars(native_files).values() if isinstance(files, WeightFiles)]:
        folder = models / files.category
        (folder / "sub" / ".git").mkdir(parents=True)
        for name in ("a.safetensors", "B.CKPT", "sub/c.pt", "sub/d.txt", "sub/.git/e.pt", "noending"):
            (folder / name).touch()
        (folder / "linked").symlink_to(folder / "sub")
        folder_paths.filename_list_cache.pop(files.category, None)
        assert files.names() == folder_paths.get_filename_list(files.category)
        (folder / "loop").symlink_to(folder)
        (folder / "nowhere.pt").symlink_to(folder / "nothing")
        listed = files.names()
        assert (
            os.path.join("sub", "c.pt") in listed
            and "nowhere.pt" not in listed
            and not any(name.startswith("loop") for name in listed)
        )
        assert all(files.path(name).is_file() for name in listed)
        shutil.rmtree(folder / "sub")  # ComfyUI's list raises now
        assert "a.safetensors" in files.names()


def test_saved_files_newest_first(executor: Executor, models: Path, tiny_models: Path) -> None:
    import folder_paths

    for files in [files for files in vars(native_files).values() if isinstance(files, SavedFiles)]:
        given = Path(folder_paths.get_input_directory())
        for age, name in enumerate(("new", "b old", "a old")):
            path, _ = put(files.ending, f"in order/{name}", models, tiny_models)
            os.utime(path, (1e9 - age, 1e9 - age))
        (given / f"given{files.ending}").touch()
        (given / f"dangling{files.ending}").symlink_to(given / "nothing")
        (given / f"secret{files.ending}").symlink_to(tiny_models / "vae" / "random-vae-v1.2.safetensors")
        (given / f"folder{files.ending}").mkdir()
        names = files.names()
        order = [name for name in names if name.startswith("in order/")]
        assert order == [f"in order/{name}{files.ending} [output]" for name in ("new", "b old", "a old")]
        assert names[-1].startswith("given") and not [name for name in names if "dangling" in name or "secret" in name]
        assert all(files.path(name).is_file() for name in names)
        for name in ("dangling", "secret", "folder"):
            with pytest.raises(ValueError, match="is not among the saved"):
                files.path(f"{name}{files.ending} [input]")


@each_input
def test_names_that_are_not_utf8_load(
    kind: str, name: str, executor: Executor, models: Path, tiny_models: Path
) -> None:
    source, others = INPUTS[kind, name]
    import nodes

    path, listed = put(source, "plain", models, tiny_models)
    strange = os.fsdecode(b"caf\xe9")
    try:
        path.rename(path.with_name(path.name.replace("plain", strange)))
    except OSError:
        pytest.skip("this file system stores UTF-8 names only")
    listed = listed.replace("plain", strange)
    info = nodes.NODE_CLASS_MAPPINGS[kind].GET_NODE_INFO_V1()
    given = json.loads(json.dumps(info))["input"]
    (_, menu) = (given["required"] | given.get("optional", {}))[name]
    assert listed in menu["options"]
    executor.run(loading(kind, name, listed, others))


@pytest.mark.parametrize("ending", [".png", CONDITIONING_ENDING])
def test_twenty_thousand_files_cost_nothing_once_listed(
    ending: str, executor: Executor, models: Path, tiny_models: Path
) -> None:
    import folder_paths

    folder = Path(folder_paths.get_output_directory()) / "crowd"
    folder.mkdir()
    for number in range(20_000):
        (folder / f"{number}{ending}").touch()
    chosen = [(kind, name, *INPUTS[kind, name]) for kind, name in INPUTS if INPUTS[kind, name][0].startswith(".")]
    prompt: Prompt = {}
    for number, (kind, name, source, others) in enumerate(chosen):
        _, listed = put(source, "picked", models, tiny_models)
        entry = loading(kind, name, listed, others)
        entry["end"]["inputs"]["value"] = [f"load{number}", 0]
        prompt |= {f"{key}{number}": value for key, value in entry.items()}
    try:
        executor.run(prompt)
        time.sleep(0.1)
        executor.run(prompt)
        spent = time.process_time()
        executor.run(prompt)
        assert time.process_time() - spent < 0.5  # of which ComfyUI's own part is most; 1 to 3 s without listings kept
    finally:
        shutil.rmtree(folder)
