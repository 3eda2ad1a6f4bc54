"""Files of the original program that our sources name exist there."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.pack import PACK_ROOT

LIST = Path(__file__).with_name("data") / "upstream_files.txt"
KNOWN = {line for line in LIST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")}
PARTS = r"(?:acceleration|datasets|models|registry|schedulers|utils)"
NAMED = re.compile(rf"(?<![\w./-])(?:opensora/)?{PARTS}/[\w/]*\w\.py")
FOLDER = re.compile(rf"(?<![\w./-])opensora/{PARTS}(?:/\w+)+(?![\w/]|\.py)")
FOLDERS = {parent.as_posix() for path in KNOWN for parent in Path(path).parents}
NAMING = sorted(
    path for part in ("nodes", "opensora_models", "training") for path in (PACK_ROOT / part).rglob("*.py")
)  # fmt: skip


@pytest.mark.parametrize("path", NAMING, ids=lambda path: path.relative_to(PACK_ROOT).as_posix())
def test_upstream_files_are_named_in_full_and_exist(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert set(NAMED.findall(text)) - KNOWN == set()
    assert set(FOLDER.findall(text)) - FOLDERS == set()


def test_the_check_sees_what_it_looks_for() -> None:
    assert NAMED.findall("(opensora/models/vae/vae_v1_3.py of") == ["opensora/models/vae/vae_v1_3.py"]
    assert NAMED.findall("``schedulers/rf/__init__.py``") == ["schedulers/rf/__init__.py"]
    assert NAMED.findall("opensora_models/frames.py") == []
    assert sum(len(NAMED.findall(path.read_text(encoding="utf-8"))) for path in NAMING) > 20
