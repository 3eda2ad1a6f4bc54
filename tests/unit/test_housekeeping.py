"""What is kept is seen as it is, and only what is ours, whole and idle is ever removed."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from opensora.opensora_models.storage import housekeeping
from opensora.opensora_models.storage.housekeeping import IN_USE, NO_LOCKS, NOT_OURS, cleared, file_of, stores
from opensora.opensora_models.storage.locks import FolderLock, one_writer
from opensora.opensora_models.storage.pieces import Pieces, about_in
from opensora.opensora_models.vae.latent_file import kept_latents, save_latent

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes and links of Unix")

NOT_UTF8 = b"\xff\xfe".decode(errors="surrogateescape")
NAMES = ("0123456789abcdef", "a b", "\N{SNOWMAN}", "-rf", "%name%", "tab\tnew\nline", NOT_UTF8)


def store(folder: Path, about: str = "a lamp that blinks", count: int = 2) -> Path:
    with one_writer(folder):
        pieces = Pieces(folder, "run", about=about)
        for number in range(count):
            pieces.write_bytes_of(f"segment_{number:04d}.safetensors", bytes(1000), {})
    return folder


def everything(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("name", NAMES)
def test_a_store_is_seen_and_goes_whole(name: str, tmp_path: Path) -> None:
    folder = store(tmp_path / "kept" / name)
    before = everything(tmp_path)
    (found,) = stores(tmp_path / "kept", "segments")
    assert everything(tmp_path) == before  # looking leaves no trace
    sizes = sum(path.stat().st_size for path in folder.iterdir())
    assert (found.path, found.size, found.about, found.held) == (folder, sizes, "a lamp that blinks", "")
    assert abs(found.changed - (folder / "segment_0001.safetensors").stat().st_mtime) < 60
    gone = cleared(found)
    assert (gone.size, gone.held) == (sizes, "") and not folder.exists() and tmp_path.exists()


def test_stores_two_levels_down_take_their_empty_folder_along(tmp_path: Path) -> None:
    store(tmp_path / "unfinished" / "clip" / "one")
    store(tmp_path / "unfinished" / "clip" / "two")
    one, two = stores(tmp_path / "unfinished", "decodes", depth=2)
    cleared(one)
    assert everything(tmp_path / "unfinished")[0] == "clip"
    cleared(two)
    assert everything(tmp_path / "unfinished") == []


def test_a_store_in_use_is_told_and_stays(tmp_path: Path) -> None:
    folder = store(tmp_path / "run")
    (idle,) = stores(tmp_path, "segments")
    lock = FolderLock(folder)
    assert lock.take()
    try:
        before = everything(tmp_path)
        (busy,) = stores(tmp_path, "segments")
        assert busy.held == IN_USE
        # Also one that somebody began to use after it was looked at.
        assert (cleared(busy).size, cleared(busy).held) == (0, IN_USE) == (cleared(idle).size, cleared(idle).held)
        assert everything(tmp_path) == before
    finally:
        lock.release()
    assert cleared(idle).held == "" and not folder.exists()


def test_without_locks_nothing_goes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from opensora.opensora_models.storage import locks

    store(tmp_path / "run")
    monkeypatch.setattr(locks, "try_lock", lambda handle: None)
    monkeypatch.setattr(housekeeping, "try_lock", lambda handle: None)
    before = everything(tmp_path)
    (found,) = stores(tmp_path, "segments")
    assert cleared(found).held == NO_LOCKS and everything(tmp_path) == before


def test_what_is_not_ours_stays(tmp_path: Path) -> None:
    """Files and folders of somebody else in a store, and links out of it."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "treasure").write_text("of somebody else", encoding="utf-8")
    kept = tmp_path / "kept"
    folder = store(kept / "run")
    (folder / "holiday.jpg").write_bytes(b"picture")
    (folder / "check_list.json").write_text("{}", encoding="utf-8")
    (folder / "00001.mp4").mkdir()
    (folder / "segment_0007.safetensors").symlink_to(outside / "treasure")
    (folder / "album").symlink_to(outside)
    (kept / "elsewhere").symlink_to(outside)
    (kept / "note.txt").write_text("mine", encoding="utf-8")
    (found,) = stores(kept, "segments")
    gone = cleared(found)
    assert gone.size >= 2000 and gone.held == NOT_OURS
    left = ["00001.mp4", "album", "check_list.json", "holiday.jpg", "lock"]
    assert sorted(path.name for path in folder.iterdir()) == left
    assert (outside / "treasure").read_text(encoding="utf-8") == "of somebody else"
    assert (kept / "note.txt").is_file() and (kept / "elsewhere").is_symlink()


def test_the_folder_of_all_stores_may_be_a_link_to_another_disk(tmp_path: Path) -> None:
    folder = store(tmp_path / "disk" / "run")
    (tmp_path / "kept").symlink_to(tmp_path / "disk")
    (found,) = stores(tmp_path / "kept", "segments")
    assert cleared(found).held == "" and not folder.exists() and (tmp_path / "kept").is_symlink()


def test_what_cannot_be_read_or_removed_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path / "closed")
    store(tmp_path / "open")
    plain = os.scandir

    def refuse(path: Path) -> object:
        if "closed" in str(path):
            raise PermissionError(13, "Permission denied")
        return plain(path)

    with pytest.MonkeyPatch.context() as closed:
        closed.setattr(os, "scandir", refuse)
        found = {each.path.name: each for each in stores(tmp_path, "segments")}
    assert found["closed"].held == "cannot be read (Permission denied)" and found["open"].held == ""
    assert cleared(found["closed"]).size == 0 and (tmp_path / "closed").is_dir()

    def locked(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    with pytest.MonkeyPatch.context() as closed:
        closed.setattr(os, "unlink", locked)
        assert cleared(found["open"]).held == "cannot be removed (Permission denied)"
    assert cleared(found["open"]).held == "" and not (tmp_path / "open").exists()
    assert list(stores(tmp_path / "nowhere", "segments")) == []


@pytest.mark.parametrize("damage", ["", "[]", '{"about": 5}', '{"about": "' + "x" * 70_000 + '"}', "[" * 20_000, "\0"])
def test_records_that_say_nothing(damage: str, tmp_path: Path) -> None:
    record = tmp_path / "check_x.json"
    record.write_text(damage, encoding="utf-8")
    assert about_in(record) == ""
    record.unlink()
    os.mkfifo(record)
    assert about_in(record) == ""


def test_latents_are_ours_by_their_notes_alone(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    latents = torch.zeros(1, 4, 1, 2, 2)
    save_latent(tmp_path / "video" / "ours_00001_.latent", latents, {"num_frames": 0}, {"prompt": {"1": {}}})
    save_latent(tmp_path / "bare.latent", latents, {}, None)
    save_file({"latent_tensor": latents}, tmp_path / "core.latent", metadata={"prompt": "{}"})
    (tmp_path / "garbage.latent").write_bytes(b"\xff" * 100)
    (tmp_path / "folder.latent").mkdir()
    (tmp_path / "link.latent").symlink_to(tmp_path / "bare.latent")
    (tmp_path / "loop").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "pipe.latent")
    found = {path.relative_to(tmp_path).as_posix(): prompt for path, prompt in kept_latents(tmp_path)}
    assert found == {"video/ours_00001_.latent": '{"1": {}}', "bare.latent": None}


def test_a_file_that_was_written_again_stays(tmp_path: Path) -> None:
    path = tmp_path / "clip.latent"
    path.write_bytes(b"old")
    found = file_of(path, "latents", "")
    assert found is not None and found.size == 3
    path.write_bytes(b"new and longer")
    assert cleared(found).held == "has just been written again" and path.is_file()
    again = file_of(path, "latents", "")
    assert again is not None and cleared(again).size == 14 and not path.exists()
    assert cleared(again).size == 0  # gone meanwhile
    path.symlink_to(tmp_path)
    assert file_of(path, "latents", "") is None
