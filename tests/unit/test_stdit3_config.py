"""Configs read off key shapes, and the key lists of the full-size networks."""

from __future__ import annotations

import json
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.opensora_models.stdit3.config import XL_V12, XL_V13, STDiT3Config, config_from_shapes
from opensora.opensora_models.stdit3.keys import from_checkpoint_key, to_checkpoint_key
from opensora.opensora_models.stdit3.network import STDiT3

DATA = Path(__file__).parent / "data"
FULL_SIZE = {
    "v1.2-xl2": XL_V12,
    "v1.3-xl2": XL_V13,
    "v1.2-3b2": replace(XL_V12, hidden_size=1872, num_heads=26),
    "v1.3-3b2": replace(XL_V13, hidden_size=1872, num_heads=26),
}


def manifest(name: str) -> dict[str, Any]:
    """Keys and shapes of a saved checkpoint of the original."""
    return json.loads((DATA / f"stdit3-{name}.json").read_text(encoding="utf-8"))


def checkpoint_shapes(config: STDiT3Config) -> dict[str, tuple[int, ...]]:
    """What our network would save, without giving it memory."""
    network = STDiT3(config, device="meta")
    return {to_checkpoint_key(key): tuple(value.shape) for key, value in network.state_dict().items()}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_keys_and_shapes_are_those_of_the_release(name: str) -> None:
    recorded = manifest(name)
    want = {key: tuple(shape) for key, shape in recorded["tensors"].items()}
    assert checkpoint_shapes(FULL_SIZE[name]) == want
    assert sum(prod(shape) for shape in want.values()) == recorded["num_elements_in_checkpoint"]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_config_is_read_off_released_shapes(name: str) -> None:
    shapes = {key: tuple(shape) for key, shape in manifest(name)["tensors"].items()}
    assert config_from_shapes(shapes) == FULL_SIZE[name]


@pytest.mark.parametrize(
    "config",
    [
        STDiT3Config(depth=2, hidden_size=48, num_heads=4, caption_channels=32, model_max_length=20),
        STDiT3Config(depth=1, hidden_size=48, num_heads=2, caption_channels=32, qk_norm=False, pred_sigma=False),
        STDiT3Config(version="1.3", depth=3, hidden_size=48, num_heads=2, in_channels=16, mlp_ratio=2.0),
        replace(XL_V13, depth=1, hidden_size=144, num_heads=2),
        replace(XL_V13, depth=1, hidden_size=144, num_heads=2, kernel_size=None, use_spatial_rope=False),
    ],
)
def test_config_survives_the_way_through_a_checkpoint(config: STDiT3Config) -> None:
    assert config_from_shapes(checkpoint_shapes(config)) == config


def test_missing_key_is_named() -> None:
    shapes = checkpoint_shapes(replace(XL_V12, depth=1))
    del shapes["y_embedder.y_embedding"]
    with pytest.raises(ValueError, match=r"y_embedder\.y_embedding is missing"):
        config_from_shapes(shapes)


def test_wrong_number_of_dimensions_is_named() -> None:
    shapes = checkpoint_shapes(replace(XL_V12, depth=1)) | {"x_embedder.proj.weight": (1152, 4, 2, 2)}
    with pytest.raises(ValueError, match="x_embedder.proj.weight is of shape"):
        config_from_shapes(shapes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": 7}, "not a multiple of num_heads 7"),
        ({"patch_size": (2, 2, 2)}, "patch_size"),
        ({"kernel_size": (0, 8, -1)}, "kernel_size"),
        ({"use_spatial_rope": True}, "needs a kernel_size"),
        ({"hidden_size": 48, "num_heads": 16}, "odd rotated width 3"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(XL_V12, **changes)


def test_keys_translate_both_ways_and_only_tables_change() -> None:
    keys = list(STDiT3(replace(XL_V12, depth=1), device="meta").state_dict())
    translated = [to_checkpoint_key(key) for key in keys]
    assert [from_checkpoint_key(key) for key in translated] == keys
    changed = {key for key, other in zip(keys, translated, strict=True) if key != other}
    assert changed == {
        f"{block}.scale_shift_table.weight" for block in ("spatial_blocks.0", "temporal_blocks.0", "final_layer")
    }


def test_rotary_frequencies_start_at_their_natural_values() -> None:
    network = STDiT3(replace(XL_V12, depth=1, hidden_size=48, num_heads=4))
    torch.testing.assert_close(network.rope.freqs, 10000 ** -(torch.arange(6) / 6))
