"""Lets ComfyUI's LoRA loaders read the names that trainers other than ComfyUI's own give to Open-Sora's layers.

Core knows ``diffusion_model.spatial_blocks.0.attn.qkv`` and ``lora_unet_spatial_blocks_0_attn_qkv``. Further names are
written down in ``comfy.lora`` one model class after another, and there is no registry. So one function is wrapped:
where the layers asked for are Open-Sora's, names are first brought to core's form; for any other model it is the
original. The switch is that of :mod:`.detection`.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from typing import Any

import comfy.lora
from torch import Tensor

from ...messages.quoting import quoted
from ..messages import tell

MARK = "opensora_original"  # attribute on the wrapper: the function it replaced
CORE_PREFIX = "diffusion_model."
OPEN_SORA = (
    (f"{CORE_PREFIX}fps_embedder.mlp.0", f"{CORE_PREFIX}y_embedder.y_proj.fc1"),
    (f"{CORE_PREFIX}cond_in", f"{CORE_PREFIX}txt_in"),
)
"""Two layers of each network that only Open-Sora has together, as core names them: of 1.2 and 1.3, and of 2.0."""

# No layer of Open-Sora begins with one of these.
HOLDERS = frozenset({"base_model", "model", "module", "transformer", "diffusion_model", "unet", "_orig_mod"})
"""Objects that trainers hold the network in, as they stand before its names with points."""
FLAT_HOLDERS = ("lycoris_", "lora_", *(f"{name}_" for name in sorted(HOLDERS)))
"""The same before names in which points are underlines."""
ADAPTER_NAME = "default"
"""PEFT's name for the only adapter, in the middle of its keys: ``lora_A.default.weight``."""


def is_registered() -> bool:
    """True while core's loaders know the further names."""
    return hasattr(comfy.lora.load_lora, MARK)


def register() -> None:
    """Teaches core's loaders the names; calling it again changes nothing."""
    if is_registered():
        return
    original = comfy.lora.load_lora

    @functools.wraps(original)
    def load_lora(lora: Mapping[str, Tensor], to_load: Mapping[str, Any], *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not any(all(name in to_load for name in layers) for layers in OPEN_SORA):
            return original(lora, to_load, *args, **kwargs)
        named = renamed(lora, to_load)
        patches = original(named, to_load, *args, **kwargs)
        tell(_what_is_left(named, to_load, patches))
        return patches

    setattr(load_lora, MARK, original)
    comfy.lora.load_lora = load_lora


def unregister() -> None:
    """Puts core back as it was, unless another pack has wrapped the function since."""
    if is_registered():
        comfy.lora.load_lora = getattr(comfy.lora.load_lora, MARK)


def _what_is_left(lora: Mapping[str, Tensor], to_load: Mapping[str, Any], patches: Mapping[Any, Any]) -> str:
    """A sentence on the tensors, under core's names, that core makes nothing of; "" where there are none."""
    if lora and not patches:
        return (
            f"This LoRA changes nothing: none of its {len(lora)} tensors, such as {quoted(next(iter(lora)))}, belongs "
            "to a layer of this Open-Sora model; a LoRA fits only the model it was trained for."
        )
    left = [name for name in lora if not _belongs(name, to_load)]
    if not left:
        return ""
    return (
        f"{len(left)} of {len(lora)} tensors of this LoRA, such as {quoted(left[0])}, belong to no layer of what it is "
        "put on and change nothing; a LoRA fits only the model it was trained for."
    )


def _belongs(name: str, to_load: Collection[str]) -> bool:
    """Whether a tensor's name begins with one of a layer."""
    parts = name.split(".")
    layers = (".".join(parts[:length]) for length in range(len(parts), 0, -1))
    return any(layer in to_load or layer.removesuffix("_lora") in to_load for layer in layers)


def renamed(lora: Mapping[str, Tensor], to_load: Collection[str]) -> dict[str, Tensor]:
    """A LoRA's tensors under core's names; what belongs to no layer in ``to_load`` keeps its own name."""
    layers = {name.removeprefix(CORE_PREFIX) for name in to_load if name.startswith(CORE_PREFIX)}
    known = {layer.replace(".", "_"): layer for layer in layers} | {layer: layer for layer in layers}
    result: dict[str, Tensor] = {}
    for name, tensor in lora.items():
        core_name = _core_name(name, known)
        taken = core_name is None or core_name in result or (core_name != name and core_name in lora)
        result[name if taken else core_name] = tensor  # type: ignore[index]
    return result


def _core_name(name: str, known: Mapping[str, str]) -> str | None:
    """``transformer.final_layer.linear.lora_A.weight`` -> ``diffusion_model.final_layer.linear.lora_A.weight``.

    ``known`` leads from layers written with points or underlines to those with points. None for any other layer.
    """
    parts = name.split(".")
    while len(parts) > 1 and parts[0] in HOLDERS:
        del parts[0]
    while holder := next((each for each in FLAT_HOLDERS if parts[0].startswith(each)), None):
        parts[0] = parts[0].removeprefix(holder)
    for length in range(len(parts) - 1, 0, -1):
        layer, ending = ".".join(parts[:length]), ".".join(part for part in parts[length:] if part != ADAPTER_NAME)
        for mark in ("", "_lora"):  # diffusers' first form: qkv_lora.up.weight
            path = known.get(layer.removesuffix(mark)) if layer.endswith(mark) else None
            if path is not None:
                return f"{CORE_PREFIX}{path}{mark}.{ending}"
    return None
