"""What others get into their hands is theirs: hooks may write into it, and only they notice."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def own(value: Any) -> Any:
    """A copy whose tensors nobody else holds: of a tensor, of those in a list or tuple, of those directly in a dict."""
    if isinstance(value, Tensor):
        return value.clone()
    if type(value) in (list, tuple):
        return type(value)(own(item) for item in value)
    if isinstance(value, dict):
        return {name: item.clone() if isinstance(item, Tensor) else item for name, item in value.items()}
    return value
