"""What a worker is told to load so that it holds the same numbers as rank 0, and what cannot be told."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import comfy.weight_adapter
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP

from ...checkpoint.settings import Choices
from ...messages.quoting import quoted
from ..identity import model_identity
from .helped import LEAVE
from .loading import load_model

ADAPTERS = {kind.name: kind for kind in comfy.weight_adapter.adapters}
SAMPLES, SAMPLE_BYTES = 64, 4096
"""Of a file."""
COMPILED = "torch.compile"
"""Of core's wrapper around a network that is compiled."""
OF_RANK_0 = ("wrappers", "callbacks", "attachments", "object_patches")
"""Attributes of a patcher that act outside the network, where only rank 0 is; object patches inside it are refused."""


def settings_of(patcher: ModelPatcher) -> dict[str, Any]:
    """How the MODEL was loaded and how its weights are patched, as plain values and tensors.

    Raises ValueError, with its name, for what another process cannot be told.
    """
    made = getattr(patcher, "cached_patcher_init", None)
    if not made or made[0] is not load_model:
        raise ValueError("Workers load a MODEL again from its file: load it with Open-Sora Load Model.")
    path, weight_dtype, choices, as_upstream, custom_operations, apart = made[1]
    if custom_operations is not None:
        raise ValueError("This MODEL has layers of another pack, which workers cannot load; load the plain file.")
    _expect_nothing_else(patcher)
    return {
        "path": path,
        "weight_dtype": weight_dtype,
        "choices": None if choices is None else asdict(choices),
        "as_upstream": as_upstream,
        "modulations_apart": apart,
        "streamed": streamed(patcher),
        "patches": {name: [_packed(name, each) for each in patches] for name, patches in patcher.patches.items()},
    }


def loaded(settings: Mapping[str, Any]) -> ModelPatcher:
    """The MODEL of :func:`settings_of`, in another process."""
    settings = {name: value for name, value in settings.items() if name != "streamed"}
    patches, choices = settings.pop("patches"), settings.pop("choices")
    patcher = load_model(**settings, choices=None if choices is None else Choices(**choices))
    for name, packed in patches.items():
        for strength, value, kept, offset in packed:
            known = patcher.patches.setdefault(name, [])
            known.append((strength, _unpacked(value), kept, offset, None))
    if patches:
        patcher.patches_uuid = uuid.uuid4()
    return patcher


def streamed(patcher: ModelPatcher) -> bool:
    """Whether ComfyUI streams the weights here: it then holds them as the file has them, which workers do not."""
    return bool(patcher.is_dynamic())


def numbers_of(patcher: ModelPatcher) -> str:
    """The digest of a MODEL's network and patches, the same in every process that holds them.

    Where weights are streamed it is that of :func:`numbers_told`. Raises ValueError for what has no value that could be
    compared.
    """
    if streamed(patcher):
        return numbers_told(settings_of(patcher))
    bare = patcher.clone()
    bare.model_options = {"transformer_options": {}}
    for name in OF_RANK_0:
        setattr(bare, name, {})
    found = model_identity({"model": bare})
    if found.unknown:
        raise ValueError(f"Workers cannot be told of {found.unknown[0]}; {LEAVE}.")
    return found.digest


def numbers_told(settings: Mapping[str, Any]) -> str:
    """The digest of how something was loaded, of its patches, and of samples of its files."""
    paths = [Path(settings[name]) for name in ("path", "spatial") if settings.get(name)]
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.glob("*")))]
    samples = [sampled(file) for file in files if file.is_file()]
    return model_identity({"told": dict(settings), "files": samples}).digest


def sampled(file: Path) -> str:
    """Digest of a file's size and of some of its bytes, all over it."""
    size = file.stat().st_size
    digest = hashlib.sha256(str(size).encode())
    with file.open("rb") as opened:
        for number in range(SAMPLES):
            opened.seek(size * number // SAMPLES)
            digest.update(opened.read(SAMPLE_BYTES))
    return digest.hexdigest()


def _expect_nothing_else(patcher: ModelPatcher) -> None:
    others = {
        "an exchanged part": [name for name in patcher.object_patches if name.startswith("diffusion_model")],
        "an injection": list(patcher.injections),
        "a hook that exchanges weights": list(getattr(patcher, "hook_patches", {})),
        "a weight wrapper": list(getattr(patcher, "weight_wrapper_patches", {})),
        "a compiled network": [COMPILED] if patcher.get_wrappers(WrappersMP.APPLY_MODEL, COMPILED) else [],
        "a model beside the network": list(getattr(patcher, "additional_models", {})),
    }
    for what, names in others.items():
        if names:
            raise ValueError(f"Workers cannot be told of {what} of this MODEL, {quoted(str(names[0]))}; {LEAVE}.")


def _packed(name: str, patch: Any) -> list[Any]:
    """(strength, value, strength of the weight, offset) of a weight patch."""
    strength, value, kept, offset, function = patch
    if function is not None:
        raise ValueError(f"Workers cannot be told of the function that patches {quoted(name)}; {LEAVE}.")
    if isinstance(value, comfy.weight_adapter.WeightAdapterBase):
        if ADAPTERS.get(value.name) is not type(value):
            raise ValueError(f"Workers cannot be told of a {type(value).__name__} on {quoted(name)}; {LEAVE}.")
        told = {"adapter": value.name, "keys": sorted(value.loaded_keys), "weights": value.weights}
        return [strength, told, kept, offset]
    return [strength, {"plain": value}, kept, offset]


def _unpacked(value: Mapping[str, Any]) -> Any:
    if "plain" in value:
        return value["plain"]
    return ADAPTERS[value["adapter"]](set(value["keys"]), value["weights"])
