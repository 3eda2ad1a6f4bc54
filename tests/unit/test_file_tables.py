"""Tables of files in our pages: what they name exists, and some folders leave none of their files out."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.pack import PACK_ROOT

ROW = re.compile(r"^\| ((?:`[^`|]+`(?:, )?)+) \|", re.MULTILINE)
FILE = re.compile(r"`([\w./-]+(?:\.py|\.js|/))`")
WHOLE = ("training", "benchmarks")
"""Folders whose page names every module but those that only others of the folder use, which begin with a line below."""
PAGES = sorted(PACK_ROOT / page for part in (".", *WHOLE, "docs") for page in (PACK_ROOT / part).glob("*.md"))


def named(page: str) -> list[str]:
    """The files and folders in the first column of a page's tables."""
    return [name for cell in ROW.findall(page) for name in FILE.findall(cell)]


def missing(page: Path, names: list[str]) -> list[str]:
    """Those that lie neither beside the page nor in the repository's root."""
    return [name for name in names if not any((folder / name).exists() for folder in (page.parent, PACK_ROOT))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(PACK_ROOT).as_posix())
def test_what_a_table_names_exists(page: Path) -> None:
    assert missing(page, named(page.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize("folder", WHOLE)
def test_every_module_is_in_the_table_of_its_folder(folder: str) -> None:
    page = PACK_ROOT / folder / "README.md"
    modules = {path.name for path in page.parent.glob("*.py") if not path.name.startswith("_")}
    assert len(modules) > 5
    assert modules - set(named(page.read_text(encoding="utf-8"))) == set()


def test_a_row_of_what_is_gone_is_seen() -> None:
    page = PACK_ROOT / "training" / "README.md"
    text = "| `flow.py`, `gone.py` | both |\n| `starts/` | a folder |\n| what | `of_another_column.py` |\n"
    assert named(text) == ["flow.py", "gone.py", "starts/"]
    assert missing(page, named(text)) == ["gone.py", "starts/"]
