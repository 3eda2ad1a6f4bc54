"""Nodes never write into what they are given: ComfyUI keeps the outputs of nodes and hands them out again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from support.core_nodes import call, inputs_of, node_class
from support.native import conditioning, empty, load, randn
from support.sources import source, source_nodes

if TYPE_CHECKING:
    from support.comfyui import Executor

pytestmark = pytest.mark.comfy

QUICK = {"steps": 2, "segments": 2, "resume": False, "version": "1.2", "prompt": "a red circle"}
"""Inputs that are set where a node has them; all others keep their defaults."""
OTHERWISE = {("OSoraStepCache", "steps")}
"""Inputs that mean something else by such a name: a table."""
FILES = {"OSoraModelLoader", "OSoraTextEncoderLoader", "OSoraVAELoader", "OSoraLoadConditioning", "OSoraLoadLatent"}
"""Nodes that are given names only."""


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor of a LATENT, CONDITIONING, chain of references and what they hold."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from tensors_in(item)
    elif hasattr(value, "__dataclass_fields__"):
        yield from tensors_in([getattr(value, name) for name in value.__dataclass_fields__])


def shape_of(value: Any) -> Any:
    """Keys and lengths, which must stay as well."""
    if isinstance(value, dict):
        return {key: shape_of(item) for key, item in value.items()}
    return [shape_of(item) for item in value] if isinstance(value, (list, tuple)) else type(value).__name__


@pytest.fixture(scope="module")
def stock(executor: Executor, tiny_models: Path) -> dict[str, Any]:
    """One value of every type that is wired."""
    from opensora.opensora_models.native.text.clip import load_text_encoder
    from opensora.opensora_models.native.vae.vae import load_vae

    with torch.inference_mode():
        values: dict[str, Any] = {
            "MODEL": load(tiny_models, "1.2"),
            "CLIP": load_text_encoder(tiny_models / "text_encoders" / "random-t5.safetensors"),
            "VAE": load_vae(tiny_models / "vae" / "random-vae-v1.2.safetensors"),
            "CONDITIONING": conditioning(7),
            "IMAGE": torch.rand(17, 64, 80, 3, generator=torch.Generator().manual_seed(0)),
            "SIGMAS": torch.linspace(1, 0, 3),
            "LATENT": {
                "samples": randn(*empty("1.2", 10).shape), "noise_mask": torch.ones(1, 1, 10, 8, 10),
                "batch_index": [0],
            },
        }  # fmt: skip
    chain = {"clip_latent": values["LATENT"], "vae": values["VAE"], "image": values["IMAGE"][:1]}
    return values | {"OSORA_REFERENCES": call("OSoraReference", **chain, placement="first frame")[0]}


def run(executor: Executor, name: str, settings: dict[str, Any], wired: dict[str, Any]) -> None:
    """One node behind sources, and a preview of what it gives."""
    with source_nodes() as values:
        values.update(wired)
        graph = {key: source(key) for key in wired}
        links = {key: [key, 0] for key in wired}
        graph["node"] = {"class_type": name, "inputs": settings | links}
        executor.run(graph, ("node", 0))


def node_names(executor: Executor) -> list[str]:
    import nodes

    return [name for name in nodes.NODE_CLASS_MAPPINGS if name.startswith("OSora") and "Test" not in name]


def test_no_node_writes_into_its_inputs(executor: Executor, stock: dict[str, Any]) -> None:
    ran = set()
    for name in node_names(executor):
        kind = node_class(name)
        inputs = kind.INPUT_TYPES()
        specs = {**inputs.get("required", {}), **inputs.get("optional", {})}
        optional = {key: spec[1]["default"] for key, spec in inputs.get("optional", {}).items()
                    if len(spec) > 1 and "default" in spec[1]}  # fmt: skip
        wired = {key: stock[spec[0]] for key, spec in specs.items() if str(spec[0]) in stock}
        if name == "OSoraReference":
            del wired["latent"], wired["second_image"]
        if not wired:
            continue
        quick = {key: value for key, value in QUICK.items() if key in specs and (name, key) not in OTHERWISE}
        values = list(stock.values())
        before, keys = [tensor.clone() for tensor in tensors_in(values)], shape_of(values)
        run(executor, name, {**inputs_of(kind), **optional, **quick}, wired)
        changed = [
            one.shape for one, other in zip(tensors_in(values), before, strict=True) if not torch.equal(one, other)
        ]
        assert not changed, f"{name} changed inputs of shape {changed}"
        assert shape_of(values) == keys, f"{name} changed the keys of its inputs"
        ran.add(name)
    assert ran >= set(node_names(executor)) - FILES - {
        "OSoraSize", "OSoraEmptyLatent", "OSoraPromptBuilder", "OSoraPromptSegments", "OSoraPromptRequest",
        "OSoraFlowSampler", "OSoraStored",
    }  # fmt: skip
