"""Configs of MMDiT read off key shapes and settings, and the key lists of the full-size networks."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import Any

import pytest

from opensora.opensora_models.checkpoint.settings import Choices
from opensora.opensora_models.mmdit.config import (
    RELEASED,
    RELEASED_HIGH_COMPRESSION,
    MMDiTConfig,
    config_from_shapes,
    default_axes,
)
from opensora.opensora_models.mmdit.keys import from_checkpoint_key, to_checkpoint_key
from opensora.opensora_models.mmdit.network import MMDiT
from opensora.opensora_models.mmdit.settings import complete
from support.random_weights import mmdit_shapes

DATA = Path(__file__).parent / "data"
FULL_SIZE = {"mmdit-v2": RELEASED, "mmdit-v2-dcae": RELEASED_HIGH_COMPRESSION}
TINY = MMDiTConfig(
    in_channels=16,
    vec_in_dim=12,
    context_in_dim=20,
    hidden_size=48,
    num_heads=2,
    depth=1,
    depth_single_blocks=2,
    axes_dim=(4, 10, 10),
)
FLUX = replace(TINY, fused_qkv=True, rotation="interleaved", cond_embed=False, guidance_embed=True)


def manifest(name: str) -> dict[str, Any]:
    """Keys and shapes of a saved checkpoint of the original."""
    return json.loads((DATA / f"{name}.json").read_text(encoding="utf-8"))


def checkpoint_shapes(config: MMDiTConfig) -> dict[str, tuple[int, ...]]:
    """What our network would save, without giving it memory."""
    network = MMDiT(config, device="meta")
    return {to_checkpoint_key(key): tuple(value.shape) for key, value in network.state_dict().items()}


@pytest.mark.parametrize("name", FULL_SIZE)
def test_full_size_keys_and_shapes_are_those_of_the_release(name: str) -> None:
    recorded = manifest(name)
    want = {key: tuple(shape) for key, shape in recorded["tensors"].items()}
    assert checkpoint_shapes(FULL_SIZE[name]) == want
    assert sum(prod(shape) for shape in want.values()) == recorded["parameter_count"]


@pytest.mark.parametrize("name", FULL_SIZE)
def test_config_is_read_off_released_shapes(name: str) -> None:
    shapes = {key: tuple(shape) for key, shape in manifest(name)["tensors"].items()}
    assert config_from_shapes(shapes) == FULL_SIZE[name]


@pytest.mark.parametrize(
    "config",
    [
        TINY,
        FLUX,
        replace(TINY, fused_qkv=True, rotation="interleaved", mlp_ratio=2.0),
        replace(TINY, qkv_bias=False),
        replace(FLUX, qkv_bias=False, guidance_embed=False),
        replace(TINY, patch_size=1, in_channels=10, guidance_embed=True),
        replace(TINY, patch_size=4),
        replace(TINY, depth=12, depth_single_blocks=11),
        replace(TINY, depth=0),
        replace(FLUX, depth=0, mlp_ratio=3.0),
        replace(TINY, depth_single_blocks=0),
        replace(TINY, hidden_size=128, num_heads=2, axes_dim=(8, 28, 28)),
    ],
)
def test_config_survives_the_way_through_a_checkpoint(config: MMDiTConfig) -> None:
    shapes = checkpoint_shapes(config)
    assert config_from_shapes(shapes) == config
    assert config_from_shapes({from_checkpoint_key(key): shape for key, shape in shapes.items()}) == config


@pytest.mark.parametrize(("head", "axes"), [(128, (16, 56, 56)), (24, (4, 10, 10)), (64, (8, 28, 28)), (2, (2, 0, 0))])
def test_axes_of_a_head_are_even_and_fill_it(head: int, axes: tuple[int, int, int]) -> None:
    assert default_axes(head) == axes


def test_every_even_head_has_axes() -> None:
    for head in range(2, 300, 2):
        axes = default_axes(head)
        assert sum(axes) == head and all(width % 2 == 0 and width >= 0 for width in axes)


@pytest.mark.parametrize(
    "key",
    ["img_in.weight", "txt_in.weight", "vector_in.in_layer.weight", "double_blocks.0.img_attn.norm.query_norm.scale"],
)
def test_missing_key_is_named(key: str) -> None:
    shapes = checkpoint_shapes(TINY)
    del shapes[key]
    with pytest.raises(ValueError, match=f"{key} is missing"):
        config_from_shapes(shapes)


def test_a_reference_input_that_fits_no_patch_is_refused() -> None:
    shapes = checkpoint_shapes(TINY) | {"cond_in.weight": (48, 19)}
    with pytest.raises(ValueError, match="3 columns more"):
        config_from_shapes(shapes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_heads": 7}, "not a multiple of num_heads 7"),
        ({"axes_dim": (16, 56)}, "three even widths"),
        ({"axes_dim": (15, 57, 56)}, "three even widths"),
        ({"axes_dim": (16, 56, 58)}, r"head size 128; a good value is \(16, 56, 56\)"),
        ({"patch_size": 3}, "patches of 3x3"),
        ({"patch_size": 0}, "patches of 0x0"),
        ({"rotation": "twisted"}, "use half-split or interleaved"),
    ],
)
def test_impossible_settings_are_refused(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(RELEASED, **changes)


def test_keys_translate_both_ways_and_only_norms_change() -> None:
    keys = list(MMDiT(TINY, device="meta").state_dict())
    translated = [to_checkpoint_key(key) for key in keys]
    assert [from_checkpoint_key(key) for key in translated] == keys
    changed = {other for key, other in zip(keys, translated, strict=True) if key != other}
    assert changed == {key for key in translated if key.endswith(("query_norm.scale", "key_norm.scale"))}
    assert len(changed) == 2 * (2 * TINY.depth + TINY.depth_single_blocks)


def test_settings_beside_the_file_say_what_weights_cannot() -> None:
    settings = {"axes_dim": [8, 8, 8], "theta": 500, "use_liger_rope": False, "hidden_size": 48, "patch_size": 2}
    told = complete(TINY, settings)
    assert told == replace(TINY, axes_dim=(8, 8, 8), theta=500, rotation="interleaved")
    assert complete(TINY, settings, Choices(rotation="half-split")).rotation == "half-split"
    assert complete(FLUX, {"patch_size": 1}).patch_size == 1
    assert complete(TINY, {"patch_size": 1}) == TINY  # its reference input shows the patch


def test_settings_of_another_model_are_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "opensora"):
        assert complete(TINY, {"depth": 19, "use_liger_rope": False}) == TINY
    assert "depth 19 instead of 1" in caplog.text


@pytest.mark.parametrize(("settings", "words"), [({"theta": "x"}, "theta is 'x'"), ({"axes_dim": [4, 10, 9]}, "even")])
def test_impossible_values_of_settings_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        complete(TINY, settings)


@pytest.mark.parametrize(("name", "release"), [("mmdit-v2", "2.0"), ("mmdit-v2-dcae", "2.0 high compression")])
def test_the_tiny_files_have_released_names(name: str, release: str) -> None:
    """So what tests and benchmarks load is laid out as people's files are."""
    recorded = {key: tuple(shape) for key, shape in manifest(name)["tensors"].items()}
    assert mmdit_shapes(release, hidden_size=3072, num_heads=24, double=19, single=38) == recorded
