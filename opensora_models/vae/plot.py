"""A small line plot drawn with PIL, for reports inside the graph."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

WIDTH, HEIGHT, MARGIN = 768, 240, 48
BACKGROUND, AXIS, TEXT = (24, 26, 31), (90, 96, 108), (220, 223, 228)
COLORS = ((92, 170, 255), (255, 170, 92))


def line_plots(curves: Sequence[tuple[str, Sequence[float]]], ends: tuple[str, str] | None = None) -> Tensor:
    """One panel per curve, above each other: image [1, H, W, 3] in [0, 1].

    Each curve is (title, values). ``ends`` is what the first and the last value stand for; without it they are those of
    frames, and the title tells mean and worst.
    """
    panels = [_panel(title, values, COLORS[i % len(COLORS)], ends) for i, (title, values) in enumerate(curves)]
    picture = np.concatenate([np.asarray(panel) for panel in panels], axis=0)
    return torch.from_numpy(picture.astype(np.float32) / 255.0)[None]


def _panel(
    title: str, values: Sequence[float], color: tuple[int, int, int], ends: tuple[str, str] | None
) -> Image.Image:
    panel = Image.new("RGB", (WIDTH, HEIGHT), BACKGROUND)
    draw = ImageDraw.Draw(panel)
    low, high = min(values), max(values)
    span = (high - low) or 1.0
    left, top, right, bottom = MARGIN, MARGIN // 2 + 12, WIDTH - 16, HEIGHT - MARGIN // 2
    draw.rectangle((left, top, right, bottom), outline=AXIS)
    mean = sum(values) / len(values)
    draw.text((left, 8), title if ends else f"{title}: mean {mean:.4g}, worst {low:.4g}", fill=TEXT)
    draw.text((6, top), f"{high:.4g}", fill=TEXT)
    draw.text((6, bottom - 10), f"{low:.4g}", fill=TEXT)
    first, last = ends or ("frame 0", f"frame {len(values) - 1}")
    draw.text((left, bottom + 6), first, fill=TEXT)
    draw.text((right - max(60, 6 * len(last)), bottom + 6), last, fill=TEXT)
    step = (right - left) / max(1, len(values) - 1)
    points = [(left + i * step, bottom - (value - low) / span * (bottom - top)) for i, value in enumerate(values)]
    if len(points) == 1:
        points.append((right, points[0][1]))
    draw.line(points, fill=color, width=2)
    return panel
