"""Every recorded case in ``cases/`` through the project's own modules."""

from __future__ import annotations

from pathlib import Path

import pytest

from golden import families
from golden.runner import case_files, run_file

CASES = Path(__file__).parent / "cases"

families.register_all()


@pytest.mark.parametrize("path", case_files(CASES), ids=lambda path: path.stem)
def test_equals_the_original(path: Path) -> None:
    results = list(run_file(path))
    implemented = [result for result in results if result.worst is not None]
    if not implemented:
        pytest.skip(results[0].detail)
    assert not [result for result in implemented if not result.passed]
