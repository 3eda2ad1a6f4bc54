"""Open-Sora Stored Work: what is kept is shown with what it belongs to, and cleared only when a person says so."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import pytest

from support.comfyui import Executor
from support.graphs import node

pytestmark = pytest.mark.comfy

WORDS = "a lamp that blinks"
LIST = {"what": "everything", "older_than": 0.0, "containing": "", "action": "only list"}


class Kept:
    """An output folder with something of each kind in it, made by the nodes' own functions."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        import folder_paths

        from opensora.opensora_models.native import stored
        from opensora.opensora_models.storage.segment_store import SegmentStore

        self.folder, self.native = folder, stored
        (folder / "user").mkdir()
        monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(folder / "output"))
        monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(folder / "user"))
        monkeypatch.setattr(folder_paths, "get_public_user_directory", lambda user: str(folder / "user" / user))
        import torch

        from opensora.opensora_models.vae.latent_file import save_latent
        from opensora.opensora_models.vae.video_file import FORMATS, GroupedVideo, exact_rate

        graph = {"1": {"inputs": {"positive": ["2", 0]}}, "2": {"inputs": {"text": WORDS}}}
        output = folder / "output"
        latents = torch.zeros(1, 4, 1, 2, 2)
        self.latents = output / "latents" / "clip_00001_.latent"
        save_latent(self.latents, latents, {}, {"prompt": graph})
        self.segments = output / "opensora_segments" / "0123456789abcdef"
        SegmentStore(self.segments, "run", about=WORDS).save(0, latents)
        self.video = output / "opensora_unfinished" / "clip" / "settings"
        video = GroupedVideo(self.video, FORMATS["mp4 (h264)"], exact_rate(24), 18, about="another")
        video.write(0, torch.zeros(2, 32, 32, 3))
        (output / "video.mp4").write_bytes(b"finished")
        (output / "core.latent").write_bytes(b"of another node")

    def everything(self) -> list[str]:
        output = self.folder / "output"
        return sorted(path.relative_to(output).as_posix() for path in output.rglob("*") if path.is_file())

    def set(self, value: Any) -> None:
        file = self.folder / "user" / "default" / "comfy.settings.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps({"Comfy.Locale": "en", "OpenSora.Stored.KeepDays": value}), encoding="utf-8")

    def age(self, path: Path, days: float) -> None:
        then = time.time() - days * 24 * 3600
        for each in [path, *path.rglob("*")] if path.is_dir() else [path]:
            os.utime(each, (then, then))


@pytest.fixture
def kept(comfy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kept:
    return Kept(tmp_path, monkeypatch)


def test_the_node_lists_by_default_and_clears_what_was_chosen(kept: Kept, executor: Executor) -> None:
    before = kept.everything()
    report, size = executor.run({"stored": node("OSoraStored", **LIST)}, ("stored", 0), ("stored", 1))
    assert kept.everything() == before
    lines = report.splitlines()
    assert len(lines) == 4 and lines[0].startswith("3 kept, ") and "stays until it is cleared" in lines[0]
    for path, about in ((kept.segments, WORDS), (kept.video, "another"), (kept.latents, WORDS)):
        (line,) = [line for line in lines if path.relative_to(kept.folder / "output").as_posix() in line]
        assert line.endswith(f": {about}") and "0 minutes old" in line
    assert size == sum(path.stat().st_size for each in (kept.segments, kept.video) for path in each.iterdir()) + (
        kept.latents.stat().st_size
    )

    chosen = LIST | {"what": "saved latents", "action": "clear"}
    report, _ = executor.run({"stored": node("OSoraStored", **chosen)}, ("stored", 0), ("stored", 1))
    assert report.startswith("1 of 1 removed, ") and not kept.latents.exists()
    assert kept.segments.exists() and kept.video.exists()
    # The same graph again: it looks anew.
    report, size = executor.run({"stored": node("OSoraStored", **chosen)}, ("stored", 0), ("stored", 1))
    assert report.startswith("0 of 0 removed, 0 bytes") and size == 0


def test_choices_narrow_what_goes(kept: Kept) -> None:
    native = kept.native
    kept.age(kept.segments, 10)
    names = lambda choice: [each.path for each in native.kept(choice)]  # noqa: E731
    assert names(native.Choice(older_than=9.5)) == [kept.segments]
    assert names(native.Choice(older_than=10.5)) == []
    assert set(names(native.Choice(containing=" A LAMP "))) == {kept.segments, kept.latents}
    assert names(native.Choice(containing="opensora_unfinished/clip")) == [kept.video]
    assert names(native.Choice(kind=native.DECODES, containing="lamp")) == []
    native.housekeeping(native.Choice(native.SEGMENTS), clear=True)
    native.housekeeping(native.Choice(native.DECODES), clear=True)
    assert kept.everything() == ["core.latent", "latents/clip_00001_.latent", "video.mp4"]


def test_what_is_in_use_is_said(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    from opensora.opensora_models.storage.locks import one_writer

    caplog.set_level("INFO", "opensora")
    with one_writer(kept.segments):
        report, _ = kept.native.housekeeping(kept.native.Choice(), clear=True)
    assert report.startswith("2 of 3 removed, ") and "(is in use and stays)" in report and kept.segments.exists()
    (line,) = [line for line in report.splitlines() if kept.segments.name in line]
    assert line in caplog.text and caplog.text.index(line) < caplog.text.index(kept.latents.name)


@pytest.mark.parametrize("value", [0, None, "ten", -1, True, float("nan"), float("inf"), [1], 1e400])
def test_nothing_goes_by_itself_unless_it_is_set(value: Any, kept: Kept) -> None:
    kept.age(kept.segments, 1e4)
    before = kept.everything()
    kept.native.remove_expired()  # no settings at all
    kept.set(value)
    kept.native.remove_expired()
    assert kept.everything() == before


def test_what_is_older_than_the_setting_goes_and_the_log_says_so(kept: Kept, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "opensora")
    kept.set(7)
    kept.age(kept.segments, 8)
    kept.age(kept.latents, 6)
    kept.native.remove_expired()
    assert not kept.segments.exists() and kept.video.exists() and kept.latents.exists()
    removed = [line.getMessage() for line in caplog.records if "Removed" in line.getMessage()]
    assert (
        len(removed) == 1 and f"opensora_segments/{kept.segments.name}" in removed[0] and removed[0].endswith(" bytes.")
    )
    report, _ = kept.native.housekeeping(kept.native.Choice(), clear=False)
    assert "goes 7 days after it was last changed" in report


@pytest.mark.parametrize(
    ("graph", "words"),
    [
        ({"1": {"inputs": {"text": "first"}}, "2": {"inputs": {"text": "second"}}}, "first"),
        ({"1": {"inputs": {"text": "bad"}}, "2": {"inputs": {"prompt": "good"}},
          "3": {"inputs": {"positive": ["4", 0]}}, "4": {"inputs": {"text": ["2", 0], "clip": ["1", 0]}}}, "good"),
        ({"1": {"inputs": {"positive": ["1", 0], "a": ["2", 0]}}, "2": {"inputs": {"b": ["1", 0]}}}, ""),
        ({"1": {"inputs": {"positive": [{}, 0], "text": 5}}, "2": None, "3": {"inputs": []}}, ""),
        (None, ""), ([], ""), ("text", ""), ({}, ""),
    ],
)  # fmt: skip
def test_the_prompt_of_a_graph(graph: Any, words: str, comfy: Path) -> None:
    from opensora.opensora_models.native.graph_words import words_of

    assert words_of({"prompt": graph}) == words and words_of(None) == ""
