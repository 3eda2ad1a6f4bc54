"""Measures the outline of the shape in a frame: how compact it is and how sharp. Pure arithmetic on frames.

A frame becomes coverage (0 the background's colour, 1 the shape's own); its contour is where coverage is a half, found
between pixels by marching squares. Compactness is 4π·area/perimeter²: 1 for a disc, π/4 for a square, less for whatever
is lumpy. Blur smooths lumps away, so the width of the edge belongs beside it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

HALF, LOW, HIGH = 0.5, 0.1, 0.9  # coverage at the contour, and at both ends of its edge
LEAST_RADIUS = 6.0  # pixels, of a disc of the same area: outlines of less are made of too few pixels
MARGIN = 2  # pixels between the contour and the picture's border, or the shape is not wholly inside
LEAST_SATURATION = 0.1  # of max(RGB) - min(RGB), 0…1, somewhere in a frame that has a shape
DEEP = 2.5  # pixels from the outline at which a shape has its own colour
REACH, STEP = 6.0, 0.05  # pixels on either side of a contour in which its edge must end, and between looks there
ALMOST = 1e-3
# Corners of a cell in clockwise order, as offsets (down, right); edge k of the cell goes from corner k to the next.
CORNERS = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])


@dataclass(frozen=True)
class Outline:
    """Of one frame; lengths in pixels. ``radius`` is that of a disc of the same area, ``edge`` the median width over
    which coverage goes from 10 to 90 %."""

    compactness: float
    edge: float
    radius: float


def outline(frame: np.ndarray) -> Outline | None:
    """Of the largest shape in uint8 [H, W, 3]; None where there is none, or a small one, or one that is cut off."""
    cover = coverage(frame)
    return None if cover is None else outline_of(cover)


def coverage(frame: np.ndarray) -> np.ndarray | None:
    """How much of each pixel of uint8 [H, W, 3] has the shape's colour rather than the background's, float64 [H, W];
    None if nothing is coloured (backgrounds are gray). Colours that are neither may exceed 0…1."""
    values = frame.astype(np.float64) / 255
    saturation = values.max(-1) - values.min(-1)
    most = float(np.quantile(saturation, 0.99))
    if most < LEAST_SATURATION:
        return None
    coloured = saturation >= HALF * most  # a mixture with gray is coloured in proportion
    depth = ndimage.distance_transform_edt(coloured)
    own = np.median(values[depth >= min(DEEP, float(depth.max()))], axis=0)
    background = np.median(values[~coloured], axis=0)
    towards = own - background
    return (values - background) @ towards / (towards @ towards)


def outline_of(cover: np.ndarray) -> Outline | None:
    """The same for coverage [H, W]. Holes and what lies apart from the largest shape do not count."""
    pieces, count = ndimage.label(cover >= HALF)
    if count == 0:
        return None
    largest = ndimage.binary_fill_holes(pieces == np.bincount(pieces.flat)[1:].argmax() + 1)
    inner = np.zeros_like(largest)
    inner[MARGIN:-MARGIN, MARGIN:-MARGIN] = True
    if (largest & ~inner).any():
        return None
    alone = np.where(largest, np.maximum(cover, HALF + ALMOST), np.minimum(cover, HALF - ALMOST))
    starts, ends = contour(alone)
    perimeter = float(np.hypot(*(ends - starts).T).sum())
    area = abs(float((starts[:, 0] * ends[:, 1] - starts[:, 1] * ends[:, 0]).sum())) / 2
    radius = math.sqrt(area / math.pi)
    if radius < LEAST_RADIUS:
        return None
    return Outline(4 * math.pi * area / perimeter**2, edge_width(cover, (starts + ends) / 2), radius)


def contour(cover: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where coverage [H, W] is a half, as segments: their starts and ends [N, 2] in pixels (down, right), all with the
    covered side on the same hand. Pixels that touch at a corner only are kept apart."""
    height, width = cover.shape
    corners = np.stack([cover[y : height - 1 + y, x : width - 1 + x] for y, x in CORNERS])
    following = np.roll(corners, -1, axis=0)
    entering, leaving = (corners < HALF) & (following >= HALF), (corners >= HALF) & (following < HALF)
    starts, ends = [], []
    for edge in range(4):  # a segment goes from where a walk round the cell enters the shape to where it leaves it
        open_cells = entering[edge]
        for other in range(edge + 1, edge + 4):
            cells = np.nonzero(open_cells & leaving[other % 4])
            starts.append(_crossings(corners, following, edge, cells))
            ends.append(_crossings(corners, following, other % 4, cells))
            open_cells = open_cells & ~leaving[other % 4]
    return np.concatenate(starts), np.concatenate(ends)


def _crossings(corners: np.ndarray, following: np.ndarray, edge: int, cells: tuple[np.ndarray, ...]) -> np.ndarray:
    """[N, 2]: where coverage is a half on an edge of cells."""
    here, there = corners[edge][cells], following[edge][cells]
    share = ((HALF - here) / (there - here))[:, None]
    way = CORNERS[(edge + 1) % 4] - CORNERS[edge]
    return np.stack(cells, axis=1) + CORNERS[edge] + share * way


def edge_width(cover: np.ndarray, points: np.ndarray) -> float:
    """Pixels between 10 and 90 % of coverage [H, W] across its contour, the median over ``points`` [N, 2] of it."""
    slopes = [ndimage.gaussian_filter(cover, 1.0, order=order) for order in ((1, 0), (0, 1))]
    inwards = np.stack([ndimage.map_coordinates(slope, points.T, order=1, mode="nearest") for slope in slopes], axis=1)
    inwards /= np.maximum(np.hypot(*inwards.T), 1e-9)[:, None]
    looks = np.arange(0.0, REACH + STEP, STEP)
    total = np.zeros(len(points))
    for way, reached in ((1.0, lambda seen: seen >= HIGH), (-1.0, lambda seen: seen <= LOW)):
        places = points[:, None] + way * looks[None, :, None] * inwards[:, None]
        there = reached(ndimage.map_coordinates(cover, np.moveaxis(places, -1, 0), order=3, mode="nearest"))
        total += np.where(there.any(axis=1), looks[there.argmax(axis=1)], REACH)
    return float(np.median(total))
