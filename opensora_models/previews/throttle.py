"""How often something may be done beside a run that must not be held up by it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SHARE = 0.02
"""Of the time of a run, at most."""
LEAST_SECONDS = 0.25
"""Between two times at least, so that fast steps do not flood a slow line."""


class Throttle:
    """Lets something be done again once all of it, this time included, is at most ``share`` of the time of the run.

    The run begins when this is made; ``spent`` is the cost so far, in seconds. The next time is taken to cost what the
    last one did. Only the first time cannot be known before: a run that ends right after it may have spent more.
    """

    def __init__(
        self, share: float = SHARE, least: float = LEAST_SECONDS, clock: Callable[[], float] = time.perf_counter
    ) -> None:
        self.share, self.least, self.clock = share, least, clock
        self.spent = 0.0
        self._began = clock()
        self._next = self._began

    def due(self) -> bool:
        """Whether it may be done now."""
        return self.clock() >= self._next

    @contextmanager
    def spending(self) -> Iterator[None]:
        """Around what costs."""
        started = self.clock()
        try:
            yield
        finally:
            now = self.clock()
            cost = now - started
            self.spent += cost
            self._next = max(now + self.least, self._began + (self.spent + cost) / self.share)
