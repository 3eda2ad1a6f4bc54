"""Draws the pictures of the templates for weights people download: ``python template_cards.py``, after a change.

Nobody can show here what those weights make, so a card says what a person wants to know before the click: which model
and job, size and length, and the files it needs. All of it is read off the workflow.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont

WORKFLOWS = Path(__file__).resolve().parent.parent / "workflows"
TITLE = re.compile(r"Open-Sora \d\d Released (?P<release>\d\.\d) (?P<job>.+)")
OTHERS = {"Open-Sora 61 LTX-Video": ("LTX-Video", "image to video")}
"""Other models behind the nodes of this pack, and what they do there."""
SIDE, EDGE = 640, 40
COLOURS = {"1.2": (38, 70, 83), "1.3": (42, 94, 74), "2.0": (84, 52, 96)}
PLAIN = (66, 66, 72)
INK, SOFT, LIGHT = (255, 255, 255), (206, 214, 220), (236, 196, 100)
QUALITY = 90


def nodes_of(path: Path) -> list[dict[str, Any]]:
    """Every node of a workflow, those inside its subgraphs too."""
    workflow = json.loads(path.read_text(encoding="utf-8"))
    return [
        node for graph in (workflow, *workflow.get("definitions", {}).get("subgraphs", ())) for node in graph["nodes"]
    ]


def size_sentence(nodes: list[dict[str, Any]]) -> str:
    """Size and length of the clip, as its size node has them; that of the picture before it makes an image."""
    sizes = [node["widgets_values"] for node in nodes if node["type"] == "OSoraSize"]
    ((_, resolution, ratio, length, frames, *_),) = [values for values in sizes if values[3] != "image"]
    return f"{resolution}, {ratio.split()[0]}, {f'{frames} frames' if length == 'custom' else length}"


def files_of(nodes: list[dict[str, Any]]) -> list[str]:
    """The files the loaders name, each once."""
    names = [model["name"] for node in nodes for model in node["properties"].get("models", ())]
    return list(dict.fromkeys(names))


def arrow(draw: ImageDraw.ImageDraw, x: int, y: int) -> int:
    """An arrow from x to the right; gives where the next thing begins."""
    draw.line((x, y, x + 30, y), fill=LIGHT, width=5)
    draw.polygon((x + 28, y - 9, x + 28, y + 9, x + 44, y), fill=LIGHT)
    return x + 58


def words(draw: ImageDraw.ImageDraw, x: int, y: int) -> int:
    """Lines of text."""
    for row, length in enumerate((84, 62, 76)):
        draw.rounded_rectangle((x, y - 26 + 22 * row, x + length, y - 18 + 22 * row), 4, fill=SOFT)
    return x + 98


def picture(draw: ImageDraw.ImageDraw, x: int, y: int) -> int:
    """A framed landscape."""
    draw.rectangle((x, y - 38, x + 110, y + 38), outline=SOFT, width=4)
    draw.polygon((x + 8, y + 32, x + 44, y - 12, x + 66, y + 14, x + 80, y, x + 102, y + 32), fill=SOFT)
    draw.ellipse((x + 74, y - 28, x + 92, y - 10), fill=LIGHT)
    return x + 124


def film(draw: ImageDraw.ImageDraw, x: int, y: int) -> int:
    """A strip of film."""
    draw.rectangle((x, y - 42, x + 168, y + 42), fill=SOFT)
    for hole in range(8):
        for edge in (-37, 27):
            draw.rectangle((x + 6 + 21 * hole, y + edge, x + 16 + 21 * hole, y + edge + 10), fill=(40, 40, 44))
    for frame in range(3):
        draw.rectangle((x + 8 + 53 * frame, y - 21, x + 54 + 53 * frame, y + 21), fill=(40, 40, 44))
    return x + 168


def job_drawing(draw: ImageDraw.ImageDraw, job: str, y: int) -> None:
    """From words, a picture or both to a film, as the job says."""
    x = EDGE
    if job.startswith("text") or "memory" in job:
        x = arrow(draw, words(draw, x, y), y)
    if "image" in job:
        x = arrow(draw, picture(draw, x, y), y)
    film(draw, x, y)


def heading(title: str) -> tuple[str, str, tuple[int, int, int]]:
    """Model, job and ground of a card."""
    if title in OTHERS:
        return (*OTHERS[title], PLAIN)
    match = TITLE.fullmatch(title)
    if match is None:
        raise ValueError(f"{title} is no title of a template for weights that are downloaded.")
    return f"Open-Sora {match['release']}", match["job"], COLOURS[match["release"]]


def card(title: str, nodes: list[dict[str, Any]]) -> Image.Image:
    """The card of one template."""
    model, job, ground = heading(title)
    image = Image.new("RGB", (SIDE, SIDE), ground)
    draw = ImageDraw.Draw(image)

    def write(y: int, text: str, size: int, colour: tuple[int, int, int]) -> None:
        draw.text((EDGE, y), text, fill=colour, font=ImageFont.load_default(size))

    # The newest page puts a mark over the upper left corner.
    write(84, model, 64, INK)
    write(160, job, 38, LIGHT)
    job_drawing(draw, job, 268)
    write(330, size_sentence(nodes), 34, INK)
    write(384, "needs", 26, SOFT)
    for row, name in enumerate(files_of(nodes)):
        write(420 + 33 * row, name, 26, INK)
    return image


if __name__ == "__main__":
    for path in sorted(path for path in WORKFLOWS.glob("*.json") if path.stem in OTHERS or TITLE.fullmatch(path.stem)):
        card(path.stem, nodes_of(path)).save(path.with_suffix(".jpg"), quality=QUALITY)
