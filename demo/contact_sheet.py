"""Draws videos as one picture, a row each: ``python contact_sheet.py SHEET.png VIDEO …``.

With a ``--title`` for each, columns of videos stand side by side: the first video below the first title, the next below
the second, and so on. Run by the Python that ComfyUI runs in, which has PyAV and Pillow; ``dev.py`` itself needs
neither.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import av
from PIL import Image, ImageDraw, ImageFont

COLUMNS = 9
COLUMNS_SIDE_BY_SIDE = 6
HEIGHT = 128  # pixels of a row
GAP = 2
BETWEEN = 24  # pixels between columns of videos
TITLE = 20  # pixels of a title's letters
WIDEST = 1600  # pixels of a sheet


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


def side_by_side(videos: Sequence[Path], titles: Sequence[str], height: int = HEIGHT) -> Image.Image:
    """A column of videos below each title."""
    columns = [
        contact_sheet(videos[number :: len(titles)], COLUMNS_SIDE_BY_SIDE, height) for number in range(len(titles))
    ]
    top = TITLE * 3 // 2
    wide = sum(column.width for column in columns) + BETWEEN * (len(columns) - 1)
    sheet = Image.new("RGB", (wide, top + max(column.height for column in columns)), "white")
    left = 0
    for title, column in zip(titles, columns, strict=True):
        ImageDraw.Draw(sheet).text((left + GAP, GAP), title, "black", ImageFont.load_default(TITLE))
        sheet.paste(column, (left, top))
        left += column.width + BETWEEN
    return sheet


def main() -> None:
    """Command line of this file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sheet", type=Path)
    parser.add_argument("videos", type=Path, nargs="+")
    parser.add_argument("--title", action="append", dest="titles", help="one for each column of videos")
    options = parser.parse_args()
    partial = options.sheet.with_name("part-" + options.sheet.name)
    made = side_by_side(options.videos, options.titles) if options.titles else contact_sheet(options.videos)
    made.thumbnail((WIDEST, made.height), Image.Resampling.LANCZOS)
    made.save(partial)
    partial.replace(options.sheet)


if __name__ == "__main__":
    main()
