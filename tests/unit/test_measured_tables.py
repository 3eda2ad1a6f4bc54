"""Tables of measured numbers say what is kept of the measurement, and nothing else."""

from __future__ import annotations

import pytest

from opensora.benchmarks import _readme


@pytest.mark.parametrize("name", _readme.PAGES)
def test_a_page_shows_what_was_measured(name: str) -> None:
    page, _ = _readme.PAGES[name]
    assert _readme.kept(name), f"nothing is kept under {name}"
    assert _readme.shown(name) == page.read_text(encoding="utf-8"), f"python benchmarks/{name}.py --write makes it"
