"""Files are written while the next part is made, one at a time, and what goes wrong there comes out."""

from __future__ import annotations

import logging
import threading
from contextvars import ContextVar
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor

from opensora.opensora_models.sampling import segments
from opensora.opensora_models.sampling.segments import make_segments
from opensora.opensora_models.storage.beside import beside
from opensora.opensora_models.storage.segment_store import SegmentStore

SOON = 30.0
"""Seconds after which a test that would wait for ever fails."""
WHO: ContextVar[str] = ContextVar("who", default="nobody")


class Stopped(BaseException):
    """As ComfyUI's interrupt, no Exception."""


def fail(error: BaseException) -> None:
    raise error


def test_the_work_goes_on_while_a_file_is_written_and_no_second_one_is_begun() -> None:
    made, log = threading.Event(), []

    def first() -> None:
        assert made.wait(SOON), "the work did not go on"
        log.append("first")

    with beside() as writer:
        writer.start(first)
        log.append("made")
        made.set()
        writer.start(lambda: log.append("second"))
    assert log == ["made", "first", "second"]


def test_a_job_sees_what_the_work_sees() -> None:
    seen = []
    WHO.set("the node")
    with torch.inference_mode(), beside() as writer:
        writer.start(lambda: seen.append((WHO.get(), torch.is_inference_mode_enabled(), threading.current_thread())))
    ((who, inference, thread),) = seen
    assert (who, inference) == ("the node", True) and thread is not threading.current_thread()
    assert not thread.is_alive()


@pytest.mark.parametrize("error", [OSError("no space"), Stopped("stop")])
def test_what_a_job_raises_comes_out_at_the_next_one_or_at_the_end(error: BaseException) -> None:
    begun = []
    with pytest.raises(type(error), match=str(error)), beside() as writer:
        writer.start(partial(fail, error))
        writer.start(lambda: begun.append(1))
    assert begun == []
    with pytest.raises(type(error), match=str(error)), beside() as writer:
        writer.start(partial(fail, error))
    with pytest.raises(type(error), match=str(error)), beside() as writer:
        writer.start(partial(fail, error), patience=SOON)
        begun.append(1)
    assert begun == []


def test_an_interrupt_leaves_the_file_whole_that_was_begun(caplog: pytest.LogCaptureFixture) -> None:
    stopping, written = threading.Event(), []

    def write() -> None:
        assert stopping.wait(SOON)
        written.append(1)

    with pytest.raises(Stopped), beside() as writer:
        writer.start(write)
        stopping.set()
        raise Stopped
    assert written == [1]
    with caplog.at_level(logging.WARNING), pytest.raises(Stopped), beside() as writer:
        writer.start(partial(fail, OSError("no space")))
        raise Stopped
    assert "no space" in caplog.text


def test_a_segment_is_stored_while_the_next_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segments, "STORING_SECONDS", 0.0)
    second, save = threading.Event(), SegmentStore.save

    def slow(store: SegmentStore, index: int, latent: Tensor) -> None:
        assert index or second.wait(SOON), "the second segment waited for the first one's file"
        save(store, index, latent)

    def make(index: int, before: Tensor | None) -> Tensor:
        if index:
            second.set()
        return torch.full((1, 4, 5, 2, 2), float(index))

    monkeypatch.setattr(SegmentStore, "save", slow)
    clips = make_segments(3, make, SegmentStore(tmp_path / "run", "run"), overlap=1)
    stored = SegmentStore(tmp_path / "run", "run")
    assert all(torch.equal(clip, stored.load(index)) for index, clip in enumerate(clips)) and len(clips) == 3


def test_a_full_disk_stops_a_long_video_before_its_next_segment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []

    def make(index: int, before: Tensor | None) -> Tensor:
        made.append(index)
        return torch.zeros(1, 4, 5, 2, 2)

    monkeypatch.setattr(SegmentStore, "save", lambda *_: fail(OSError("no space")))
    with pytest.raises(OSError, match="no space"):
        make_segments(3, make, SegmentStore(tmp_path / "run", "run"), overlap=1)
    assert made == [0]
