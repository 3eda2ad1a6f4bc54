"""Folders for as long as somebody lives for whom they are there, and no longer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from opensora.opensora_models.storage import temporary
from opensora.opensora_models.storage.temporary import LOCK, TemporaryFolder, cleared_leftovers
from support.processes import gone, python

MAKER = """
from opensora.opensora_models.storage.temporary import TemporaryFolder
import subprocess, time
folder = TemporaryFolder("tests")
kept = (folder.handle,) if sys.argv[1:] else ()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], pass_fds=kept)
print(folder.name, child.pid, flush=True)
time.sleep(120)
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The system's folder for temporary files, of this test and the processes it starts."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_folder_goes_with_what_it_is_for(place: Path) -> None:
    folder = TemporaryFolder("tests")
    assert Path(folder.name).parent == place and Path(folder.name).name.startswith("opensora-tests-")
    (Path(folder.name) / "inside").mkdir()
    folder.cleanup()
    folder.cleanup()
    assert list(place.iterdir()) == []
    forgotten = TemporaryFolder("tests")
    assert list(place.iterdir()) == [Path(forgotten.name)]
    del forgotten
    assert list(place.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="kill -9, and handles that go on")
@pytest.mark.parametrize("handed_on", [False, True])
def test_what_a_killed_process_left_goes_once_nobody_holds_it(handed_on: bool) -> None:
    maker = python(MAKER, *["on"][: int(handed_on)])
    assert maker.stdout is not None
    name, pid = maker.stdout.readline().split()
    (Path(name) / "inside").mkdir()
    assert cleared_leftovers("tests") == [] and Path(name).exists()
    maker.kill()
    maker.wait()
    assert cleared_leftovers("others") == []
    if handed_on:
        assert cleared_leftovers("tests") == [] and Path(name).exists(), "the child lives"
    os.kill(int(pid), 9)
    assert gone([int(pid)])
    assert cleared_leftovers("tests") == [(Path(name), "")] and not Path(name).exists()


def test_what_nobody_can_tell_of_stays(place: Path) -> None:
    """Without a lock, or no folder at all; a link is not followed."""
    for name, inside in {"opensora-tests-old": "file", "opensora-other-a": LOCK, "far": LOCK}.items():
        (place / name).mkdir()
        (place / name / inside).touch()
    (place / "opensora-tests-file").touch()
    (place / "opensora-tests-link").symlink_to(place / "far")
    (place / "opensora-tests-lock").mkdir()
    (place / "opensora-tests-lock" / LOCK).symlink_to(place / "far" / LOCK)
    before = sorted(place.rglob("*"))
    assert cleared_leftovers("tests") == [] and sorted(place.rglob("*")) == before


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="has no owners")
def test_what_another_person_left_stays(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    left(place)
    monkeypatch.setattr(os, "getuid", lambda: -1)
    assert cleared_leftovers("tests") == []


def test_a_folder_that_cannot_be_removed_is_named(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(shutil, "rmtree", refused)
    assert cleared_leftovers("tests") == [] and left(place)
    assert cleared_leftovers("tests") == [(place / "opensora-tests-a", "cannot be removed (Permission denied)")]


@pytest.mark.skipif(temporary.fcntl is None, reason="an open file cannot be removed there")
def test_a_folder_that_is_cleared_while_it_is_made_is_made_again(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process may find it between its making and its lock."""
    real, found = temporary.try_lock, list[Path]()

    def late(handle: int) -> bool | None:
        if not found:
            found.extend(place.iterdir())
            monkeypatch.setattr(temporary, "try_lock", real)
            assert cleared_leftovers("tests") == [(found[0], "")]
        return real(handle)

    monkeypatch.setattr(temporary, "try_lock", late)
    folder = TemporaryFolder("tests")
    assert list(place.iterdir()) == [Path(folder.name)] != found
    assert cleared_leftovers("tests") == []


def left(place: Path) -> Path:
    """A folder as a process that was killed leaves it."""
    folder = place / "opensora-tests-a"
    folder.mkdir()
    (folder / LOCK).touch()
    return folder


def test_the_file_is_read_by_its_path_without_anything_else() -> None:
    """As batch.py does on a machine whose Python has no torch."""
    folder = str(Path(temporary.__file__).parent)
    code = f"import sys; sys.path.insert(0, {folder!r}); import temporary; print(temporary.LOCK)"
    assert subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True).stdout == "lock\n"
