"""Whether an encoded text is one the release was trained with, told from what stands beside it in the conditioning."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..text.padding import ENCODED_FOR
from .known import RELEASES
from .release import Release


def check_encoded_for(values: Mapping[str, Any], release: Release) -> None:
    """Refuse an entry that was encoded by the rules of another release than the MODEL's. Raises ValueError."""
    made_for = RELEASES.get(str(values.get(ENCODED_FOR)))
    if made_for is not None and made_for.text != release.text:
        raise ValueError(
            f"The text was encoded for {made_for.title}, but the MODEL is {release.title}, which reads another form of "
            "it; connect this MODEL to Open-Sora Text Encode."
        )


def unlike_training(values: Mapping[str, Any], release: Release) -> str:
    """What to tell of a text that other nodes encoded; "" for ours, and where they encode alike.

    Another number of states and a mask are told by the MODEL itself, in whatever sampler.
    """
    if not release.text.padded or ENCODED_FOR in values:
        return ""
    unread = " The guidance written into it (Flux) is not read." if "guidance" in values else ""
    return (
        f"The text does not come from Open-Sora Text Encode: other nodes let words in (parentheses) weigh more, which "
        f"{release.title} was not trained with.{unread}"
    )
