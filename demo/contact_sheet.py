"""Draws videos as one picture, a row each: ``python contact_sheet.py SHEET.png VIDEO …``.

Run by the Python that ComfyUI runs in, which has PyAV and Pillow; ``dev.py`` itself needs neither.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

import av
from PIL import Image

COLUMNS = 9
HEIGHT = 128  # pixels of a row
GAP = 2


def frames_of(path: Path, count: int) -> list[Image.Image]:
    """``count`` frames of a video, evenly spaced from the first to the last (fewer of a shorter one)."""
    with av.open(str(path)) as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    if len(frames) <= count:
        return frames
    return [frames[round(index * (len(frames) - 1) / (count - 1))] for index in range(count)]


def contact_sheet(videos: Sequence[Path], columns: int = COLUMNS, height: int = HEIGHT) -> Image.Image:
    """One row per video, time from left to right."""
    rows = []
    for path in videos:
        frames = frames_of(path, columns)
        width = round(frames[0].width * height / frames[0].height)
        rows.append([frame.resize((width, height), Image.Resampling.LANCZOS) for frame in frames])
    wide = max(sum(frame.width + GAP for frame in row) for row in rows) + GAP
    sheet = Image.new("RGB", (wide, len(rows) * (height + GAP) + GAP), "white")
    for number, row in enumerate(rows):
        left = GAP
        for frame in row:
            sheet.paste(frame, (left, GAP + number * (height + GAP)))
            left += frame.width + GAP
    return sheet


if __name__ == "__main__":
    target, *files = (Path(argument) for argument in sys.argv[1:])
    partial = target.with_name("part-" + target.name)
    contact_sheet(files).save(partial)
    partial.replace(target)
