"""Text as it reaches one of our samplers: refused where the MODEL cannot read it, told where it is another input."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...releases.encoded_text import check_encoded_for, unlike_training
from ..messages import tell
from ..model.base_model import release_of


def check_text(model: Any, *conditionings: Sequence[Any]) -> None:
    """Look at every entry of the conditionings a MODEL is to be sampled with. Raises ValueError."""
    release = release_of(model)
    if release is None:
        return
    for values in (entry[1] for conditioning in conditionings for entry in conditioning):
        check_encoded_for(values, release)
        if release.text.pooled and values.get("pooled_output") is None:
            raise ValueError(
                f"A conditioning holds no state of CLIP-L, but {release.title} reads one beside T5's; encode prompt "
                "and negative prompt with Open-Sora Text Encode and this MODEL, clip_l.safetensors chosen as "
                "clip_l_name in Open-Sora Load Text Encoder."
            )
        tell(unlike_training(values, release))
