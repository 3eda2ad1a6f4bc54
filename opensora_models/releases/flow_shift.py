"""How far Open-Sora 2.0 moves its times towards noise: more for larger frames and for longer clips.

Moved times are those of ``sampling/schedule.py`` with this shift. It is not Flux's own (which is the exponential of a
line), not even for the original's Flux stage. Source: upstream ``opensora/utils/sampling.py`` (``get_schedule``) of
release 2.0.
"""

from __future__ import annotations

from math import sqrt

FEW_TOKENS, SHIFT_OF_FEW = 256, 1.0
MANY_TOKENS, SHIFT_OF_MANY = 4096, 3.0
"""The shift of one latent frame lies on the line through these two points, beyond them as well."""


def flow_shift(tokens_per_frame: float, latent_frames: int) -> float:
    """The shift of a clip of ``latent_frames`` latent frames with so many tokens each.

    Raises ValueError for a clip of nothing.
    """
    if tokens_per_frame < 1 or latent_frames < 1:
        raise ValueError(
            f"The schedule got {latent_frames} latent frames of {tokens_per_frame:g} tokens; both start at 1."
        )
    slope = (SHIFT_OF_MANY - SHIFT_OF_FEW) / (MANY_TOKENS - FEW_TOKENS)
    return (SHIFT_OF_FEW + slope * (tokens_per_frame - FEW_TOKENS)) * sqrt(latent_frames)
