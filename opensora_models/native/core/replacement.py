"""Replacing a function of ComfyUI by one that calls it, and putting it back."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

MARK = "opensora_original"
"""Attribute of the replacement: the function it stands for."""

Function = Callable[..., Any]


@dataclass(frozen=True)
class Replacement:
    """``owner.name`` is replaced by ``make(original)``."""

    owner: Any
    name: str
    make: Callable[[Function], Function]

    @property
    def is_there(self) -> bool:
        """True while ours stands in its place, not wrapped by another pack."""
        return hasattr(getattr(self.owner, self.name, None), MARK)

    def put(self) -> None:
        """Replaces the function; once, and not at all where this ComfyUI has none of that name."""
        original = getattr(self.owner, self.name, None)
        if original is None or self.is_there:
            return
        replacement = self.make(original)
        setattr(replacement, MARK, original)
        setattr(self.owner, self.name, replacement)

    def take_back(self) -> None:
        """Puts the original back, unless another pack has wrapped the function since."""
        if self.is_there:
            setattr(self.owner, self.name, getattr(getattr(self.owner, self.name), MARK))
