"""Draws ``tiny.jpg``, what the three tiny models make of the same words and picture: ``python -m demo.tiny_picture``.

Run in the folder of the repository, by the Python that runs ``dev.py``, whose ComfyUI it takes.
"""

from __future__ import annotations

import json
from pathlib import Path

from devtools.client import Prompt
from devtools.console import say
from devtools.demo import draw_sheet, make_server, videos_of, with_prompt, workflow_of
from devtools.runtime import prepare

PICTURE = Path(__file__).resolve().parent / "tiny.jpg"
FROM_WORDS = {"1.3": "Open-Sora 01 Text to video", "2.0": "Open-Sora 70 Text to video in 2.0"}
FROM_A_PICTURE = {"1.3": "Open-Sora 02 Image to video", "2.0": "Open-Sora 71 Image to video in 2.0"}
PROMPTS = (
    "a red circle moving right on a black background",
    "a yellow star moving up on a black background",
    "a blue square growing on a white background",
    "a green triangle bouncing on a gray background",
)
RELEASES = ("1.2", "1.3", "2.0")


def graph_of(templates: dict[str, str], release: str) -> Prompt:
    """A template of a release; the ones of 1.3 serve 1.2 with its files."""
    if release in templates:
        return workflow_of(templates[release])
    named = json.dumps(workflow_of(templates["1.3"]))
    graph: Prompt = json.loads(named.replace("-v1.3", f"-v{release}").replace('"1.3"', f'"{release}"'))
    return graph


def rows() -> list[dict[str, Prompt]]:
    """A graph of every release, by its name, for each of the words and for the picture."""
    made = [{release: with_prompt(graph_of(FROM_WORDS, release), words) for release in RELEASES} for words in PROMPTS]
    return [*made, {release: graph_of(FROM_A_PICTURE, release) for release in RELEASES}]


def main() -> None:
    """Make the videos and draw them."""
    runtime = prepare(None, None)
    with make_server(runtime) as server:
        videos = [video for row in rows() for asked in row.items() for video in videos_of(server, *asked)]
    draw_sheet(runtime, PICTURE, [f"Open-Sora {release}" for release in RELEASES], videos)
    say(str(PICTURE))


if __name__ == "__main__":
    main()
