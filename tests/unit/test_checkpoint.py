"""Checkpoints: every form is read, every file is named for what it is, and bad files are refused in one sentence."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from opensora.opensora_models.checkpoint import kinds as kinds
from opensora.opensora_models.checkpoint.opening import (
    describe,
    expect_kind,
    expect_shapes,
    open_checkpoint,
    strip_prefix,
)

STDIT3 = {
    "x_embedder.proj.weight": (8, 4, 1, 2, 2),
    "rope.freqs": (2,),
    "spatial_blocks.0.scale_shift_table": (6, 8),
    "temporal_blocks.0.scale_shift_table": (6, 8),
    "final_layer.linear.weight": (32, 8),
}
STDIT3_V13 = STDIT3 | {"x_embedder.proj.weight": (8, 16, 1, 2, 2), "x_embedder_cond.proj.weight": (8, 16, 1, 2, 2)}

LOOKS = [
    (STDIT3, kinds.STDIT3_V12),
    (STDIT3_V13, kinds.STDIT3_V13),
    ({"blocks.0.attn_temp.qkv.weight": (3, 1), "pos_embed_temporal": (1, 1)}, kinds.STDIT_V10),
    ({"blocks.0.attn_temp.qkv.weight": (3, 1), "t_block_temp.1.weight": (3, 1)}, kinds.STDIT2_V11),
    (
        {"double_blocks.0.img_attn.q_proj.weight": (1, 1), "cond_in.weight": (1, 68), "img_in.weight": (1, 64)},
        kinds.MMDIT_V20,
    ),
    (
        {"double_blocks.0.img_attn.q_proj.weight": (1, 1), "cond_in.weight": (1, 129), "img_in.weight": (1, 128)},
        kinds.MMDIT_V20_DCAE,
    ),
    (
        {"temporal_vae.encoder.conv_in.conv.weight": (1,), "spatial_vae.module.encoder.conv_in.weight": (1,)},
        kinds.VAE_V12,
    ),
    (
        {
            "encoder.conv_in.conv.weight": (1, 3, 3, 3, 3),
            "encoder.down.0.block.0.norm1.weight": (1,),
            "decoder.up.0.block.0.norm1.weight": (1,),
        },
        kinds.VAE_V13,
    ),
    (
        {
            "encoder.conv_in.conv.weight": (1, 3, 3, 3, 3),
            "decoder.up_blocks.0.upsamplers.0.conv.conv.weight": (1,),
        },
        kinds.HUNYUAN_VAE,
    ),
    ({"encoder.project_in.conv.weight": (1,), "decoder.project_out.op_list.0.weight": (1,)}, kinds.DC_AE),
    ({"encoder.conv_in.weight": (1, 3, 3, 3), "decoder.conv_in.weight": (512, 16, 3, 3)}, kinds.FLUX_VAE),
    ({"encoder.conv_in.weight": (1, 3, 3, 3), "decoder.conv_in.weight": (512, 4, 3, 3)}, kinds.SD_VAE),
    ({"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)}, kinds.T5),
    (
        {
            "encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4),
            "encoder.block.1.layer.0.SelfAttention.relative_attention_bias.weight": (4, 4),
        },
        kinds.UMT5,
    ),
    ({"text_model.encoder.layers.0.mlp.fc1.weight": (4, 4)}, kinds.CLIP),
    ({"double_blocks.0.img_attn.qkv.weight": (1, 1), "single_blocks.0.linear1.weight": (1, 1)}, kinds.FLUX),
    ({"t_block.1.weight": (6, 1), "blocks.0.attn.qkv.weight": (3, 1)}, kinds.PIXART),
    ({"input_blocks.0.0.weight": (1, 1)}, kinds.SD_UNET),
    ({"model.diffusion_model.a": (1,), "first_stage_model.b": (1,)}, kinds.FULL_CHECKPOINT),
    ({"blocks.0.attn.qkv.lora_A.weight": (1, 1)}, kinds.LORA),
    ({}, kinds.EMPTY),
]


def tensors(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Distinct values per tensor, so that a swap would be seen."""
    return {name: torch.full(shape, float(number)) for number, (name, shape) in enumerate(shapes.items())}


@pytest.mark.parametrize(("shapes", "kind"), LOOKS, ids=lambda value: getattr(value, "id", ""))
def test_a_file_is_named_for_what_it_is(shapes: dict[str, tuple[int, ...]], kind: kinds.FileKind) -> None:
    assert describe(shapes) is kind


def test_an_unknown_file_is_described_by_its_names() -> None:
    kind = describe({"surprise.weight": (1,)})
    assert kind.id == kinds.UNKNOWN_ID
    assert "'surprise.weight'" in kind.title


@pytest.mark.parametrize(
    "prefix", ["", "model.", "module.", "model.diffusion_model.", "diffusion_model.", "module.model."]
)
@pytest.mark.parametrize("ending", [".safetensors", ".pt", ".pth", ".bin", ".ckpt"])
def test_every_ending_and_prefix_gives_the_same_tensors(tmp_path: Path, prefix: str, ending: str) -> None:
    expected = tensors(STDIT3)
    path = tmp_path / f"file{ending}"
    prefixed = {prefix + name: value for name, value in expected.items()}
    save_file(prefixed, path) if ending == ".safetensors" else torch.save(prefixed, path)
    opened = open_checkpoint(path)
    assert (opened.kind, opened.prefix) == (kinds.STDIT3_V12, prefix)
    loaded = opened.load()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "dtype", [torch.float64, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.int64, torch.bool]
)
def test_every_dtype_arrives_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    expected = {
        "a": torch.arange(6).reshape(2, 3).to(dtype),
        "scalar": torch.tensor(1).to(dtype),
        "none": torch.zeros(0),
    }
    save_file(expected, tmp_path / "a.safetensors")
    loaded = open_checkpoint(tmp_path / "a.safetensors").load()
    for name, value in expected.items():
        assert loaded[name].dtype == value.dtype
        assert loaded[name].shape == value.shape
        assert torch.equal(loaded[name].view(-1).view(torch.uint8), value.view(-1).view(torch.uint8))


def test_other_parts_of_a_full_checkpoint_are_left_out(tmp_path: Path) -> None:
    names = {f"model.diffusion_model.{name}": value for name, value in tensors(STDIT3).items()}
    save_file(names | {"first_stage_model.decoder.conv_in.weight": torch.zeros(1)}, tmp_path / "all.safetensors")
    opened = open_checkpoint(tmp_path / "all.safetensors")
    assert opened.kind is kinds.STDIT3_V12
    assert opened.load().keys() == STDIT3.keys()


def test_a_full_image_checkpoint_is_called_one(tmp_path: Path) -> None:
    names = {"model.diffusion_model.input_blocks.0.0.weight": (1,), "first_stage_model.decoder.conv_in.weight": (1,)}
    save_file(tensors(names), tmp_path / "sdxl.safetensors")
    assert open_checkpoint(tmp_path / "sdxl.safetensors").kind is kinds.FULL_CHECKPOINT


def test_strip_prefix_leaves_names_that_only_partly_carry_a_wrapper() -> None:
    assert strip_prefix({"model.a": 1, "b": 2}) == ({"model.a": 1, "b": 2}, "")


@pytest.mark.parametrize("key", ["ema", "state_dict", "model"])
def test_weights_inside_a_training_dictionary_are_found(tmp_path: Path, key: str) -> None:
    torch.save({key: tensors(STDIT3), "step": 7}, tmp_path / "ema.pt")
    assert open_checkpoint(tmp_path / "ema.pt").load().keys() == STDIT3.keys()


def write_shards(folder: Path, index: bool = True) -> dict[str, torch.Tensor]:
    """A checkpoint in two files with its index, as Transformers saves it."""
    everything = tensors(STDIT3)
    weight_map = {}
    for number in (1, 2):
        name = f"model-0000{number}-of-00002.safetensors"
        part = {key: value for i, (key, value) in enumerate(everything.items()) if i % 2 == number - 1}
        save_file(part, folder / name)
        weight_map |= dict.fromkeys(part, name)
    if index:
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return everything


@pytest.mark.parametrize("chosen", [".", "model.safetensors.index.json", "model-00002-of-00002.safetensors"])
def test_shards_are_joined_whatever_was_chosen(tmp_path: Path, chosen: str) -> None:
    expected = write_shards(tmp_path)
    loaded = open_checkpoint(tmp_path / chosen).load()
    assert loaded.keys() == expected.keys()
    assert all(torch.equal(loaded[name], value) for name, value in expected.items())


def test_shards_without_index_are_joined_by_their_names(tmp_path: Path) -> None:
    expected = write_shards(tmp_path, index=False)
    assert open_checkpoint(tmp_path).load().keys() == expected.keys()


@pytest.mark.parametrize("chosen", [".", "model-00002-of-00002.safetensors"])
def test_a_missing_shard_is_named(tmp_path: Path, chosen: str) -> None:
    write_shards(tmp_path)
    os.remove(tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"1 are missing, for example 'model-00001-of-00002.safetensors'"):
        open_checkpoint(tmp_path / chosen)


def test_an_index_must_stay_in_its_folder(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../secret.safetensors"}}))
    with pytest.raises(ValueError, match="outside its own folder"):
        open_checkpoint(tmp_path)


def test_settings_come_from_metadata_then_own_json_then_config(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_file(tensors(STDIT3), path)
    assert open_checkpoint(path).settings() == {}
    (tmp_path / "config.json").write_text('{"kernel_size": [4, 4, -1]}')
    assert open_checkpoint(path).settings() == {"kernel_size": [4, 4, -1]}
    (tmp_path / "net.json").write_text('{"kernel_size": [2, 2, -1]}')
    assert open_checkpoint(path).settings() == {"kernel_size": [2, 2, -1]}
    save_file(tensors(STDIT3), path, metadata={"opensora.config": '{"use_spatial_rope": false}'})
    assert open_checkpoint(path).settings() == {"use_spatial_rope": False}


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_damaged_settings_are_an_error(tmp_path: Path, text: str) -> None:
    save_file(tensors(STDIT3), tmp_path / "net.safetensors")
    (tmp_path / "net.json").write_text(text)
    with pytest.raises(ValueError, match="'net.json'"):
        open_checkpoint(tmp_path / "net.safetensors").settings()


class Harmful:
    """Unpickling this would run a command."""

    def __reduce__(self) -> tuple:
        return os.system, ("touch harmed",)


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"a": Harmful()}, "bad.pt")
    with pytest.raises(ValueError, match="'bad.pt' is damaged or holds program objects"):
        open_checkpoint("bad.pt")
    assert not Path("harmed").exists()


def bad_files(folder: Path) -> dict[str, str]:
    """File name -> what its error must say."""
    save_file(tensors(STDIT3), folder / "good.safetensors")
    whole = (folder / "good.safetensors").read_bytes()
    (folder / "empty.safetensors").write_bytes(b"")
    (folder / "empty.pt").write_bytes(b"")
    (folder / "cut.safetensors").write_bytes(whole[:-9])
    (folder / "cut_header.safetensors").write_bytes(whole[:40])
    (folder / "page.safetensors").write_bytes(b"<!DOCTYPE html><html>not found</html>")
    header = json.dumps({"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 4]}}).encode()
    (folder / "lie.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    (folder / "noise.pt").write_bytes(b"noise" * 40)
    torch.save([1, 2], folder / "list.pt")
    torch.save(tensors(STDIT3), folder / "cut.pt")
    (folder / "cut.pt").write_bytes((folder / "cut.pt").read_bytes()[:-300])
    (folder / "words.txt").write_text("hello")
    return {
        "empty.safetensors": "is an empty file",
        "empty.pt": "is an empty file",
        "cut.safetensors": "is truncated: .* bytes of the",
        "cut_header.safetensors": "is truncated",
        "page.safetensors": "is not a safetensors file",
        "lie.safetensors": "damaged entry 'a'",
        "noise.pt": "is damaged|cannot be read",
        "list.pt": "holds a list",
        "cut.pt": "cannot be read",
        "words.txt": "ends in '.txt'",
        "absent.safetensors": "does not exist",
    }


def test_bad_files_are_refused_in_one_sentence_with_their_name(tmp_path: Path) -> None:
    for name, message in bad_files(tmp_path).items():
        with pytest.raises(ValueError, match=message) as error:
            open_checkpoint(tmp_path / name)
        text = str(error.value)
        assert f"'{name}'" in text
        assert "\n" not in text
        assert str(tmp_path) not in text or name.startswith("absent")


def test_a_wrong_kind_names_file_look_and_expectation(tmp_path: Path) -> None:
    save_file(tensors({"encoder.block.0.layer.0.SelfAttention.q.weight": (4, 4)}), tmp_path / "t5xxl.safetensors")
    opened = open_checkpoint(tmp_path / "t5xxl.safetensors")
    with pytest.raises(ValueError) as error:
        expect_kind(opened, [kinds.STDIT3_V12], "an Open-Sora 1.2 diffusion model")
    assert str(error.value) == (
        "'t5xxl.safetensors' looks like a T5 text encoder, which belongs in models/text_encoders; "
        "expected an Open-Sora 1.2 diffusion model."
    )


def test_missing_and_misshapen_tensors_are_named(tmp_path: Path) -> None:
    save_file(tensors(STDIT3), tmp_path / "net.safetensors")
    opened = open_checkpoint(tmp_path / "net.safetensors")
    with pytest.raises(ValueError, match=r"lacks 1 of its 6 tensors, for example 'fps'"):
        expect_shapes(opened, STDIT3 | {"fps": (1,)})
    with pytest.raises(ValueError, match=r"'rope.freqs' is \[2\] where \[3\] was expected"):
        expect_shapes(opened, STDIT3 | {"rope.freqs": (3,)})
    assert expect_shapes(opened, STDIT3 | {"fps": (1,)}, ignore=["fps"]) == []
    assert set(expect_shapes(opened, {"rope.freqs": (2,)})) == STDIT3.keys() - {"rope.freqs"}


def test_conversion_happens_while_reading(tmp_path: Path) -> None:
    save_file(tensors(STDIT3), tmp_path / "net.safetensors")
    loaded = open_checkpoint(tmp_path / "net.safetensors").load(lambda name, tensor: tensor.to(torch.bfloat16))
    assert {tensor.dtype for tensor in loaded.values()} == {torch.bfloat16}
