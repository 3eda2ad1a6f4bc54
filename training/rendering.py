"""Draws scenes: anti-aliased shapes by signed distance, whole batches at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .scenes import BACKGROUNDS, COLOURS, SHAPES, Scene, tracks

EDGE_WIDTH = 2.5  # pixels over which an outline fades: soft enough for a small autoencoder to learn quickly
PATTERN_PERIOD = 0.25  # of the picture height
PATTERN_CONTRAST = 0.16
STAR_INNER = 0.45  # radius of a star's inner corners relative to its points


def render(scenes: Sequence[Scene], frames: int, height: int, width: int) -> Tensor:
    """Clips of ``scenes``: float32 [B, 3, frames, height, width] in [-1, 1]."""
    return render_frames(scenes, range(frames), height, width)


def render_frames(scenes: Sequence[Scene], numbers: Sequence[int], height: int, width: int) -> Tensor:
    """The frames with these numbers only: float32 [B, 3, len(numbers), height, width] in [-1, 1]."""
    stacked = _stacked_tracks(scenes, max(numbers) + 1)
    track = {name: torch.from_numpy(values[:, list(numbers)]) for name, values in stacked.items()}
    grid_y, grid_x = torch.meshgrid(
        (torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / height, indexing="ij"
    )
    # The camera moves over the scene: what is seen at a pixel lies at the moved and scaled place of the scene.
    centre = width / height / 2
    per_frame = {name: values[:, :, None, None] for name, values in track.items()}
    x = (grid_x - centre) / per_frame["zoom"] + centre + per_frame["pan"]
    y = (grid_y - 0.5) / per_frame["zoom"] + 0.5
    cover = _coverage(scenes, per_frame, x, y, height)
    back = _background(scenes, x, y)
    colour = torch.tensor([COLOURS[scene.colour] for scene in scenes])[:, :, None, None, None]
    return torch.lerp(back[:, None], colour, cover[:, None]).mul_(2).sub_(1)


def _stacked_tracks(scenes: Sequence[Scene], frames: int) -> dict[str, np.ndarray]:
    every = [tracks(scene, frames) for scene in scenes]
    return {name: np.stack([one[name] for one in every]) for name in every[0]}


def _coverage(scenes: Sequence[Scene], track: dict[str, Tensor], x: Tensor, y: Tensor, height: int) -> Tensor:
    """How much of each pixel the shape covers, [B, T, H, W] in 0..1."""
    angle = torch.deg2rad(track["angle"])
    dx, dy = x - track["x"], y - track["y"]
    u = (dx * angle.cos() + dy * angle.sin()) / track["radius"]
    v = (dy * angle.cos() - dx * angle.sin()) / track["radius"]
    distance = torch.empty_like(u)
    for shape in SHAPES:
        rows = [row for row, scene in enumerate(scenes) if scene.shape == shape]
        if rows:
            distance[rows] = DISTANCES[shape](u[rows], v[rows])
    pixels = distance * track["radius"] * height * track["zoom"]
    return (0.5 - pixels / EDGE_WIDTH).clamp(0, 1)


def _background(scenes: Sequence[Scene], x: Tensor, y: Tensor) -> Tensor:
    level = torch.tensor([BACKGROUNDS[scene.background] for scene in scenes])[:, None, None, None]
    back = level.expand(x.shape).clone()
    for row, scene in enumerate(scenes):
        if scene.pattern == "plain":
            continue
        wave = torch.sin(2 * math.pi * x[row] / PATTERN_PERIOD)
        if scene.pattern == "checkered":
            wave = wave * torch.sin(2 * math.pi * y[row] / PATTERN_PERIOD)
        towards = -1.0 if BACKGROUNDS[scene.background] > 0.7 else 1.0  # patterns darken white and lighten the rest
        back[row] += towards * PATTERN_CONTRAST * (wave * 0.5 + 0.5)
    return back


def _circle(u: Tensor, v: Tensor) -> Tensor:
    return (u.square() + v.square()).sqrt() - 0.95


def _square(u: Tensor, v: Tensor) -> Tensor:
    return torch.maximum(u.abs(), v.abs()) - 0.83


def _triangle(u: Tensor, v: Tensor) -> Tensor:
    # Corner up (v points down); inner radius half of the outer one.
    slope = math.sqrt(3) / 2
    return torch.maximum(v, slope * u.abs() - 0.5 * v) - 0.6


def _star(u: Tensor, v: Tensor) -> Tensor:
    # Fold the plane onto half a point, then measure the distance to the one edge left.
    sector = 2 * math.pi / 5
    angle = torch.atan2(u, -v)
    folded = (torch.remainder(angle + sector / 2, sector) - sector / 2).abs()
    radius = (u.square() + v.square()).sqrt()
    px, py = radius * folded.sin(), radius * folded.cos()
    outer = 1.15
    inner_x, inner_y = STAR_INNER * outer * math.sin(sector / 2), STAR_INNER * outer * math.cos(sector / 2)
    edge_x, edge_y = inner_x, inner_y - outer
    length = math.hypot(edge_x, edge_y)
    return (px * -edge_y + (py - outer) * edge_x) / length


DISTANCES = {"circle": _circle, "square": _square, "triangle": _triangle, "star": _star}
