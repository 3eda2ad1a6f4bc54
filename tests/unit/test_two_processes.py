"""Two processes on one folder: both end right, nobody takes or removes what the other works on."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from opensora.opensora_models.storage import locks, temporary
from opensora.opensora_models.storage.failures import CannotStore
from opensora.opensora_models.storage.locks import FolderLock, one_writer, remove_if_idle
from opensora.opensora_models.storage.temporary import LOCK
from opensora.opensora_models.vae.video_file import FORMATS, GroupedVideo, VideoJob, exact_rate, unfinished_videos
from support.damage import ANYWHERE
from support.processes import output, python

pytestmark = pytest.mark.skipif(os.name == "nt", reason="signals and damages of Unix")

WORK = """
sys.path.insert(0, sys.argv[1])
import time
from pathlib import Path
import test_two_processes as here
number = sys.argv[3]
for task in here.TASKS:
    folder = Path(sys.argv[2]) / task
    (folder / f"ready{number}").touch()
    while len(list(folder.glob("ready*"))) < 2:
        time.sleep(0.002)
    print(task, getattr(here, task)(folder, number), flush=True)
"""
COUNT = 3
TASKS = ("counted", "long_video", "decoded", "long_video_without_locks", "decoded_without_locks")
"""What both processes do, each beginning at the same moment in both."""


def without_locks() -> None:
    """As where nothing can be locked."""
    from opensora.opensora_models.storage import locks, writing

    locks.try_lock = writing.try_lock = lambda handle: None


def long_video(folder: Path, number: str) -> str:
    from test_damaged_stores import segments

    with one_writer(folder / "store" / "run", waiting=lambda: None):
        result, made = segments(folder / "store")
        time.sleep(0.3)
    return f"{made} {hash_of(result)}"


def decoded(folder: Path, number: str) -> str:
    """A video of parts, as the node makes it."""
    latents = torch.zeros(1, 4, 5, 2, 2)
    job = VideoJob.of(folder / "unfinished", latents, "same")
    made = 0
    with one_writer(job.parts, 2):
        for _ in range(20):
            video = GroupedVideo(job.parts, FORMATS["mp4 (h264)"], exact_rate(24), 18, job.clip)
            for part in video.missing(COUNT):
                video.write(part, torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(part)))
                made += 1
                time.sleep(0.1)
            try:
                video.join(COUNT, folder / f"video{number}.mp4", None)
                break
            except Exception as error:
                if type(error).__name__ != "PartsMissing":
                    raise
    job.finish()
    return f"{made} {hash_of((folder / f'video{number}.mp4').read_bytes())}"


def long_video_without_locks(folder: Path, number: str) -> str:
    without_locks()
    return long_video(folder, number)


def decoded_without_locks(folder: Path, number: str) -> str:
    without_locks()
    return decoded(folder, number)


def counted(folder: Path, number: str) -> str:
    """Twenty files under the next free number, as ComfyUI counts."""
    from opensora.opensora_models.storage.writing import write_new

    (folder / "out").mkdir(exist_ok=True)

    def choose() -> Path:
        taken = [int(path.name) for path in (folder / "out").iterdir() if path.name.isdigit()]
        return folder / "out" / f"{max(taken, default=0) + 1:05}"

    def write(count: int) -> str:
        return write_new(choose, lambda path: path.write_text(f"{number} {count}")).name

    return " ".join(write(count) for count in range(20))


def hash_of(data: bytes) -> str:
    import hashlib

    return hashlib.sha256(data).hexdigest()[:16]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[list[str]]]]:
    """The folders of the tasks, and what the two processes said of each."""
    folder = tmp_path_factory.mktemp("both")
    for task in TASKS:
        (folder / task).mkdir()
    started = [python(WORK, Path(__file__).parent, folder, number) for number in (1, 2)]
    said: dict[str, list[list[str]]] = {task: [] for task in TASKS}
    for process in started:
        for line in output(process).splitlines():
            task, *words = line.split()
            said[task].append(words)
    return folder, said


def test_one_waits_and_takes_what_the_other_has_made(both: Any) -> None:
    (made, one), (again, other) = both[1]["long_video"]
    assert one == other and sorted([made, again]) == ["0", "3"]


def test_a_video_is_decoded_once_and_joined_twice(both: Any) -> None:
    (made, one), (again, other) = both[1]["decoded"]
    assert one == other and sorted([made, again]) == ["0", "3"]
    assert list((both[0] / "decoded" / "unfinished").iterdir()) == []


@pytest.mark.parametrize("task", ["long_video_without_locks", "decoded_without_locks"])
def test_without_locks_both_work_and_both_end_right(task: str, both: Any) -> None:
    (made, one), (again, other) = both[1][task]
    assert one == other == both[1][task.removesuffix("_without_locks")][0][1]
    assert int(made) + int(again) >= COUNT
    assert not list((both[0] / task).rglob(".opensora-*"))


def test_two_never_write_the_same_name(both: Any) -> None:
    first, second = both[1]["counted"]
    out = both[0] / "counted" / "out"
    assert len({*first, *second}) == 40
    assert sorted(path.name for path in out.iterdir()) == sorted(first + second)
    for names in (first, second):
        texts = [(out / name).read_text().split() for name in names]
        assert len({number for number, _ in texts}) == 1 and [int(count) for _, count in texts] == list(range(20))


HOLD = """
import time
from pathlib import Path
from opensora.opensora_models.storage.locks import one_writer
with one_writer(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that works in ``tmp_path / "run"``."""
    process = python(HOLD, tmp_path / "run")
    assert process.stdout is not None and process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_folder_somebody_works_in_stays_and_is_free_when_he_dies(
    holder: subprocess.Popen[str], tmp_path: Path
) -> None:
    said: list[str] = []
    polls = 0

    def kill_after_a_while() -> None:
        nonlocal polls
        polls += 1
        if polls == 2:
            holder.kill()
            holder.wait()

    assert not remove_if_idle(tmp_path / "run") and (tmp_path / "run" / LOCK).exists()
    with one_writer(tmp_path / "run", waiting=kill_after_a_while, tell=said.append):
        assert polls >= 2
        assert len(said) == 1 and "waiting until it has finished" in said[0] and str(tmp_path / "run") in said[0]
        assert not FolderLock(tmp_path / "run").take()
    assert remove_if_idle(tmp_path / "run") and not (tmp_path / "run").exists()


def test_waiting_can_be_interrupted(holder: subprocess.Popen[str], tmp_path: Path) -> None:
    def stop() -> None:
        raise InterruptedError("stopped by a person")

    with pytest.raises(InterruptedError, match="^stopped by a person$"), one_writer(tmp_path / "run", waiting=stop):
        raise AssertionError("it is held")


def test_a_finished_video_leaves_those_that_others_work_on(tmp_path: Path) -> None:
    latents = torch.zeros(1, 4, 5, 2, 2)
    mine, his, idle = (VideoJob.of(tmp_path, latents, settings) for settings in ("mine", "his", "idle"))
    for job in (mine, his, idle):
        GroupedVideo(job.parts, FORMATS["mp4 (h264)"], exact_rate(24), 18).part(0).write_bytes(b"12345")
    process = python(HOLD, his.parts)
    try:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        mine.finish()
        assert (his.parts / "00000.mp4").read_bytes() == b"12345"
        assert not mine.parts.exists() and not idle.parts.exists()
        assert unfinished_videos(tmp_path) == (1, 5)
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("damage", ANYWHERE)
def test_whatever_lies_in_the_place_of_the_lock(damage: str, tmp_path: Path) -> None:
    outside, folder = tmp_path / "outside", tmp_path / "store" / "run"
    outside.mkdir()
    with one_writer(folder):
        (folder / "piece").touch()
    ANYWHERE[damage](folder / LOCK, outside)
    left = sorted(path.name for path in outside.iterdir())
    for _ in range(2):
        with one_writer(folder):
            assert not FolderLock(folder).take(), "it is locked"
            assert (folder / LOCK).is_file() and not (folder / LOCK).is_symlink()
    assert sorted(path.name for path in outside.iterdir()) == left


def test_a_lock_that_was_removed_by_its_holder_is_made_again(tmp_path: Path) -> None:
    first, second = FolderLock(tmp_path / "run"), FolderLock(tmp_path / "run")
    assert first.take() and not second.take()
    shutil.rmtree(tmp_path / "run")
    assert second.take() and (tmp_path / "run" / LOCK).exists()
    first.release()
    assert not FolderLock(tmp_path / "run").take()
    second.release()


def test_a_disk_without_locks_lets_everybody_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(*args: object) -> None:
        raise OSError(errno.ENOLCK, "no locks")

    assert temporary.fcntl is not None
    monkeypatch.setattr(temporary.fcntl, "flock", refused)
    with one_writer(tmp_path / "run"), one_writer(tmp_path / "run"):
        assert not remove_if_idle(tmp_path / "run"), "somebody may work there"
    assert remove_if_idle(tmp_path / "run", ours=True)


def test_a_disk_without_locks_is_locked_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, real = tmp_path / "far" / "run", locks.try_lock

    def only_near(handle: int) -> bool | None:
        far = os.path.samestat(os.fstat(handle), os.stat(folder / LOCK))
        return None if far else real(handle)

    monkeypatch.setattr(locks, "try_lock", only_near)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(locks.tempfile, "tempdir", None)
    with one_writer(folder):
        assert not FolderLock(folder).take() and not remove_if_idle(folder)
    assert FolderLock(folder).take()


def test_where_nothing_was_stored_nothing_is_left(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), one_writer(tmp_path / "store" / "clip" / "settings", 2):
        raise KeyboardInterrupt
    assert list((tmp_path / "store").iterdir()) == []
    with one_writer(tmp_path / "store" / "clip" / "settings", 2):
        (tmp_path / "store" / "clip" / "settings" / "piece").touch()
    assert len(list((tmp_path / "store" / "clip" / "settings").iterdir())) == 2


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(CannotStore, match="too long"), one_writer(tmp_path / ("x" * 300)):
        raise AssertionError("it cannot be")
