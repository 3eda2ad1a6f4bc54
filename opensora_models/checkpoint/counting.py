"""How many blocks a file holds, counted by what is there and never by what a name says."""

from __future__ import annotations

import re
from collections.abc import Iterable

MOST_BLOCKS = 1000
"""More than ten times the deepest released network; a name alone must not make a network of millions of layers."""

_NUMBER = re.compile(r"0|[1-9][0-9]*")


def count_blocks(names: Iterable[str], prefix: str) -> int:
    """How many of ``prefix0.``, ``prefix1.``, ``prefix2.`` … begin some name; 0 where there are none.

    Raises ValueError where a number is left out or there are too many.
    """
    found = {name[len(prefix) :].partition(".")[0] for name in names if name.startswith(prefix)}
    numbers = {text for text in found if _NUMBER.fullmatch(text)}
    wanted = [str(number) for number in range(len(numbers))]
    missing = next((text for text in wanted if text not in numbers), None)
    if missing is not None:
        stray = max(numbers - set(wanted), key=len)
        shown = stray if len(stray) <= 12 else f"{stray[:9]}…"
        raise ValueError(
            f"the blocks '{prefix}0', '{prefix}1' … are not complete: '{prefix}{shown}' is there, but "
            f"'{prefix}{missing}' is not; download or export the file again."
        )
    if len(numbers) > MOST_BLOCKS:
        raise ValueError(f"there are {len(numbers)} blocks '{prefix}…', at most {MOST_BLOCKS} are read.")
    return len(numbers)
