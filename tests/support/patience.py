"""How long tests wait for what others do: as long as it takes, since slow machines reach any other limit."""

from __future__ import annotations

import time
from collections.abc import Callable

HANGS_SECONDS = 1700
"""Less than ``timeout`` in ``pyproject.toml``, which ends any test: what is waited for here has a better name."""


def until(true: Callable[[], bool]) -> None:
    """Wait for it."""
    end = time.monotonic() + HANGS_SECONDS
    while not true():
        assert time.monotonic() < end, "it never became true"
        time.sleep(0.02)
