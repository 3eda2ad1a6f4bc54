"""Every shipped workflow, queued through the API on the real server: the video it leaves is the one it promises."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from opensora.training.reading import read_clip
from support.videos import frames_and_rate
from support.workflows import api_workflows, page_workflows, read, released_workflows, to_api

if TYPE_CHECKING:
    from support.server import TestServer

pytestmark = [pytest.mark.server]


@dataclass(frozen=True)
class Part:
    """What the frames first…last of a video show; None: not said by the prompt."""

    first: int
    last: int
    colour: str
    motion: str | None = None
    shape: str | None = None


CLIP = (Part(0, 16, "red", "right"),)
VIDEOS: dict[str, tuple[int, tuple[Part, ...]]] = {
    "Open-Sora 01 Text to video": (17, CLIP),
    "Open-Sora 02 Image to video": (17, CLIP),
    "Open-Sora 10 First and last frame": (34, (Part(0, 33, "red", "right"),)),
    "Open-Sora 11 Keyframes": (51, (Part(0, 50, "red"),)),
    "Open-Sora 20 Extend video": (
        34,
        (Part(0, 16, "red", "right"), Part(17, 33, "red", shape="square"), Part(0, 33, "red", "right", "square")),
    ),
    "Open-Sora 22 Connect two clips": (51, (Part(0, 16, "red", "right"), Part(34, 50, "blue", "left"))),
    "Open-Sora 23 Edit video": (17, (Part(0, 16, "green", "right"),)),
    "Open-Sora 25 Long video": (
        68,
        (Part(0, 16, "red", "right"), Part(34, 50, "red", "left"), Part(51, 67, "red", "up")),
    ),
    "Open-Sora 03 Text to image to video": (17, CLIP),
    "Open-Sora 40 Low memory": (17, CLIP),
    "Open-Sora 41 Saved prompt": (17, CLIP),
    "Open-Sora 42 Resume decoding": (17, CLIP),
    "Open-Sora 50 Core nodes only": (17, CLIP),
}
"""Frames of the video at the end of each graph, all 64x64, and what its prompts promise."""

NEEDS = {
    "Open-Sora 41 Saved prompt": "Open-Sora 40 Low memory",
    "Open-Sora 42 Resume decoding": "Open-Sora 40 Low memory",
}
"""Workflows that take up a file another one leaves."""
NEEDS_A_LANGUAGE_MODEL = {"Open-Sora 30 Prompt refinement"}
"""Run with a tiny language model, node by node, in test_prompt_writing.py."""

WORKFLOWS = {path.stem: path for path in api_workflows()}


def test_every_workflow_is_run_here_or_elsewhere() -> None:
    needs_weights = {path.stem for path in released_workflows()}  # test_released_workflows.py
    assert set(WORKFLOWS) == set(VIDEOS) | NEEDS_A_LANGUAGE_MODEL | needs_weights


@pytest.mark.parametrize("page", page_workflows(), ids=lambda path: path.stem)
def test_api_form_is_that_of_the_page(page: Path, object_info: dict[str, Any]) -> None:
    stored = read(WORKFLOWS[page.stem])
    bare = {key: {"class_type": node["class_type"], "inputs": node["inputs"]} for key, node in stored.items()}
    assert bare == to_api(read(page), object_info)


@pytest.mark.parametrize("name", VIDEOS)
def test_workflow_leaves_its_video(name: str, server: TestServer, tmp_path: Path) -> None:
    if name in NEEDS:
        server.run(read(WORKFLOWS[NEEDS[name]]))
    run = server.watch(read(WORKFLOWS[name]))
    (video,) = [item for item in run.files() if item["filename"].endswith(".mp4")]
    file = tmp_path / video["filename"]
    file.write_bytes(server.file(video))
    frames, rate = frames_and_rate(file)
    count, parts = VIDEOS[name]
    assert frames.shape == (count, 64, 64, 3)
    assert rate == 24
    assert np.abs(np.diff(frames.astype(np.int16), axis=0)).mean() > 0, "nothing moves"
    for part in parts:
        seen = read_clip(frames[part.first : part.last + 1])
        assert seen.colour == part.colour, part
        assert part.motion in (None, seen.motion), (part, seen)
        assert part.shape in (None, seen.shape), (part, seen)
