"""Makes the pictures of the timeline's help page from what its browser test left: ``python demo/help_pictures.py``.

Run it after ``pytest tests/browser/test_timeline.py``, by a Python with Pillow.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
ARTEFACTS = ROOT / ".comfyui" / "artefacts"
TARGET = ROOT / "js" / "docs" / "OSoraTimeline"
STEP_MS, REST_MS = 140, 900
QUALITY = 80


def opened(path: Path) -> Image.Image:
    """A picture of the page without transparency."""
    with Image.open(path) as picture:
        return picture.convert("RGB")


if __name__ == "__main__":
    opened(ARTEFACTS / "timeline-help.png").save(TARGET / "track.webp", quality=QUALITY)
    first, *others = [opened(path) for path in sorted(ARTEFACTS.glob("timeline-film-*.png"))]
    others = [frame.resize(first.size) for frame in others]
    lasting = [REST_MS, *[STEP_MS] * (len(others) - 1), REST_MS]
    first.save(
        TARGET / "drag.webp", save_all=True, append_images=others, duration=lasting, loop=0, quality=QUALITY - 10
    )
