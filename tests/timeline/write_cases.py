"""Writes ``cases.json`` anew, from the repository's root: ``PYTHONPATH=tests python tests/timeline/write_cases.py``."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

if __name__ == "__main__":
    package = ModuleType("opensora")
    package.__path__ = [str(Path(__file__).resolve().parents[2])]
    sys.modules["opensora"] = package
    from support.timeline_cases import completed
    from support.timeline_plans import CASES, dumped

    CASES.write_text(dumped(completed()), encoding="utf-8")
