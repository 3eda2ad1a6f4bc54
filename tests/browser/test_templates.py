"""The templates as a newcomer meets them: a clone in ``custom_nodes`` and nothing else, opened and run in the page.

They are run once, in the newest page with Nodes 2.0. Its results are then shown in the other renderer and in the page
of ComfyUI 0.30, so that nodes may be looked at after a run there as well.
"""

from __future__ import annotations

import itertools
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from opensora.training.reading import read_clip
from support.videos import frames_and_rate, write_persons_video
from support.workflows import page_workflows, released_workflows

if TYPE_CHECKING:
    from support.browser import Browser
    from support.server import BareServer, TestServer

pytestmark = [pytest.mark.server, pytest.mark.browser]

SMALLEST_ZOOM = 0.6  # below it the words on a node cannot be read
VIDEOS = (".mp4", ".webm")


@dataclass(frozen=True)
class Part:
    """What the frames first…last of a video show; None: not said by the prompt."""

    first: int
    last: int
    colour: str
    motion: str | None = None
    shape: str | None = None


def clip(shape: str, colour: str = "red", motion: str = "right", frames: int = 17) -> tuple[int, tuple[Part, ...]]:
    """One shape and motion for the whole video."""
    return frames, (Part(0, frames - 1, colour, motion, shape),)


CIRCLE, SQUARE = clip("circle"), clip("square")
SHOWN: dict[str, tuple[int, tuple[Part, ...]]] = {
    "Open-Sora 01 Text to video": CIRCLE,
    "Open-Sora 02 Image to video": SQUARE,
    "Open-Sora 03 Text to image to video": CIRCLE,
    "Open-Sora 04 How it works": SQUARE,
    "Open-Sora 10 First and last frame": clip("square", frames=34),
    "Open-Sora 11 Keyframes": clip("square", frames=51),
    "Open-Sora 12 Several references": clip("square", frames=51),
    "Open-Sora 13 Keyframes on a timeline": SQUARE,
    "Open-Sora 20 Extend video": clip("square", frames=34),
    "Open-Sora 21 Extend video from a file": clip("square", frames=34),
    "Open-Sora 22 Connect two clips": (
        51, (Part(0, 16, "red", "right", "circle"), Part(34, 50, "blue", "left", "square")),
    ),
    "Open-Sora 23 Edit video": clip("circle", "green"),
    "Open-Sora 24 Edit video from a file": clip("square", "green"),
    "Open-Sora 25 Long video": (
        68, (Part(0, 16, "red", "right", "square"), Part(34, 50, "red", "left"), Part(51, 67, "red", "up", "square")),
    ),
    "Open-Sora 26 Extend video on a timeline": clip("square", frames=33),
    "Open-Sora 27 Connect two clips on a timeline": (
        49, (Part(0, 16, "red", "right", "circle"), Part(32, 48, "blue", "left", "square")),
    ),
    "Open-Sora 28 Long video on a timeline": (
        65, (Part(0, 16, "red", "right", "square"), Part(33, 47, "red", "left"), Part(49, 64, "red", "up", "square")),
    ),
    "Open-Sora 29 Strength over clip": (17, (Part(0, 4, "red", None, "circle"), Part(12, 16, "green", None, "circle"))),
    "Open-Sora 31 Guidance over time": CIRCLE,
    "Open-Sora 40 Low memory": clip("square", "green", "up"),
    "Open-Sora 41 Saved prompt": clip("circle", "yellow", "left"),
    "Open-Sora 42 Decode again": clip("square", "blue", "up"),
    "Open-Sora 43 EasyCache": clip("circle", "purple", "left"),
    "Open-Sora 44 Step cache": clip("square", "cyan", "down"),
    "Open-Sora 45 Several devices": clip("circle", "blue", "down"),
    "Open-Sora 46 Guidance on several devices": clip("circle", "blue", "down"),
    "Open-Sora 50 Core nodes only": clip("circle", "cyan", "grow"),
    "Open-Sora 51 Custom sampler": SQUARE,
    "Open-Sora 52 LoRA": clip("square", "blue"),
    "Open-Sora 53 Context windows": clip("circle", "green", frames=34),
    "Open-Sora 54 LoRA from a file": clip("square", "blue"),
    "Open-Sora 70 Text to video in 2.0": CIRCLE,
    "Open-Sora 71 Image to video in 2.0": (17, (*SQUARE[1], Part(0, 0, "red", shape="square"))),
    "Open-Sora 72 First and last frame in 2.0": (
        17, (*SQUARE[1], Part(0, 0, "red", shape="square"), Part(16, 16, "red", shape="square")),
    ),
    "Open-Sora 73 Extend forwards in 2.0": (
        49, (Part(0, 32, "red", "bounce"), Part(33, 48, "red"), Part(0, 48, "red", "bounce")),
    ),
    "Open-Sora 74 Extend backwards in 2.0": (49, (Part(0, 15, "red", "bounce"), Part(16, 48, "red", "bounce"))),
    "Open-Sora 75 Long video in 2.0": (
        49, (Part(0, 16, "red", "right"), Part(17, 32, "red", "left"), Part(33, 48, "red", "up")),
    ),
    "Open-Sora 76 Text to image to video in 2.0": CIRCLE,
}  # fmt: skip
"""Frames of every video a template leaves, all 64x64, and what its prompts promise."""

NEED_OWN_FILES = {"Open-Sora 30 Prompt refinement", *(path.stem for path in released_workflows())}
"""Opened but not run: they name model files people have to get. Run with tiny ones in test_prompt_writing.py and
test_released_workflows.py."""

NAMES = [path.stem for path in page_workflows()]


@pytest.fixture(scope="session")
def run(newest_browser: Browser, bare_server: BareServer) -> dict[str, Any]:
    """Every template, opened and run in the newest page with Nodes 2.0."""
    write_persons_video(bare_server.base / "input")
    results = {name: None for name in NEED_OWN_FILES}
    visit = newest_browser.visit(
        "templates", names=NAMES, nodes2=True, results=results, label="newest page, Nodes 2",
    )  # fmt: skip
    bare_server.check_log()
    assert visit.errors == visit.failed == []
    return dict(visit.value)


def test_every_template_is_run_here_or_elsewhere() -> None:
    assert set(NAMES) == set(SHOWN) | NEED_OWN_FILES


@pytest.mark.parametrize("name", SHOWN)
def test_a_template_shows_what_its_prompt_says(name: str, run: dict[str, Any], bare_server: BareServer) -> None:
    results = run[name]["results"]
    assert (results["refused"], results["end"]) == ([], "execution_success"), results["said"]
    items = [item for output in results["outputs"].values() for kind in output.values() for item in kind]
    videos = [item for item in items if isinstance(item, dict) and str(item.get("filename")).endswith(VIDEOS)]
    assert videos
    count, parts = SHOWN[name]
    for video in videos:
        frames, rate = frames_and_rate(bare_server.base / video["type"] / video["subfolder"] / video["filename"])
        assert frames.shape == (count, 64, 64, 3)
        assert rate == 24
        assert np.abs(np.diff(frames.astype(np.int16), axis=0)).mean() > 0, "nothing moves"
        for part in parts:
            seen = read_clip(frames[part.first : part.last + 1])
            assert seen.colour == part.colour, part
            assert part.motion in (None, seen.motion), (part, seen)
            assert part.shape in (None, seen.shape), (part, seen)


LARGEST_GAP = 80
"""Between the text of a node and the picture below it, in graph units: the second renderer tears those of taller nodes
apart, since it adds the height of the picture to theirs."""
PAGES = list(itertools.product(("newest page", "page of 0.30"), (True, False)))


@pytest.mark.parametrize(("page", "nodes2"), PAGES, ids=lambda value: {True: "nodes2", False: "classic"}.get(value))
def test_templates_open_readable_and_nothing_overlaps(
    page: str, nodes2: bool, run: dict[str, Any], bare_server: BareServer, request: pytest.FixtureRequest
) -> None:
    seen = run
    if (page, nodes2) != ("newest page", True):
        browser = request.getfixturevalue("newest_browser" if page == "newest page" else "page_of_30")
        results = {name: entry.get("results") for name, entry in run.items()}
        label = f"{page}, {'Nodes 2' if nodes2 else 'classic'}"
        visit = browser.visit("templates", names=NAMES, nodes2=nodes2, results=results, label=label)
        assert visit.errors == visit.failed == []
        seen = visit.value
    assert {name: entry["zoom"] for name, entry in seen.items() if entry["zoom"] < SMALLEST_ZOOM} == {}
    assert {name: found for name, entry in seen.items() if (found := overlaps(entry))} == {}
    gaps = {name: entry["gaps"] for name, entry in seen.items() if entry.get("gaps")}
    assert {name: found for name, found in gaps.items() if max(found.values()) > LARGEST_GAP} == {}
    assert bool(gaps) == nodes2, "only there texts and pictures are parts of the page"
    assert all(entry["minimap"] for entry in seen.values()), "the page opens with it"
    assert {name: found for name, entry in seen.items() if (found := under_the_minimap(entry))} == {}


@pytest.fixture
def page_of_30(browser: Browser, server: TestServer, bare_server: BareServer) -> Browser:
    """The page of ComfyUI 0.30, whose server has the files that the templates' run left."""
    for folder in ("input", "output", "temp"):
        shutil.copytree(bare_server.base / folder, server.base / folder, dirs_exist_ok=True)
    return browser


def overlaps(entry: dict[str, Any]) -> list[str]:
    """Pairs of nodes that cover each other, before or after the run."""
    found = []
    for when in ("before", "after"):
        boxes = entry.get(when, {}).items()
        for (one, box), (other, another) in itertools.combinations(boxes, 2):
            if meet(box, another):
                found.append(f"{when}: {one} and {other}")
    return found


def under_the_minimap(entry: dict[str, Any]) -> list[str]:
    """Nodes that the page's minimap covers as a template opens; none may lie there."""
    boxes = entry.get("after", entry["before"])
    return [node for node, box in boxes.items() if meet(box, entry["minimap"])]


def meet(one: list[int], other: list[int]) -> bool:
    """Whether two rectangles (left, top, width, height) have something in common."""
    (x, y, wide, high), (u, v, broad, tall) = one, other
    return x < u + broad and u < x + wide and y < v + tall and v < y + high
