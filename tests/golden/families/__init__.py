"""The families of recorded cases the project implements, one module each; importing a module registers it."""

from __future__ import annotations

import importlib
import pkgutil


def register_all() -> None:
    """Import every module of this package (call after the pack is loaded)."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
