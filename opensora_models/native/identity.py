"""What decides the numbers a MODEL or a VAE gives: weights, patches, options, wrappers, and whatever comes later.

The attributes of ComfyUI's patcher and of the modules behind it are walked, not named one by one: an attribute that is
not listed here as a note of the running program counts. Where a model happens to be loaded does not.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import comfy.context_windows
import comfy.hooks
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor, nn

from ..parallel.workers import Workers
from ..storage.identity import PLAIN_TENSORS, Identity, Unknown, identity, tensor_digest
from .messages import tell

PATCHER_NOTES = frozenset({
    *("model", "size", "parent", "pinned", "patches_uuid", "clone_base_uuid", "cached_patcher_init"),
    *("load_device", "offload_device", "weight_inplace_update", "is_multigpu_base_clone", "non_dynamic_delegate_model"),
    *("backup", "backup_buffers", "object_patches_backup", "hook_backup", "hook_patches_backup"),
    *("is_injected", "skip_injection", "current_hooks", "cached_hook_patches", "hook_mode"),
    *("_last_prepare_log_key", "_last_free_log_time", "_free_methods"),  # what was logged of streamed weights
})  # fmt: skip
"""Attributes of a patcher that tell where and how a model is kept. ``model`` is looked at by itself."""

MODULE_NOTES = re.compile(
    r"(prev_)?comfy_\w+|\w+_comfy_model_dtype|(weight|bias|\w+_lowvram)_function|seed_key|_v\w*|_prefetch\w*"
    r"|_pin\w*|pin_failed|device|current_patcher|current_weight_patches_uuid|dynamic_\w+|lowvram_patch_counter"
    r"|opensora_weights|model_(loaded_weight_memory|lowvram|offload_buffer_memory)|memory_usage_\w+|plan"
    r"|true_length|_said|apart"
)
"""Attributes of modules that core, and our networks, change while they run."""

RUNNING = {
    comfy.hooks.Hook: ("_skip_adding",),
    comfy.hooks.HookKeyframe: ("start_t",),
    comfy.hooks.HookKeyframeGroup: (
        *("_current_keyframe", "_current_used_steps", "_current_index", "_current_strength", "_curr_t", "curr_t"),
    ),
    comfy.context_windows.IndexListContextHandler: ("_step", "_model"),
}
"""Attributes of core's objects that a run changes and the next run starts over with."""

VAE_NOTES = frozenset({
    *("size", "first_stage_model", "workers", "device", "output_device", "disable_offload", "memory_used_encode"),
    *("memory_used_decode", "downscale_ratio", "upscale_ratio", "downscale_index_formula", "upscale_index_formula"),
})  # fmt: skip
"""Attributes of a VAE that tell where it is kept, or are functions of its network, which the patcher holds as well."""

CACHE = "opensora_weights"
SAMPLES = 64
LARGE_BYTES = 1_000_000_000
WORKERS = min(8, os.cpu_count() or 1)
HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_EMPTY = frozenset(vars(nn.Module())) - {"training", *HOOKS}


def model_identity(parts: Mapping[str, Any], between: Callable[[], None] = lambda: None) -> Identity:
    """The identity of named values, among them models; ``between`` is called while weights are read and may raise."""
    return identity({**parts, "code": _code(), "torch": torch.__version__}, _Describer(between))


def vae_parts(vae: Any) -> dict[str, Any]:
    """What decides the numbers of a VAE, for :func:`model_identity`."""
    return {name: value for name, value in vars(vae).items() if name not in VAE_NOTES}


@cache
def _code() -> str:
    """Digest of this package's own source."""
    root = Path(__file__).resolve().parents[1]
    digest = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        digest.update(path.relative_to(root).as_posix().encode() + b"\0" + path.read_bytes() + b"\0")
    return digest.hexdigest()


class _Describer:
    """Says of ComfyUI's objects what counts about them."""

    def __init__(self, between: Callable[[], None]) -> None:
        self.between = between
        self._open: list[ModelPatcher] = []
        self._named: dict[nn.Module, str] = {}

    def __call__(self, value: Any) -> Any:
        if isinstance(value, ModelPatcher):
            return self._patcher(value)
        if isinstance(value, nn.Module):
            # A part of the network that is met again (behind a bound method, say) is looked at in its own place, where
            # it is known what its weights were before they were patched.
            return self._named.get(value) or self._module(value, {}, {})
        if isinstance(value, Workers):
            return value.count  # who computes, and whether they are there yet, changes no more than rounding
        for kind, names in RUNNING.items():
            if isinstance(value, kind):
                return [type(value), {name: item for name, item in vars(value).items() if name not in names}]
        return NotImplemented

    def _patcher(self, patcher: ModelPatcher) -> str:
        """Digest of a patcher and its model, taken while nothing is injected. Raises Unknown."""
        if patcher in self._open:
            return "the patcher around"
        own = {name: item for name, item in vars(patcher).items() if name not in PATCHER_NOTES}
        # The order of weights says nothing, and may depend on how a file was read.
        own["patches"] = dict(sorted(own.get("patches", {}).items()))
        weights = {name: kept.weight for name, kept in patcher.backup.items()}
        weights |= getattr(patcher, "backup_buffers", {})
        weights |= {name: kept[0] for name, kept in getattr(patcher, "hook_backup", {}).items()}
        objects, around = dict(patcher.object_patches_backup), self._named
        self._open.append(patcher)
        try:
            with _not_injected(patcher):
                self._named = {**around, **_names(patcher.model, objects, f"part {len(self._open)} ")}
                model = self._module(patcher.model, weights, objects)
                found = identity({"patcher": own, "network": model}, self)
        finally:
            self._open.remove(patcher)
            self._named = around
        if found.unknown:
            raise Unknown(found.unknown[0])
        return found.digest

    def _module(self, module: nn.Module, weights: Mapping[str, Tensor], objects: Mapping[str, Any]) -> dict[str, Any]:
        """Class and attributes of every part by its name, and a digest of all weights.

        ``weights`` and ``objects`` are what a patched model had, by name, before it was patched.
        """
        tensors: dict[str, Tensor] = {}
        rest: dict[str, Any] = {}
        parts = [(name, value) for name, value in _parts(module) if not _is_below(name, objects)]
        for name, value in objects.items():
            parts += _parts(value, name) if isinstance(value, nn.Module) else [(name, value)]
        for name, value in parts:
            value = weights.get(name, value)
            if isinstance(value, Tensor):
                (tensors if type(value) in PLAIN_TENSORS and not value.is_meta else rest)[name] = value
            else:
                rest[name] = value
        return {**dict(sorted(rest.items())), CACHE: self._weights(module, tensors)}

    def _weights(self, module: nn.Module, tensors: dict[str, Tensor]) -> str:
        """Digest of all values of all tensors. Read once; a sample tells whether it still holds."""
        sample = hashlib.sha256()
        for name, tensor in sorted(tensors.items()):
            flat = tensor.detach().reshape(-1)
            sample.update(name.encode() + tensor_digest(flat[:: max(1, flat.numel() // SAMPLES)]))
        known = vars(module).get(CACHE)
        if known is None or known[0] != sample.hexdigest():
            known = sample.hexdigest(), self._read(tensors)
            vars(module)[CACHE] = known
        return known[1]

    def _read(self, tensors: dict[str, Tensor]) -> str:
        digest = hashlib.sha256()
        names, size = sorted(tensors), sum(tensor.nbytes for tensor in tensors.values())
        if size > LARGE_BYTES:
            # Said on the node as well, which stands still meanwhile.
            tell(
                f"Reading {size / 1e9:.1f} GB of weights once, to tell runs with them from others.", level=logging.INFO
            )
        with ThreadPoolExecutor(WORKERS) as pool:
            try:
                for name, part in zip(names, pool.map(_tensor, (tensors[name] for name in names)), strict=True):
                    self.between()
                    digest.update(name.encode() + part)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return digest.hexdigest()


def _tensor(tensor: Tensor) -> bytes:
    with torch.inference_mode():
        return tensor_digest(tensor)


def _parts(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every part of a module by its full name: classes, attributes, parameters and buffers."""
    for path, part in module.named_modules(prefix=prefix):
        start = f"{path}." if path else ""
        yield f"{start}<class>", type(part)
        # What a compiler keeps beside a module is not the module's; that it compiles is among the options.
        if not type(part).__module__.startswith("torch._dynamo"):
            for name, value in vars(part).items():
                if name not in _EMPTY and not MODULE_NOTES.fullmatch(name) and not _is_own(part, name, value):
                    # Hooks are kept under numbers that count the hooks of the whole process.
                    yield f"{start}{name}", list(value.values()) if name in HOOKS else value
        for name, value in (*part._parameters.items(), *part._buffers.items()):
            yield f"{start}{name}", value


def _names(module: nn.Module, objects: Mapping[str, Any], word: str) -> dict[nn.Module, str]:
    """``word`` and the name in a module for every part of it; ``objects`` as for :meth:`_Describer._module`."""
    found = {part: word + path for path, part in module.named_modules() if not _is_below(path, objects)}
    for name, value in objects.items():
        if isinstance(value, nn.Module):
            found |= {part: word + path for path, part in value.named_modules(prefix=name)}
    return found


def _is_below(name: str, objects: Mapping[str, Any]) -> bool:
    """Whether a name is that of an exchanged object, or of something in it."""
    return f"{name}.".startswith(tuple(f"{each}." for each in objects))


def _is_own(part: nn.Module, name: str, value: Any) -> bool:
    """Whether an attribute is only the class's own method, as it stays behind when an injection is taken back."""
    own = getattr(type(part), name, None)
    return own is not None and getattr(value, "__self__", None) is part and getattr(value, "__func__", None) is own


@contextmanager
def _not_injected(patcher: ModelPatcher) -> Iterator[None]:
    """The model without what any patcher that has it loaded has injected into its modules."""
    loaded = [each.model for each in comfy.model_management.current_loaded_models]
    users = [patcher, *(each for each in loaded if getattr(each, "model", None) is patcher.model)]
    with ExitStack() as ejected:
        for user in users:
            ejected.enter_context(user.use_ejected())
        yield
