"""The table of what fits on which card: its numbers add up, and every line says that it was counted."""

from __future__ import annotations

import re

from opensora.benchmarks import cards


def test_what_fits_is_told_for_every_card_and_size() -> None:
    table = list(cards.lines(65))[2:]
    assert len(table) == 3 * len(cards.CARDS) and all("| counted; a row " in line for line in table)
    small = next(line for line in table if line.startswith("| 2.0, 256px, 65 frames | 16 GB"))
    assert "streams" in small and re.search(r"resident, 12\.\d GB", small)


def test_what_does_not_stay_passes_through() -> None:
    room = 12 * cards.GIB - cards.RESERVED
    assert cards.verdict(room - 10**9, 10**9, 12).startswith("resident")
    assert cards.verdict(room + 3 * 10**9, 10**9, 12).startswith("streams 4.0 of")
    assert cards.verdict(10**9, room, 12) == "does not fit"
