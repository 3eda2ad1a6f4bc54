"""Pictures of clips and of training curves, drawn with PIL alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw
from torch import Tensor

PLOT_SIZE = (900, 240)  # width, height of one curve
MARGIN = 40
INK = (40, 90, 180)


def to_bytes(video: Tensor) -> np.ndarray:
    """[3, T, H, W] in [-1, 1] -> uint8 [T, H, W, 3], rounded as Open-Sora saves frames."""
    scaled = (video.detach().float().clamp(-1, 1) + 1) * 127.5 + 0.5
    return scaled.permute(1, 2, 3, 0).to("cpu").numpy().astype(np.uint8)


def contact_sheet(videos: Sequence[Tensor], every: int = 2, scale: int = 1) -> Image.Image:
    """One row per clip ([3, T, H, W]), every ``every``-th frame from left to right."""
    rows = []
    for video in videos:
        row = [np.pad(frame, ((1, 1), (1, 1), (0, 0))) for frame in to_bytes(video)[::every]]
        rows.append(np.concatenate(row, axis=1))
    width = max(row.shape[1] for row in rows)
    sheet = np.concatenate([np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows])
    image = Image.fromarray(sheet)
    return image.resize((image.width * scale, image.height * scale), Image.Resampling.NEAREST)


def draw_curves(curves: Mapping[str, Sequence[tuple[float, float]]], path: Path) -> None:
    """Write one plot per named curve of (step, value) points, one below the other, as a PNG."""
    curves = {name: points for name, points in curves.items() if len(points) > 1}
    if not curves:
        return
    image = Image.new("RGB", (PLOT_SIZE[0], PLOT_SIZE[1] * len(curves)), "white")
    draw = ImageDraw.Draw(image)
    for row, (name, points) in enumerate(curves.items()):
        _draw_curve(draw, row * PLOT_SIZE[1], name, np.asarray(points, dtype=np.float64))
    image.save(path)


def _draw_curve(draw: ImageDraw.ImageDraw, top: int, name: str, points: np.ndarray) -> None:
    steps, values = points[:, 0], points[:, 1]
    low, high = float(values.min()), float(np.quantile(values, 0.99))
    high = max(high, low + 1e-9)
    x = MARGIN + (steps - steps[0]) / max(steps[-1] - steps[0], 1) * (PLOT_SIZE[0] - 2 * MARGIN)
    y = top + PLOT_SIZE[1] - MARGIN - np.clip((values - low) / (high - low), 0, 1) * (PLOT_SIZE[1] - 2 * MARGIN)
    draw.rectangle((MARGIN, top + MARGIN, PLOT_SIZE[0] - MARGIN, top + PLOT_SIZE[1] - MARGIN), outline=(200, 200, 200))
    draw.line(list(zip(x.tolist(), y.tolist(), strict=True)), fill=INK, width=2)
    draw.text((MARGIN, top + 12), f"{name}: {values[-1]:.4g} at step {int(steps[-1])}", fill=(0, 0, 0))
    draw.text((2, top + MARGIN), f"{high:.3g}", fill=(90, 90, 90))
    draw.text((2, top + PLOT_SIZE[1] - MARGIN - 10), f"{low:.3g}", fill=(90, 90, 90))
