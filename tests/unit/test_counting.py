"""Counting blocks: by what is there, never by what a name says."""

from __future__ import annotations

import time

import pytest

from opensora.opensora_models.checkpoint.counting import MOST_BLOCKS, count_blocks


def test_blocks_are_counted_by_their_names() -> None:
    names = ["a.0.x", "a.0.y", "a.1.x", "b.7.x", "a.x", "a.00.x", "a.-1.x", "a.٣.x", "a.", "a.1e3.x"]
    assert count_blocks(names, "a.") == 2
    assert count_blocks(names, "c.") == 0


@pytest.mark.parametrize("stray", ["3", "999999999", "9" * 5000])
def test_a_gap_is_named_at_once(stray: str) -> None:
    started = time.monotonic()
    with pytest.raises(ValueError, match=r"'a\.[0-9…]+' is there, but 'a\.2' is not") as error:
        count_blocks([f"a.{number}.x" for number in ("0", "1", stray)], "a.")
    assert len(str(error.value)) < 200 and time.monotonic() - started < 1


def test_there_is_a_limit() -> None:
    assert count_blocks((f"a.{n}.x" for n in range(MOST_BLOCKS)), "a.") == MOST_BLOCKS
    with pytest.raises(ValueError, match=f"at most {MOST_BLOCKS}"):
        count_blocks((f"a.{n}.x" for n in range(MOST_BLOCKS + 1)), "a.")
