"""Every form a T5 file comes in gives the same CLIP; every other file is refused by its name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

pytestmark = pytest.mark.comfy

T5_FILE = "random-t5.safetensors"
IDS = [9, 1712, 3, 32000, 1]


@pytest.fixture(scope="module")
def weights(tiny_models: Path) -> dict[str, Tensor]:
    return load_file(tiny_models / "text_encoders" / T5_FILE)


def encode(path: Path, **settings: Any) -> Tensor:
    from opensora.opensora_models.native.text.clip import load_text_encoder

    clip = load_text_encoder(path, **settings)
    return clip.encode_from_tokens({"t5xxl": [[(token, 1.0) for token in IDS]]})


@pytest.fixture(scope="module")
def reference(comfy: Path, tiny_models: Path) -> Tensor:
    return encode(tiny_models / "text_encoders" / T5_FILE)


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def test_shards_with_index_and_a_decoder(
    comfy: Path, weights: dict[str, Tensor], reference: Tensor, tmp_path: Path
) -> None:
    extra = {"decoder.final_layer_norm.weight": torch.ones(64), "lm_head.weight": torch.ones(4, 64)}
    names = sorted(weights | extra)
    parts = [names[:9], names[9:]]
    files = [f"model-{number:05d}-of-00002.safetensors" for number in (1, 2)]
    for file, part in zip(files, parts, strict=True):
        save_file({name: (weights | extra)[name] for name in part}, tmp_path / file)
    index = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}), encoding="utf-8")
    assert torch.equal(encode(tmp_path), reference)
    assert torch.equal(encode(tmp_path / files[1]), reference)


def test_embedding_under_its_other_name(
    comfy: Path, weights: dict[str, Tensor], reference: Tensor, tmp_path: Path
) -> None:
    renamed = {name.replace("shared.", "encoder.embed_tokens."): weight for name, weight in weights.items()}
    save_file(renamed, tmp_path / "t5.safetensors")
    assert torch.equal(encode(tmp_path / "t5.safetensors"), reference)


def test_pytorch_file(comfy: Path, weights: dict[str, Tensor], reference: Tensor, tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "pytorch_model.bin")
    assert torch.equal(encode(tmp_path / "pytorch_model.bin"), reference)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float8_e4m3fn])
def test_plain_precisions(
    comfy: Path, weights: dict[str, Tensor], reference: Tensor, tmp_path: Path, dtype: torch.dtype
) -> None:
    save_file({name: weight.to(dtype) for name, weight in weights.items()}, tmp_path / "t5.safetensors")
    got = encode(tmp_path / "t5.safetensors")
    assert got.dtype == torch.float32 and got.shape == reference.shape
    assert relative(got, reference) < {torch.float32: 1e-5, torch.bfloat16: 0.05, torch.float8_e4m3fn: 0.5}[dtype]


def test_scaled_fp8(comfy: Path, weights: dict[str, Tensor], reference: Tensor, tmp_path: Path) -> None:
    scaled: dict[str, Tensor] = {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}
    for name, weight in weights.items():
        if name.endswith(
            (".q.weight", ".k.weight", ".v.weight", ".o.weight", "wi_0.weight", "wi_1.weight", "wo.weight")
        ):
            scale = weight.float().abs().max() / 448
            scaled[name] = (weight.float() / scale).to(torch.float8_e4m3fn)
            scaled[name.removesuffix("weight") + "scale_weight"] = scale.reshape(1)
        else:
            scaled[name] = weight
    save_file(scaled, tmp_path / "t5_scaled.safetensors")
    assert relative(encode(tmp_path / "t5_scaled.safetensors"), reference) < 0.3
    with pytest.raises(ValueError, match="'t5_scaled.safetensors' is quantised and cannot be turned into fp32"):
        encode(tmp_path / "t5_scaled.safetensors", precision="fp32")


def test_on_the_cpu_by_choice(comfy: Path, tiny_models: Path, reference: Tensor) -> None:
    assert torch.equal(encode(tiny_models / "text_encoders" / T5_FILE, device="cpu"), reference)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({"text_model.encoder.layers.0.mlp.fc1.weight": (4, 4)}, "looks like a CLIP text encoder"),
        ({"model.layers.0.self_attn.q_proj.weight": (4, 4), "model.embed_tokens.weight": (4, 4)}, "a language model"),
        ({"encoder.block.0.layer.0.SelfAttention.k.weight": (4, 4)}, "is an older T5 without gated layers"),
        ({"x": (1,)}, "a file this pack does not know"),
    ],
)
def test_other_files_are_refused(comfy: Path, tmp_path: Path, names: dict[str, tuple[int, ...]], message: str) -> None:
    save_file({name: torch.zeros(shape) for name, shape in names.items()}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=f"'other.safetensors' .*{message}.*expected the encoder of T5 v1.1 XXL"):
        encode(tmp_path / "other.safetensors")


def test_umt5_is_refused(comfy: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    bias = "encoder.block.{}.layer.0.SelfAttention.relative_attention_bias.weight"
    save_file(weights | {bias.format(1): weights[bias.format(0)].clone()}, tmp_path / "umt5.safetensors")
    with pytest.raises(ValueError, match="looks like a umT5 text encoder.*t5xxl_fp16.safetensors"):
        encode(tmp_path / "umt5.safetensors")


def test_an_incomplete_file_is_refused(comfy: Path, weights: dict[str, Tensor], tmp_path: Path) -> None:
    name = "encoder.block.1.layer.1.DenseReluDense.wo.weight"
    save_file({key: weight for key, weight in weights.items() if key != name}, tmp_path / "t5.safetensors")
    with pytest.raises(ValueError, match=f"lacks 1 weights of a T5 encoder, for example '{name}'"):
        encode(tmp_path / "t5.safetensors")


def clip_l_file(tiny_models: Path) -> Path:
    return tiny_models / "text_encoders" / "random-clip-l.safetensors"
