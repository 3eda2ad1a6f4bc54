"""Files of the original program that our sources name exist there, in the releases they are named for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from support.pack import PACK_ROOT

LIST = Path(__file__).with_name("data") / "upstream_files.txt"
RELEASES: dict[str, set[str]] = {
    path: set(releases)
    for path, *releases in (
        line.split() for line in LIST.read_text(encoding="utf-8").splitlines() if line and not line.startswith("#")
    )
}
FOLDERS: dict[str, set[str]] = {}
for _path, _releases in RELEASES.items():
    for _parent in Path(_path).parents:
        FOLDERS.setdefault(_parent.as_posix(), set()).update(_releases)

PARTS = r"(?:acceleration|datasets|models|registry|schedulers|utils)"
NAMED = re.compile(rf"(?<![\w./-])(?:opensora/)?{PARTS}/[\w/]*\w\.py")
FOLDER = re.compile(rf"(?<![\w./-])opensora/{PARTS}(?:/\w+)+(?![\w/]|\.py)")
# "…/vae.py of release 1.2" and "…/stdit3.py`` of releases 1.2 and 1.3", over the end of a line too.
OF_RELEASE = re.compile(
    rf"(?<![\w./-])(opensora/{PARTS}(?:/\w+)+(?:\.py)?)[`)]*(?:\s+\([^)]*\))?\s+of\s+releases?\s+"
    r"(\d\.\d(?:(?:,\s+|\s+and\s+)\d\.\d)*)"
)
# The program's own parts, and every text about it; tests name files that do not exist on purpose.
NAMING = sorted(
    path
    for part in ("nodes", "opensora_models", "training", "benchmarks", "js", "devtools", "*.md")
    for found in PACK_ROOT.glob(part)
    for path in ([found] if found.is_file() else found.rglob("*"))
    if path.suffix in {".py", ".md", ".js"}
)


def unknown(text: str) -> list[str]:
    """Files and folders that are in no release, and those that are not in the release they are named for."""
    missing = [path for path in NAMED.findall(text) if path not in RELEASES]
    missing += [path for path in FOLDER.findall(text) if path not in FOLDERS]
    for path, releases in OF_RELEASE.findall(text):
        there = RELEASES.get(path, FOLDERS.get(path, set()))
        missing += [f"{path} of {release}" for release in re.findall(r"\d\.\d", releases) if release not in there]
    return missing


@pytest.mark.parametrize("path", NAMING, ids=lambda path: path.relative_to(PACK_ROOT).as_posix())
def test_upstream_files_are_named_in_full_and_exist(path: Path) -> None:
    assert unknown(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("(opensora/models/vae/vae_v1_3.py of", ["opensora/models/vae/vae_v1_3.py"]),
        ("``schedulers/rf/__init__.py``", ["schedulers/rf/__init__.py"]),
        ("opensora/models/vae_1_3 (", ["opensora/models/vae_1_3"]),
        ("``opensora/schedulers/rf/time_sampler.py`` of\n    releases 1.2 and 1.3",
         ["opensora/schedulers/rf/time_sampler.py of 1.2"]),
        ("opensora/models/vae_v1_3 of release 1.2", ["opensora/models/vae_v1_3 of 1.2"]),
        ("opensora/models/vae/vae.py of release 1.2; opensora_models/releases/groups.py", []),
    ],
)  # fmt: skip
def test_the_check_sees_what_it_looks_for(text: str, missing: list[str]) -> None:
    assert unknown(text) == missing


def test_sources_do_name_files() -> None:
    texts = [path.read_text(encoding="utf-8") for path in NAMING]
    assert sum(len(NAMED.findall(text)) for text in texts) > 20
    assert sum(len(OF_RELEASE.findall(text)) for text in texts) > 10
