"""Draws the square pictures of the templates from the videos their runs left: ``python template_pictures.py OUTPUT …``.

``OUTPUT`` is ComfyUI's output folder; titles after it draw only those templates. A picture holds the prompt, frames of
the video (framed yellow where the template gives them) and what is special about the template. Run by the Python that
ComfyUI runs in, which has PyAV and Pillow.
"""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

from contact_sheet import frames_of
from PIL import Image, ImageDraw, ImageFont

WORKFLOWS = Path(__file__).resolve().parents[1] / "workflows"
SIDE, GAP, HEAD, FOOT = 512, 8, 116, 60
GROUND, PROMPT, GIVEN, WORDS = "#18181b", "#335533", "#f4c430", "white"
COLUMNS, ROWS = 3, 2

# What the picture says below the frames, and which of the frames shown the template gives.
SPECIAL: dict[str, tuple[str, tuple[int, ...]]] = {
    "01": ("text to video", ()),
    "02": ("first frame given", (0,)),
    "03": ("picture first, then moved", (0,)),
    "04": ("patches, tokens, cost", ()),
    "10": ("first and last frame given", (0, 5)),
    "11": ("pictures spread evenly", (0, 2, 4)),
    "12": ("several references", (0, 2, 4)),
    "13": ("dragged on a timeline", (0, 2, 5)),
    "20": ("goes on from a clip", (0, 1, 2)),
    "21": ("goes on from your file", (0, 1, 2)),
    "22": ("between two clips", (0, 1, 4, 5)),
    "23": ("a clip remade", ()),
    "24": ("your file remade", ()),
    "25": ("three segments", ()),
    "26": ("goes on, on a timeline", (0, 1, 2)),
    "27": ("between, on a timeline", (0, 1, 4, 5)),
    "28": ("words on a timeline", (0,)),
    "29": ("kept, then freed", (0,)),
    "30": ("a language model writes", ()),
    "31": ("guided less and less", ()),
    "40": ("fp8, T5 on the CPU", ()),
    "41": ("prompt kept in a file", ()),
    "42": ("latents decoded again", ()),
    "43": ("steps left out", ()),
    "44": ("steps left out, measured", ()),
    "45": ("shared by all GPUs", ()),
    "46": ("a GPU for each row", ()),
    "50": ("KSampler, VAE Decode", ()),
    "51": ("the sampler in parts", (0,)),
    "52": ("taught: red circle", ()),
    "53": ("window by window", ()),
    "54": ("a LoRA file", ()),
    "70": ("text to video, 2.0", ()),
    "71": ("first frame given, 2.0", (0,)),
    "72": ("first and last frame, 2.0", (0, 5)),
    "73": ("goes on from 33 frames", (0, 1, 2, 3)),
    "74": ("leads up to 33 frames", (2, 3, 4, 5)),
    "75": ("three segments, 2.0", ()),
    "76": ("picture first, 2.0", (0,)),
}
LIKE = {"Open-Sora 30 Prompt refinement": "Open-Sora 01 Text to video"}
"""Templates that need a file of the person, and another that gives the same video for the same words."""


def prompt_of(graph: dict[str, Any]) -> str:
    """The words of the node called Prompt, else of the last node that was given some."""
    nodes = sorted(graph.values(), key=lambda node: node["_meta"]["title"] == "Prompt")
    texts = [node["inputs"].get(name) for node in nodes for name in ("prompt", "text", "lines")]
    plans = [json.loads(node["inputs"]["plan"]) for node in nodes if node["class_type"] == "OSoraTimeline"]
    texts = ["\n".join(row["text"] for row in plan.get("prompts", ())) for plan in plans] + texts
    return " / ".join([text for text in texts if isinstance(text, str) and text][-1].split("\n"))


def video_of(graph: dict[str, Any], output: Path) -> Path:
    """The newest video that a run of the graph left."""
    prefixes = [node["inputs"].get("filename_prefix", "") for node in graph.values()]
    videos = [path for prefix in prefixes for path in output.glob(f"{prefix}_*") if path.suffix in (".mp4", ".webm")]
    return max(videos, key=lambda path: path.stat().st_mtime)


def draw(title: str, output: Path) -> Image.Image:
    """The picture of one template."""
    graph = json.loads((WORKFLOWS / "api" / f"{title}.json").read_text(encoding="utf-8"))
    made = json.loads((WORKFLOWS / "api" / f"{LIKE.get(title, title)}.json").read_text(encoding="utf-8"))
    words, given = SPECIAL[title.split()[1]]
    picture = Image.new("RGB", (SIDE, SIDE), GROUND)
    pen = ImageDraw.Draw(picture)
    wide, high = (SIDE - GAP) // COLUMNS, (SIDE - HEAD - FOOT - GAP) // ROWS
    for index, frame in enumerate(frames_of(video_of(made, output), COLUMNS * ROWS)):
        left, top = GAP + index % COLUMNS * wide, GAP + index // COLUMNS * high
        box = (wide - GAP, high - GAP)
        if index in given:
            pen.rectangle((left - 4, top - 4, left + box[0] + 3, top + box[1] + 3), GIVEN)
        picture.paste(frame.resize(box, Image.Resampling.LANCZOS), (left, top))
    pen.text((SIDE / 2, SIDE - HEAD - FOOT / 2), words, WORDS, ImageFont.load_default(34), anchor="mm")
    pen.rectangle((0, SIDE - HEAD, SIDE, SIDE), PROMPT)  # below: the page puts a mark over the upper left corner
    text = "\n".join(textwrap.wrap(prompt_of(graph), 32)[:3])
    pen.multiline_text((GAP * 2, SIDE - HEAD / 2), text, WORDS, ImageFont.load_default(28), anchor="lm", spacing=6)
    return picture


if __name__ == "__main__":
    folder, *titles = sys.argv[1:]
    every = [path.stem for path in sorted(WORKFLOWS.glob("*.json")) if path.stem.split()[1] in SPECIAL]
    for name in titles or every:
        draw(name, Path(folder)).save(WORKFLOWS / f"{name}.jpg", quality=82)
