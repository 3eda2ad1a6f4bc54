"""Every writer of the pack: all or nothing, one sentence for what the disk refuses, nothing left behind."""

from __future__ import annotations

import ast
import errno
import itertools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file as safetensors_save

from opensora.opensora_models.sampling.segments import SegmentStore
from opensora.opensora_models.storage import writing
from opensora.opensora_models.storage.failures import REASONS, CannotStore
from opensora.opensora_models.storage.tensors import CHECKSUM
from opensora.opensora_models.storage.writing import write_new, write_whole
from opensora.opensora_models.text.conditioning_file import load_conditioning, save_conditioning, save_new_conditioning
from opensora.opensora_models.vae.latent_file import load_latent, save_latent, save_new_latent
from opensora.opensora_models.vae.video_file import FORMATS, GroupedVideo, exact_rate
from support.pack import PACK_ROOT
from support.processes import output, python

NUMBER = itertools.count()
LATENT = torch.zeros(1, 4, 5, 16, 16)
CONDITIONING = {"positive": [[torch.zeros(1, 64, 64), {}]]}
FRAMES = torch.rand(2, 64, 64, 3, generator=torch.Generator().manual_seed(0))


def video(folder: Path, form: str = "mp4 (h264)", parts: int = 1) -> GroupedVideo:
    made = GroupedVideo(folder / "parts", FORMATS[form], exact_rate(24), 0)
    for number in made.missing(parts):
        made.write(number, FRAMES)
    return made


WRITERS: dict[str, Callable[[Path], object]] = {
    "latent": lambda folder: save_latent(folder / "a.latent", LATENT, {}, None),
    "new latent": lambda folder: save_new_latent(lambda: folder / f"{next(NUMBER)}.latent", LATENT, {}, None),
    "conditioning": lambda folder: save_conditioning(folder / "a.conditioning", CONDITIONING),
    "new conditioning": lambda folder: save_new_conditioning(
        lambda: folder / f"{next(NUMBER)}.conditioning", CONDITIONING
    ),
    "segment": lambda folder: SegmentStore(folder / "run", "run").save(0, LATENT),
    "part of an mp4": lambda folder: video(folder / "mp4"),
    "part of a webm": lambda folder: video(folder / "webm", "webm (vp9)"),
    "joined mp4": lambda folder: video(folder / "both").join(1, folder / "a.mp4", {"prompt": {}}),
    "new joined mp4": lambda folder: video(folder / "both").join_new(1, lambda: folder / f"{next(NUMBER)}.mp4", None),
    "joined webm": lambda folder: video(folder / "webm", "webm (vp9)").join(1, folder / "a.webm", None),
}
CALLS = ("open", "fsync", "replace", "link", "mkdir")
FAULTS = [number for name in ("ENOSPC", "EROFS", "EACCES", "EIO", "EDQUOT") if (number := getattr(errno, name, None))]


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def open_files(folder: Path) -> list[str]:
    """Files below ``folder`` that this process has open, where the system tells."""
    handles = Path("/proc/self/fd")
    if not handles.is_dir():
        return []
    found = [os.readlink(handles / name) for name in os.listdir(handles) if os.path.lexists(handles / name)]
    return [name for name in found if name.startswith(str(folder))]


def is_one_sentence(error: BaseException, folder: Path) -> None:
    text = str(error)
    assert isinstance(error, ValueError) and isinstance(error, OSError)
    assert text.startswith(f"'{folder}") and text.endswith(".") and "\n" not in text and "Errno" not in text
    assert re.search(r"cannot be written: .+; .+", text)


def prepare(writer: str, folder: Path) -> set[str]:
    """Make what a writer reads; gives the files that are there."""
    if "joined" in writer:
        video(folder / "both")
        video(folder / "webm", "webm (vp9)")
    return files_in(folder) if folder.exists() else set()


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("writer", WRITERS)
def test_a_failing_disk_is_one_sentence_and_leaves_nothing(
    writer: str, call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(os, call)
    for number in FAULTS:
        folder, failed = tmp_path / str(number), []
        before = prepare(writer, folder)

        def fail(path: object, *args: Any, number: int = number, failed: list[object] = failed, **kwargs: Any) -> Any:
            elsewhere = not isinstance(path, int) and not str(path).startswith(str(tmp_path))
            if elsewhere or (call == "open" and not args[0] & os.O_CREAT):
                return real(path, *args, **kwargs)
            failed.append(path)
            raise OSError(number, os.strerror(number))

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            try:
                WRITERS[writer](folder)
            except OSError as error:
                is_one_sentence(error, tmp_path)
                assert REASONS[number][0] in str(error)
                assert files_in(folder) == before if folder.exists() else not before
            else:
                # Its folders were there; or without hard links there is another way.
                assert not failed or call == "mkdir" and before or (call, number) == ("link", errno.EACCES)
        assert failed or call in ("link", "replace", "mkdir")
        assert open_files(tmp_path) == []
        WRITERS[writer](folder)


LIMITED = """
import resource, signal
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import test_writing as here
folder, writer = Path(sys.argv[2]), None
for name, writer in here.WRITERS.items():
    for free in (0, 5000, 9000):
        place = folder / f"{name} {free}"
        before = here.prepare(name, place)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (free, resource.RLIM_INFINITY))
        try:
            writer(place)
            print("no error:", name, free)
        except Exception as error:
            here.is_one_sentence(error, folder)
            print("said:", error)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        left = here.files_in(place) - before if place.exists() else set()
        assert not left, (name, free, left)
        assert here.open_files(folder) == [], (name, free, here.open_files(folder))
"""


@pytest.mark.skipif(os.name == "nt", reason="limits of Unix")
def test_files_that_stop_growing_in_the_middle_are_taken_back(tmp_path: Path) -> None:
    """A real write that fails, inside PyAV too, where no function of Python could be made to fail."""
    said = output(python(LIMITED, Path(__file__).parent, tmp_path)).splitlines()
    assert len([line for line in said if line.startswith("said:")]) == 3 * len(WRITERS), said
    assert all("larger than the file system or a limit allows" in line for line in said)


@pytest.mark.parametrize("writer", WRITERS)
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("a\0b", "NUL"),
        ("x" * 300, "too long"),
        ("\ud800", "no file can have|cannot be written"),
        ("file/below", "is no folder"),
    ],
    ids=["NUL", "long", "half a character", "file above"],
)
def test_names_that_cannot_be(writer: str, name: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    folder = tmp_path / name
    if name == "\ud800" and os.fsencode("\ud800" if os.name == "nt" else ""):
        pytest.skip("such a name can be there")
    with pytest.raises(CannotStore, match=words) as raised:
        WRITERS[writer](folder)
    assert str(raised.value).encode() and "\n" not in str(raised.value) and "\0" not in str(raised.value)
    assert files_in(tmp_path) == {"file"}


def test_an_error_in_between_leaves_the_old_file(tmp_path: Path) -> None:
    target = tmp_path / "a"
    target.write_bytes(b"old")

    def interrupted(path: Path) -> None:
        path.write_bytes(b"half")
        raise KeyboardInterrupt

    for call in (write_whole, lambda path, write: write_new(lambda: path, write)):
        with pytest.raises(KeyboardInterrupt):
            call(target, interrupted)
    assert target.read_bytes() == b"old" and files_in(tmp_path) == {"a"}


def test_errors_that_are_not_the_disks_stay_what_they_are(tmp_path: Path) -> None:
    def wrong(path: Path) -> None:
        raise ValueError("something else")

    with pytest.raises(ValueError, match="^something else$"):
        write_whole(tmp_path / "a", wrong)


@pytest.mark.parametrize("links", [True, False])
def test_a_new_file_never_takes_the_place_of_another(
    links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not links:

        def refused(*args: object, **kwargs: object) -> None:
            raise OSError(errno.EPERM, "no hard links")

        monkeypatch.setattr(os, "link", refused)
    (tmp_path / "1").write_bytes(b"of another")
    (tmp_path / "2").symlink_to(tmp_path / "nowhere")
    names = iter("123")
    written = write_new(lambda: tmp_path / next(names), lambda path: path.write_bytes(b"mine"))
    assert written.name == "3" and written.read_bytes() == b"mine"
    assert (tmp_path / "1").read_bytes() == b"of another" and not (tmp_path / "nowhere").exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["1", "2", "3"]


def test_the_disk_is_reached_before_the_name_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    for call in ("fsync", "replace", "link"):
        real = getattr(os, call)
        monkeypatch.setattr(os, call, lambda *args, call=call, real=real: (order.append(call), real(*args))[1])
    write_whole(tmp_path / "a", lambda path: path.write_bytes(b"x"))
    write_new(lambda: tmp_path / "b", lambda path: path.write_bytes(b"x"))
    assert order[:2] == ["fsync", "replace"] and order[3:5] == ["fsync", "link"]


HALF = """
import time
from pathlib import Path
from opensora.opensora_models.storage.writing import write_whole
folder = Path(sys.argv[1])
def slow(path):
    path.write_bytes(b"half")
    print(path.name, flush=True)
    time.sleep(60)
write_whole(folder / "a", slow)
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of Unix")
def test_what_a_dead_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    living, dead = (python(HALF, tmp_path) for _ in range(2))
    try:
        assert living.stdout is not None and dead.stdout is not None
        names = living.stdout.readline().strip(), dead.stdout.readline().strip()
        dead.kill()
        dead.wait()
        os.mkfifo(tmp_path / f"{writing.PRIVATE}pipe{writing.PART}")
        (tmp_path / f"{writing.PRIVATE}of a person").write_bytes(b"no ending of ours")
        assert set(names) <= files_in(tmp_path)
        write_whole(tmp_path / "b", lambda path: path.write_bytes(b"x"))
        assert {path.name for path in tmp_path.iterdir()} == {names[0], "b", f"{writing.PRIVATE}of a person"}
    finally:
        living.kill()
        living.wait()


@pytest.mark.parametrize("kind", ["latent", "conditioning"])
def test_saved_files_prove_themselves(kind: str, tmp_path: Path) -> None:
    save_latent(tmp_path / "a.latent", torch.randn(1, 4, 5, 2, 2), {"num_frames": 17}, {"prompt": {"1": {}}})
    save_conditioning(tmp_path / "a.conditioning", CONDITIONING, "note")
    path, read = tmp_path / f"a.{kind}", {"latent": load_latent, "conditioning": load_conditioning}[kind]
    read(path)
    data = path.read_bytes()
    for place in (len(data) - 1, len(data) - 5):  # a bit of a value; the header is checked by its own rules
        path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
        with pytest.raises(ValueError, match=f"'a.{kind}' cannot be used: its content does not match its checksum"):
            read(path)
    with safe_open(str(path), "pt") as file:
        tensors, metadata = {key: file.get_tensor(key) for key in file.keys()}, dict(file.metadata())  # noqa: SIM118
    for notes in ({**metadata, "other": "text"}, {key: text.replace("17", "16") for key, text in metadata.items()}):
        if notes != metadata:
            safetensors_save(tensors, path, metadata=notes)
            with pytest.raises(ValueError, match="checksum"):
                read(path)
    metadata.pop(CHECKSUM)
    safetensors_save(tensors, path, metadata=metadata)
    read(path)  # files of older versions and of other programs have none


WRITING = re.compile(
    r"\.(write_bytes|write_text|mkdir|touch|unlink|rmtree|rename|symlink_to|makedirs|mkdtemp|truncate)\(|"
    r"\bos\.(replace|link|remove|open)\(|\bshutil\.|\btempfile\.|from safetensors\.torch import .*\bsave_file"
)


def test_everything_is_written_through_the_storage_room() -> None:
    """Whatever writes a file does it by ``write_whole``, ``write_new`` or ``Pieces``."""
    seen: list[str] = []
    for path in sorted((PACK_ROOT / "opensora_models").rglob("*.py")) + sorted((PACK_ROOT / "nodes").rglob("*.py")):
        if "storage" in path.parts:
            continue
        source = path.read_text(encoding="utf-8")
        assert not WRITING.search(source), f"{path.name}: {WRITING.search(source)}"
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).split(".")[-1] in ("open", "fdopen"):
                modes = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
                if any(isinstance(mode, str) and set("wax+") & set(mode) and len(mode) < 4 for mode in modes):
                    seen.append(path.name)
    pipe, film = ["worker.py"], ["video_file.py"] * 2
    assert seen == pipe + film, "an end of a pipe; the file and the container of a video, inside functions of the room"
