"""What core's nodes and switches expect of a MODEL and its network: attributes, layouts, places for patches."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from support.core_nodes import call, inputs_of, node_class
from support.native import CHANNELS, empty, load, model_file, relative, sample

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = [pytest.mark.comfy, pytest.mark.compat]

VERSIONS = ("1.2", "1.3", "2.0")


@pytest.fixture(scope="module", params=VERSIONS)
def version(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(comfy: Path, tiny_models: Path, version: str) -> Any:
    return load(tiny_models, version)


@contextmanager
def switched(name: str) -> Iterator[None]:
    """ComfyUI as if it had been started with ``--name``."""
    from comfy.cli_args import args

    before = getattr(args, name)
    setattr(args, name, True)
    try:
        yield
    finally:
        setattr(args, name, before)


@pytest.mark.parametrize("weight_dtype", ["default", "bf16", "fp8_e4m3fn"])
def test_force_channels_last_is_left_out_with_a_line(
    model: Any, tiny_models: Path, version: str, weight_dtype: str, caplog: pytest.LogCaptureFixture
) -> None:
    plain = sample(load(tiny_models, version, weight_dtype=weight_dtype), empty(version), steps=1)
    with switched("force_channels_last"), caplog.at_level(logging.INFO, logger="opensora"):
        again = load(tiny_models, version, weight_dtype=weight_dtype)
    assert any("--force-channels-last" in record.getMessage() for record in caplog.records)
    assert torch.equal(sample(again, empty(version), steps=1), plain)


def test_cores_own_loader_takes_the_switch_as_well(comfy: Path, tiny_models: Path, version: str) -> None:
    import comfy.sd

    from opensora.opensora_models.native.core import detection as core_detection

    core_detection.register()
    with switched("force_channels_last"), torch.inference_mode():
        model = comfy.sd.load_diffusion_model(str(model_file(tiny_models, version)))
    assert sample(model, empty(version), steps=1).isfinite().all()


def test_the_network_says_how_many_channels_it_takes(model: Any, version: str) -> None:
    assert model.model.diffusion_model.in_channels == CHANNELS[version] == model.model.latent_format.latent_channels


def model_nodes(executor: Executor) -> dict[str, Any]:
    """Core's nodes that turn a MODEL into a MODEL and need nothing else, no LoRA file that fits either, and their
    inputs."""
    import nodes

    executor.validate({"1": {"class_type": "EasyCache", "inputs": {}}})  # has the extra files read
    found = {}
    for name, kind in nodes.NODE_CLASS_MAPPINGS.items():
        if name.startswith("OSora") or "MODEL" not in getattr(kind, "RETURN_TYPES", ()):
            continue
        required = kind.INPUT_TYPES().get("required", {})
        values = inputs_of(kind) | {key: "MODEL" for key, spec in required.items() if spec[0] == "MODEL"}
        if "MODEL" in values.values() and None not in values.values() and "lora_name" not in values:
            found[name] = values
    return found


def patched_by(name: str, values: dict[str, Any], model: Any) -> Any:
    """The MODEL a node gives for this one with its other inputs at their defaults."""
    given = {key: model if value == "MODEL" else value for key, value in values.items()}
    return call(name, **given)[list(node_class(name).RETURN_TYPES).index("MODEL")]


REFUSED = {"PerturbedAttentionGuidance", "SelfAttentionGuidance"}


def test_every_core_node_for_models_runs_or_is_refused_in_a_sentence(
    executor: Executor, tiny_models: Path, version: str
) -> None:
    model, latent = load(tiny_models, version), empty(version, 2)
    plain = sample(model, latent, steps=2)
    found = model_nodes(executor)
    assert len(found) > 50 and "RenormCFG" in found and "FreeU" in found
    for name, values in found.items():
        if name == "TorchCompileModel":  # takes minutes; see test_model_interop
            continue
        patched = patched_by(name, values, model)
        if name in REFUSED:
            with pytest.raises(ValueError, match="take that node out"):
                sample(patched, latent, steps=2)
        else:
            assert sample(patched, latent, steps=2).isfinite().all(), name
        assert torch.equal(sample(model, latent, steps=2), plain), f"{name} changed the model itself"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("FreeU_V2", "output_block_patch"), ("HyperTile", "attn1_patch"), ("TomePatchModel", "attn1_patch"),
        ("PatchModelAddDownscale", "input_block_patch"), ("SkipLayerGuidanceDiT", "dit double_block 7"),
    ],
)  # fmt: skip
def test_a_patch_without_a_place_is_named_once(
    executor: Executor, model: Any, version: str, name: str, said: str, caplog: pytest.LogCaptureFixture
) -> None:
    values = model_nodes(executor)[name]
    patched = patched_by(name, values | ({"start_percent": 0.0, "end_percent": 1.0} if "Skip" in name else {}), model)
    with caplog.at_level(logging.WARNING, logger="opensora"):
        for _ in range(2):
            sample(patched, empty(version, 2), steps=2)
    lines = [record.getMessage() for record in caplog.records if "without effect" in record.getMessage()]
    assert len(lines) == 1 and said in lines[0]


def test_renorm_cfg_bounds_the_norm(executor: Executor, model: Any, version: str) -> None:
    name = "RenormCFG"
    values, latent, norms = model_nodes(executor)[name], empty(version, 2), {}
    for limit in (0.0, 1.0):
        patched = patched_by(name, values | {"renorm_cfg": limit}, model)
        norms[limit] = sample(patched, latent, steps=1, cfg=9.0).norm()
    plain = sample(model, latent, steps=1, cfg=9.0)
    prompt_only = sample(model, latent, steps=1, cfg=1.0)
    off = sample(patched_by(name, values | {"renorm_cfg": 0.0}, model), latent, steps=1, cfg=9.0)
    assert relative(off, plain) < 1e-4
    assert norms[1.0] < norms[0.0]
    assert norms[1.0] == pytest.approx(float(prompt_only.norm()), rel=0.5)
