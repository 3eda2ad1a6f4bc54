"""Loads the pack by path under its own module name, as ComfyUI does.

The repository root never enters ``sys.path``: the folder ``nodes/`` would hide ComfyUI's own ``nodes.py``.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

PACK_NAME = "opensora"
PACK_ROOT = Path(__file__).resolve().parents[2]


def load_pack() -> ModuleType:
    """Import the pack once as ``opensora``; afterwards ``import opensora.opensora_models…`` works anywhere."""
    if PACK_NAME in sys.modules:
        return sys.modules[PACK_NAME]
    spec = importlib.util.spec_from_file_location(
        PACK_NAME, PACK_ROOT / "__init__.py", submodule_search_locations=[str(PACK_ROOT)]
    )
    if spec is None or spec.loader is None:
        raise ImportError(f"no importable pack at {PACK_ROOT}")
    module = importlib.util.module_from_spec(spec)
    sys.modules[PACK_NAME] = module
    spec.loader.exec_module(module)
    return module
