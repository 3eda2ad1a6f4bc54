"""Blueprints of subgraphs: found in the page's list of nodes, put on the canvas, run, and right by their frames."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import numpy as np
import pytest
from PIL import Image, ImageDraw

from opensora.training.reading import read_clip
from support.videos import frames_and_rate
from support.workflows import blueprints, read

if TYPE_CHECKING:
    from browser.conftest import Page

    from support.server import LoggedServer

pytestmark = [pytest.mark.server, pytest.mark.browser]

GIVEN = {
    "Image to Video (Open-Sora)": {"type": "LoadImage", "widget": "image", "file": "blueprint.png"},
    "Extend Video (Open-Sora)": {"type": "LoadVideo", "widget": "file", "file": "blueprint.mp4"},
}
STEPS = 8
FRAMES = {
    "Text to Video (Open-Sora)": 17,
    "Image to Video (Open-Sora)": 17,
    "Extend Video (Open-Sora)": 34,
    "Long Video (Open-Sora)": 51,
}


def red_circle() -> Image.Image:
    """A picture of one."""
    picture = Image.new("RGB", (256, 256))
    ImageDraw.Draw(picture).ellipse((50, 88, 130, 168), fill=(230, 30, 30))
    return picture


def square_moving_right(path: Path) -> np.ndarray:
    """A video of 17 frames; gives them."""
    frames = np.zeros((17, 64, 64, 3), np.uint8)
    for number, frame in enumerate(frames):
        frame[22:42, 2 + number : 22 + number] = (230, 30, 30)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("h264", 24)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode())
    return frames


@pytest.mark.parametrize("path", blueprints(), ids=lambda path: path.stem)
def test_a_blueprint_says_what_it_is(path: Path) -> None:
    graph = read(path)
    (host,), (inside,) = graph["nodes"], graph["definitions"]["subgraphs"]
    assert host["type"] == inside["id"] and host["title"] == inside["name"] == path.stem
    assert inside["category"] == "Open-Sora"
    assert inside["description"] == graph["extra"]["BlueprintDescription"]
    assert "open-sora" in graph["extra"]["BlueprintSearchAliases"]
    assert len(host["widgets_values"]) == sum("widget" in slot for slot in host["inputs"])


def test_blueprints_are_found_and_run(each_page: Page, tmp_path: Path) -> None:
    server, folder = each_page.server, each_page.server.base / "input"
    red_circle().save(folder / "blueprint.png")
    given = square_moving_right(folder / "blueprint.mp4")
    names = [path.stem for path in blueprints()]
    assert set(names) == set(FRAMES)
    wanted = {name: GIVEN.get(name) for name in names}
    visit = each_page.browser.visit("blueprints", blueprints=wanted, steps=STEPS)
    clips = {name: made(visit.value[name], server, tmp_path) for name in names}
    assert {name: len(frames) for name, frames in clips.items()} == FRAMES
    assert all(frames.shape[1:] == (64, 64, 3) for frames in clips.values())
    for name in ("Text to Video (Open-Sora)", "Image to Video (Open-Sora)"):
        seen = read_clip(clips[name])
        assert (seen.colour, seen.motion) == ("red", "right"), name
    longer = clips["Extend Video (Open-Sora)"]
    assert np.abs(longer[:17].astype(int) - given).mean() < 20
    assert read_clip(longer[17:]).colour == "red"
    first, last = read_clip(clips["Long Video (Open-Sora)"][:17]), read_clip(clips["Long Video (Open-Sora)"][-17:])
    assert (first.colour, first.motion, last.colour, last.motion) == ("red", "right", "red", "left")
    assert visit.errors == []
    server.check_log()


def made(seen: dict[str, Any], server: LoggedServer, folder: Path) -> np.ndarray:
    """The frames of the video a run of the page left."""
    assert "error" not in seen["video"], seen["video"]
    file = folder / seen["video"]["filename"]
    file.write_bytes(server.file(seen["video"]))
    frames, rate = frames_and_rate(file)
    assert rate == 24
    return frames
