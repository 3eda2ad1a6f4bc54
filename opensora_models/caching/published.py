"""Tables for Open-Sora 1.2 that follow from published numbers, as a start before a calibration on one's own weights.

MagCache (arXiv 2506.09045; https://github.com/Zehong-Ma/MagCache, ``eval/magcache/experiments/opensora.py``) found that
the size of the stack's residual changes from step to step by ratios that hardly depend on the prompt, and published
those of 1.2 for 30 steps at 480p. Its rule leaves a step out while the product of the ratios stays near 1, so that on
this model it is a table. Nothing of the kind is published for 1.3 and 2.0.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

RATIOS = (
    *(0.934, 0.965, 0.996, 1.0, 0.996, 0.996, 0.992, 1.0, 1.0, 0.996, 0.992, 1.0, 0.992, 0.996, 0.992),
    *(0.996, 0.996, 0.996, 0.992, 0.992, 0.992, 0.988, 0.988, 0.984, 0.984, 0.977, 0.977, 0.965, 0.965),
)
"""Mean ratio of the squared sizes of step n + 1 and step n."""
ALWAYS = 0.2
"""Share of the run at its start that is always computed."""


def magnitude_flags(ratios: Sequence[float], *, most: float, longest: int, always: float = ALWAYS) -> str:
    """The flags of MagCache's rule for ``len(ratios) + 1`` steps.

    ``most`` is the error a row of reused steps may gather, ``longest`` how many there may be in it.
    """
    steps, product, error, left_out, flags = len(ratios) + 1, 1.0, 0.0, 0, "1"
    for step in range(1, steps):
        product *= math.sqrt(ratios[step - 1])
        error, left_out = error + abs(1.0 - product), left_out + 1
        reused = step >= int(always * steps) and error < most and left_out <= longest
        flags += "0" if reused else "1"
        if not reused:
            product, error, left_out = 1.0, 0.0, 0
    return flags


PUBLISHED = {
    "1.2 published, 18 of 30": magnitude_flags(RATIOS, most=0.06, longest=1),
    "1.2 published, 12 of 30": magnitude_flags(RATIOS, most=0.12, longest=3),
}
"""What MagCache calls slow and fast."""
