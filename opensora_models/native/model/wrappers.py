"""Wrappers around the network, each of which may write into what it is handed.

In float32 the latents that reach the network are ComfyUI's own tensor, which it reads again afterwards; texts and noise
levels are shared between the steps of a run. Core's EasyCache, for one, adds into what it is handed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ...transformer.handing import own

Wrapper = Callable[..., Any]
"""A function of ``comfy.patcher_extension``: ``(executor, *args, **kwargs)``."""


def separated(wrappers: Sequence[Wrapper]) -> list[Wrapper]:
    """The wrappers, each of them handed tensors of its own."""
    return [step for wrapper in wrappers for step in (_hand_over, wrapper)]


def _hand_over(executor: Any, *args: Any, **kwargs: Any) -> Any:
    return executor(*own(args), **{name: own(value) for name, value in kwargs.items()})
