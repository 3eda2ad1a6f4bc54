"""The pack's fused kernels without ComfyUI, where ``comfy_kitchen`` can be imported.

The modules that choose kernels ask two of ComfyUI's for them. Where there is no ComfyUI in the process, stand-ins with
the three functions they use take its place: what is measured is the pack's own code.
"""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import Any


def fused(network: Any) -> Any:
    """The arithmetic in fused kernels that ComfyUI would give a network; None without ``comfy_kitchen``."""
    try:
        kitchen = importlib.import_module("comfy_kitchen")
    except ImportError:
        return None
    if "comfy" not in sys.modules:
        _stand_in(kitchen)
    name, kind = ("fused_heads", "FusedHeads") if hasattr(network, "double_blocks") else ("fused", "FusedArithmetic")
    return getattr(importlib.import_module(f"opensora.opensora_models.native.model.{name}"), kind)()


def version() -> str | None:
    """Of the installed kernels."""
    try:
        return str(importlib.import_module("importlib.metadata").version("comfy-kitchen"))
    except ImportError:
        return None


def _stand_in(kitchen: ModuleType) -> None:
    comfy, ops, quant = ModuleType("comfy"), ModuleType("comfy.ops"), ModuleType("comfy.quant_ops")

    def cast_bias_weight(layer: Any, like: Any, offloadable: bool) -> tuple[Any, None, None]:
        return layer.weight.to(like), None, None

    def uncast_bias_weight(*_: Any) -> None:
        return None

    for module, content in (
        (ops, {"cast_bias_weight": cast_bias_weight, "uncast_bias_weight": uncast_bias_weight}),
        (quant, {"ck": kitchen}),
        (comfy, {"ops": ops, "quant_ops": quant, "__path__": []}),
    ):
        vars(module).update(content)
        sys.modules[module.__name__] = module
