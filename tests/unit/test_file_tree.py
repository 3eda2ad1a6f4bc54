"""Listings of folders: what is in them, links and losses of every kind, and how little is read again."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opensora.opensora_models.storage import file_tree
from opensora.opensora_models.storage.file_tree import FileTree, is_inside, stamp

posix = pytest.mark.skipif(os.name == "nt", reason="needs links, pipes and names of bytes")


def saved(root: Path) -> FileTree:
    return FileTree(str(root), (".x",), follow_links=False, dated=True)


def weights(root: Path) -> FileTree:
    return FileTree(str(root), (".x",), follow_links=True, dated=False)


both = pytest.mark.parametrize("tree", [saved, weights])


def touch(path: Path, when: float | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    if when is not None:
        os.utime(path, (when, when))
    return path


def settle() -> None:
    """Until the last changes are older than a tick of the file system's clock."""
    time.sleep(0.05)


@both
def test_names_below_a_folder(tree: Callable[[Path], FileTree], tmp_path: Path) -> None:
    for name in ("a.x", "b.y", "sub/deep/c.x", "sub/D.X", ".git/no.x", "folder.x/e.x"):
        touch(tmp_path / name)
    expected = {"a.x", "D.X", "c.x", "e.x"}
    found = tree(tmp_path).files()
    assert {Path(name).name for name in found} == expected and os.path.join("sub", "deep", "c.x") in found
    assert tree(tmp_path / "nowhere").files() == {}


@both
def test_changes_are_seen_and_nothing_else_is_made_anew(tree: Callable[[Path], FileTree], tmp_path: Path) -> None:
    listing = tree(tmp_path)
    touch(tmp_path / "sub" / "a.x")
    settle()
    before = listing.files()
    assert listing.files() is before
    touch(tmp_path / "other.y")
    assert listing.files() is before  # another kind of file
    touch(tmp_path / "sub" / "b.x")
    assert set(listing.files()) == {os.path.join("sub", "a.x"), os.path.join("sub", "b.x")}
    (tmp_path / "sub" / "a.x").unlink()
    assert set(listing.files()) == {os.path.join("sub", "b.x")}
    (tmp_path / "sub" / "b.x").unlink()
    (tmp_path / "sub").rmdir()
    assert listing.files() == {}


def test_a_replaced_file_gets_its_new_time(tmp_path: Path) -> None:
    listing = saved(tmp_path)
    touch(tmp_path / "a.x", 1000)
    assert listing.files() == {"a.x": 1000 * 10**9}
    os.replace(touch(tmp_path / "new.y", 2000), tmp_path / "a.x")
    assert listing.files() == {"a.x": 2000 * 10**9}


@both
def test_names_that_come_within_one_tick_are_seen(tree: Callable[[Path], FileTree], tmp_path: Path) -> None:
    listing = tree(tmp_path)
    for number in range(100):
        touch(tmp_path / f"{number}.x")
        assert len(listing.files()) == number + 1


@both
def test_an_unchanged_tree_is_not_read_again(
    tree: Callable[[Path], FileTree], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(2000):
        touch(tmp_path / f"{number % 4}" / f"{number}.x")
    settle()
    listing = tree(tmp_path)
    first = listing.files()
    calls: list[str] = []
    scandir, look = os.scandir, os.stat
    monkeypatch.setattr(os, "scandir", lambda path: calls.append("read") or scandir(path))
    monkeypatch.setattr(os, "stat", lambda path, **options: calls.append("look") or look(path, **options))
    assert listing.files() is first and len(first) == 2000
    assert calls == ["look"] * 5
    touch(tmp_path / "2" / "new.x")
    calls.clear()
    assert len(listing.files()) == 2001 and calls.count("read") == 1


@posix
@both
def test_links(tree: Callable[[Path], FileTree], tmp_path: Path) -> None:
    root, away = tmp_path / "root", tmp_path / "away"
    touch(root / "real" / "a.x")
    touch(away / "out.x")
    (root / "dangling.x").symlink_to(root / "nowhere.x")
    (root / "itself.x").symlink_to(root / "itself.x")
    (root / "inside.x").symlink_to(root / "real" / "a.x")
    (root / "outside.x").symlink_to(away / "out.x")
    (root / "folder").symlink_to(away)
    (root / "pipe.x").parent.mkdir(exist_ok=True)
    os.mkfifo(root / "pipe.x")
    (root / "pipe too.x").symlink_to(root / "pipe.x")
    listing = tree(root)
    inside = {"real/a.x", "inside.x"}
    expected = inside if tree is saved else inside | {"outside.x", "folder/out.x"}
    assert set(listing.files()) == expected
    touch(root / "nowhere.x")  # a link may lead somewhere again
    settle()
    assert set(listing.files()) == expected | {"nowhere.x", "dangling.x"}
    (root / "real" / "a.x").unlink()
    assert "inside.x" not in listing.files()


@posix
@both
def test_loops_of_links_end(tree: Callable[[Path], FileTree], tmp_path: Path) -> None:
    touch(tmp_path / "a" / "b" / "file.x")
    for number in range(4):
        (tmp_path / f"loop{number}").symlink_to(tmp_path)
        (tmp_path / "a" / f"loop{number}").symlink_to(tmp_path / "a")
        (tmp_path / "a" / "b" / f"up{number}").symlink_to("..")
    assert set(tree(tmp_path).files()) == {"a/b/file.x"}


@posix
@both
def test_names_that_are_not_utf8(tree: Callable[[Path], FileTree], tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9 \xff.x")
    try:
        touch(tmp_path / os.fsdecode(b"\xfe") / name)
    except OSError:
        pytest.skip("this file system stores UTF-8 names only")
    (found,) = tree(tmp_path).files()
    assert os.path.isfile(os.path.join(tmp_path, found)) and found.endswith(name)


@both
def test_a_folder_that_cannot_be_read_is_told_once(
    tree: Callable[[Path], FileTree], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    touch(tmp_path / "a.x")
    touch(tmp_path / "locked" / "b.x")
    scandir = os.scandir

    def forbidden(path: Any) -> Any:
        if str(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    caplog.set_level(logging.WARNING, "opensora")
    listing = tree(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(os, "scandir", forbidden)
        assert list(listing.files()) == list(listing.files()) == ["a.x"]
        assert len(caplog.records) == 1 and "cannot be read (Permission denied)" in caplog.text
    assert len(listing.files()) == 2


@both
def test_files_may_come_and_go_meanwhile(tree: Callable[[Path], FileTree], tmp_path: Path) -> None:
    for number in range(50):
        touch(tmp_path / "stays" / f"{number}.x")
    listing, done, failed = tree(tmp_path), threading.Event(), []

    def churn() -> None:
        while not done.is_set():
            for number in range(20):
                touch(tmp_path / f"folder{number}" / "comes.x")
            for number in range(20):
                (tmp_path / f"folder{number}" / "comes.x").unlink()
                (tmp_path / f"folder{number}").rmdir()

    worker = threading.Thread(target=churn)
    worker.start()
    try:
        for _ in range(100):
            failed += [1] if sum(name.startswith("stays") for name in listing.files()) != 50 else []
    finally:
        done.set()
        worker.join()
    assert failed == []


def test_an_entry_that_vanishes_while_it_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a.x")
    touch(tmp_path / "b.x")

    def vanishing(tree: FileTree, entry: os.DirEntry[str], known: Any) -> tuple[int, int]:
        if entry.name == "a.x":
            raise FileNotFoundError(2, "No such file")
        return 1, 1

    monkeypatch.setattr(file_tree.FileTree, "_inode_and_time", vanishing)
    assert list(saved(tmp_path).files()) == ["b.x"]


def test_stamps(tmp_path: Path) -> None:
    file = touch(tmp_path / "a", 1000)
    before = stamp(file)
    assert before == stamp(str(file)) != ""
    file.write_text("x")
    os.utime(file, (1000, 1000))
    assert stamp(file) != before  # another size
    assert stamp(tmp_path / "none") == stamp("a\0b") == ""


@posix
def test_inside(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "root2").mkdir()
    (tmp_path / "root" / "out").symlink_to(tmp_path / "root2")
    root = str(tmp_path / "root")
    assert is_inside(f"{root}/a/b", root) and is_inside(root, root)
    for path in (f"{root}2/a", f"{root}/out/a", f"{root}/../x", f"{root}/a\0b"):
        assert not is_inside(path, root)
