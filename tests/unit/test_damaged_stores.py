"""Whatever lies in a store instead of its pieces: the result is that of a run without it, nothing has to be tidied."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import av
import pytest
import torch
from torch import Tensor

from opensora.opensora_models.sampling.segments import SegmentStore, make_segments
from opensora.opensora_models.vae.video_file import FORMATS, GroupedVideo, exact_rate
from support.damage import ANYWHERE, IN_FILES

pytestmark = pytest.mark.skipif(os.name == "nt", reason="pipes, sockets and links of Unix")

COUNT = 3
SECONDS = 20
FORM = FORMATS["mp4 (h264)"]


@contextmanager
def in_time() -> Iterator[None]:
    """A pipe would be waited for for ever."""

    def late(*args: object) -> None:
        raise AssertionError(f"not done after {SECONDS} seconds")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def segment(index: int, before: Tensor | None) -> Tensor:
    return torch.randn(1, 4, 5, 2, 2, generator=torch.Generator().manual_seed(index))


def segments(folder: Path) -> tuple[bytes, int]:
    """A long video: what it looks like, and how many pieces were made."""
    made: list[int] = []

    def make(index: int, before: Tensor | None) -> Tensor:
        made.append(index)
        return segment(index, before)

    clips = make_segments(COUNT, make, SegmentStore(folder / "run", "run"), overlap=2)
    return b"".join(clip.numpy().tobytes() for clip in clips), len(made)


def video(folder: Path) -> tuple[bytes, int]:
    """A video decoded by parts: what it looks like, and how many parts were made."""
    parts = GroupedVideo(folder / "run", FORM, exact_rate(24), 18)
    missing = parts.missing(COUNT)
    for number in missing:
        parts.write(number, torch.rand(3, 32, 32, 3, generator=torch.Generator().manual_seed(number)))
    target = folder / "joined.mp4"
    parts.join(COUNT, target, None)
    with av.open(str(target)) as file:
        frames = b"".join(frame.to_ndarray(format="rgb24").tobytes() for frame in file.decode(video=0))
    target.unlink()
    return frames, len(missing)


KINDS: dict[str, Callable[[Path], tuple[bytes, int]]] = {"segments": segments, "video": video}


@pytest.fixture(scope="module", params=KINDS)
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, bytes]:
    """Kind of pieces, a folder with a finished store, and the result."""
    folder = tmp_path_factory.mktemp("whole")
    result, made = KINDS[request.param](folder)
    assert made == COUNT
    return request.param, folder, result


def check(kind: str, folder: Path, outside: Path, result: bytes) -> int:
    """Run over the damage, and again; gives how many pieces the first run made."""
    treasure = outside / "treasure"
    treasure.write_bytes(b"of somebody else")
    before = sorted(path.name for path in outside.iterdir())
    with in_time():
        again, made = KINDS[kind](folder)
    assert again == result
    assert KINDS[kind](folder) == (result, 0), "the store is whole again"
    assert sorted(path.name for path in outside.iterdir()) == before, "links are not followed out"
    assert treasure.read_bytes() == b"of somebody else"
    names = [path.name for path in (folder / "run").rglob("*")]
    assert not [name for name in names if name.startswith(".opensora-") or "unfinished" in name]
    return made


@pytest.mark.parametrize("damage", IN_FILES)
def test_a_damaged_file_is_made_again(damage: str, whole: tuple[str, Path, bytes], tmp_path: Path) -> None:
    kind, good, result = whole
    outside, folder = tmp_path / "outside", tmp_path / "store"
    second = sorted(path.name for path in (good / "run").iterdir() if not path.name.startswith("check_"))[1]
    for name in (second, f"check_{second}.json"):
        shutil.rmtree(outside, ignore_errors=True)
        shutil.rmtree(folder, ignore_errors=True)
        outside.mkdir()
        shutil.copytree(good, folder)
        IN_FILES[damage](folder / "run" / name, outside)
        assert 1 <= check(kind, folder, outside, result) <= 2, name


@pytest.mark.parametrize("damage", [name for name in ANYWHERE if name != "link away"])
def test_something_in_the_place_of_the_folder(damage: str, whole: tuple[str, Path, bytes], tmp_path: Path) -> None:
    kind, good, result = whole
    outside, folder = tmp_path / "outside", tmp_path / "store"
    outside.mkdir()
    shutil.copytree(good, folder)
    ANYWHERE[damage](folder / "run", outside)
    assert check(kind, folder, outside, result) == COUNT


def test_a_folder_that_is_a_link_is_not_followed(whole: tuple[str, Path, bytes], tmp_path: Path) -> None:
    kind, good, result = whole
    outside, folder = tmp_path / "outside", tmp_path / "store"
    shutil.copytree(good / "run", outside)
    folder.mkdir()
    (folder / "run").symlink_to(outside)
    assert check(kind, folder, outside, result) == COUNT


def test_a_file_in_the_place_of_the_folder_above_is_moved_aside(whole: tuple[str, Path, bytes], tmp_path: Path) -> None:
    kind, _, result = whole
    (tmp_path / "store").write_bytes(b"notes of a person")
    (tmp_path / "outside").mkdir()
    assert check(kind, tmp_path / "store", tmp_path / "outside", result) == COUNT
    assert (tmp_path / "store.moved-1").read_bytes() == b"notes of a person"


def test_pieces_of_another_run_are_not_taken(whole: tuple[str, Path, bytes], tmp_path: Path) -> None:
    kind, good, result = whole
    folder = tmp_path / "store"
    shutil.copytree(good, folder)
    if kind == "segments":
        other = SegmentStore(folder / "run", "another run")
        assert [other.load(index) for index in range(COUNT)] == [None] * COUNT
    else:
        other = GroupedVideo(folder / "run", FORM, exact_rate(24), 19)
        assert other.missing(COUNT) == list(range(COUNT))
    assert KINDS[kind](folder) == (result, COUNT)


def test_one_line_tells_what_was_wrong(
    whole: tuple[str, Path, bytes], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kind, good, _ = whole
    shutil.copytree(good, tmp_path / "store")
    place = next(
        path for path in sorted((tmp_path / "store" / "run").iterdir()) if path.name.startswith(("seg", "000"))
    )
    place.write_bytes(place.read_bytes()[:-1])
    caplog.clear()
    KINDS[kind](tmp_path / "store")
    said = [record.getMessage() for record in caplog.records if "made again" in record.getMessage()]
    assert len(said) == 1 and f"'{place.name}'" in said[0] and "another length" in said[0]
