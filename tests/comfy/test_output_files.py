"""Every node that writes files: placeholders, refusals before anything runs, and a report of what was written."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import pytest

from support.comfyui import Executor, NodeError, comfyui_root, use_comfyui

if comfyui_root() is None:
    pytest.skip("no ComfyUI: `python dev.py test` makes one, or set COMFYUI_PATH", allow_module_level=True)
use_comfyui()

from opensora.nodes import NODES  # noqa: E402 (needs ComfyUI in the process)
from opensora.nodes.files import PREFIX, PrefixInput, SavingNode  # noqa: E402

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

Prompt = dict[str, dict[str, Any]]


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


VAE = {
    "vae": node("OSoraVAELoader", vae_name="random-vae-v1.2.safetensors", spatial_vae="none", dtype="fp32",
                temporal_overlap=True),
    "clip": node("EmptyImage", width=48, height=32, batch_size=1, color=0x30A0E0),
    "encoded": node("VAEEncode", pixels=["clip", 0], vae=["vae", 0]),
}  # fmt: skip
DECODE = {"samples": ["encoded", 0], "vae": ["vae", 0], "tile_size": "auto", "num_frames": 0}

ENCODED = {
    "encoder": node("OSoraTextEncoderLoader", text_encoder_name="random-t5.safetensors", precision="default",
                    device="default"),
    "text": node("OSoraTextEncode", clip=["encoder", 0], prompt="a cat", negative_prompt="a dog", clean=True),
}  # fmt: skip

# For each node with a prefix: what stands before it, its other inputs, the ending of its file.
SAVING: dict[str, tuple[Prompt, dict[str, Any], str]] = {
    "OSoraSaveConditioning": (
        ENCODED,
        {"positive": ["text", 0], "negative": ["text", 1], "note": ""},
        ".conditioning.safetensors",
    ),
    "OSoraCalibrateStepCache": (
        ENCODED | {
            "model": node("OSoraModelLoader", model_name="random-v1.2.safetensors", weight_dtype="default",
                          rounding="accurate", window=0, spatial_rotary="automatic"),
            "empty": node("OSoraEmptyLatent", version="1.2", height=64, width=64, frames=1, batch_size=1),
        },
        {"model": ["model", 0], "positive": ["text", 0], "negative": ["text", 1], "latent": ["empty", 0], "steps": 2,
         "cfg": 1.0, "seed": 0},
        ".steptable.json",
    ),
    "OSoraDecode": (VAE, DECODE | {"save_latent": True}, ".latent"),
    "OSoraDecodeToVideo": (VAE, DECODE | {"frame_rate": 12.0, "format": "mp4 (h264)", "quality": 30}, ".mp4"),
}  # fmt: skip


def with_prefix(kind: str) -> tuple[Prompt, str]:
    """A prompt whose node ``save`` is of that kind; its prefix is still to be set."""
    before, inputs, ending = SAVING[kind]
    return before | {"save": node(kind, **inputs)}, ending


def has_prefix(kind: Any) -> bool:
    """Whether a node writes files under a name that people choose."""
    return any("prefix" in entry.id for entry in kind.define_schema().inputs)


each_saving_node = pytest.mark.parametrize("kind", SAVING)


def test_every_node_with_a_prefix_is_known_here() -> None:
    found = [kind for kind in NODES if has_prefix(kind)]
    assert {kind.define_schema().node_id for kind in found} == set(SAVING)
    for kind in found:
        schema = kind.define_schema()
        assert issubclass(kind, SavingNode) and set(SavingNode.HIDDEN) <= set(schema.hidden)
        assert [entry.id for entry in schema.inputs if isinstance(entry, PrefixInput)] == [PREFIX]


@each_saving_node
def test_placeholders_are_filled_in_and_the_report_is_true(
    kind: str, executor: Executor, caplog: pytest.LogCaptureFixture
) -> None:
    import folder_paths

    prompt, ending = with_prefix(kind)
    prompt["save"]["inputs"][PREFIX] = (
        f"told/{kind}_%date:yyyy-MM-dd%_%Box.value%_%Mine.value%_%Empty Latent Image.width%_%Nobody.x%"
    )
    prompt["picture"] = node("EmptyLatentImage", width=48, height=32, batch_size=1)
    prompt["7"] = node("PrimitiveString", value="se/ed: 7?") | {"_meta": {"title": "Box"}}
    page = {"nodes": [{"id": 7, "properties": {"Node name for S&R": "Mine"}}]}
    root = Path(folder_paths.get_output_directory())
    caplog.set_level("WARNING", "opensora")
    (told,) = executor.run(prompt, ("save", 0), page=page)
    name = f"{kind}_{datetime.date.today().isoformat()}_se_ed_ 7__se_ed_ 7__48_%Nobody.x%_00001_{ending}"
    assert (root / "told" / name).is_file() and "'%Nobody.x%' in a file name is no date" in caplog.text
    if isinstance(told, str):
        assert told in (str(root / "told" / name), f"told/{name} [output]")


@each_saving_node
def test_a_bad_prefix_marks_its_widget_before_anything_runs(kind: str, executor: Executor) -> None:
    prompt, _ = with_prefix(kind)
    collect = node("OSoraTestCollector", value=["save", 0], name="x")
    for prefix in ("../x", "/x", "", "a\0b", "x" * 300):
        prompt["save"]["inputs"][PREFIX] = prefix
        errors = executor.errors(prompt | {"collect": collect})
        assert [error["extra_info"]["input_name"] for error in errors["save"]] == [PREFIX]
        assert "the nearest good value is" in errors["save"][0]["details"]


@each_saving_node
def test_a_bad_prefix_by_wire_is_refused_before_the_work(kind: str, executor: Executor) -> None:
    prompt, _ = with_prefix(kind)
    prompt["save"]["inputs"][PREFIX] = ["prefix", 0]
    prompt["prefix"] = node("PrimitiveString", value="../x")
    executor.reset()
    with pytest.raises(NodeError, match="leaves ComfyUI's output folder.*nearest good value is 'x'") as caught:
        executor.run(prompt, ("save", 0))
    assert caught.value.node_id == "save" and not executor.executed() & {"text", "encoded", "clip"}


@pytest.mark.parametrize("kind", ["OSoraDecode", "OSoraDecodeToVideo"])
def test_another_kind_of_vae_is_refused_before_the_work(kind: str, executor: Executor) -> None:
    prompt, _ = with_prefix(kind)
    prompt["pixels"] = node("VAELoader", vae_name="pixel_space")
    prompt["save"]["inputs"] |= {PREFIX: "x", "vae": ["pixels", 0]}
    executor.reset()
    with pytest.raises(NodeError, match="streams Open-Sora VAEs"):
        executor.run(prompt, ("save", 0))
    assert not executor.executed() & {"encoded", "clip"}


def test_a_file_or_a_link_in_the_way_is_one_sentence(comfy: Path, tmp_path: Path) -> None:
    import folder_paths

    from opensora.opensora_models.native.outputs import next_output

    root = Path(folder_paths.get_output_directory())
    (root / "a file").touch()
    (root / "away").symlink_to(tmp_path)
    with pytest.raises(ValueError, match=r"a file' cannot be used \(Not a directory\).*choose another"):
        next_output("a file/x", ".latent", None)
    with pytest.raises(ValueError, match="'away' is a link that leads out of"):
        next_output("away/x", ".latent", None)


def test_a_name_that_is_taken_is_counted_on(comfy: Path) -> None:
    import folder_paths

    from opensora.opensora_models.native.outputs import next_output

    root = Path(folder_paths.get_output_directory())
    first = next_output("counted/", ".latent", None)
    assert first.path == root / "counted_00001_.latent" and first.listed == "counted_00001_.latent [output]"
    first.path.touch()
    (root / "counted_00002_.latent").symlink_to(root / "nowhere")
    assert next_output("counted", ".latent", None).name == "counted_00003_.latent"
