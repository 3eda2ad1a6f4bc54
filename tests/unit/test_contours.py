"""The measure of outlines, on shapes whose compactness and edge are known."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import ndimage

from opensora.training import rendering, scenes
from opensora.training.contours import Outline, contour, coverage, outline, outline_of
from opensora.training.pictures import to_bytes

SIDE = 64


def distances(shape: str, radius: float, y: float = 31.7, x: float = 32.4) -> np.ndarray:
    """Pixels outside a disc or a square of this radius or half side."""
    down, right = np.mgrid[:SIDE, :SIDE].astype(float)
    down, right = down - y, right - x
    if shape == "disc":
        return np.hypot(down, right) - radius
    return np.maximum(abs(down), abs(right)) - radius


def ramp(distance: np.ndarray, width: float = 2.5) -> np.ndarray:
    return np.clip(0.5 - distance / width, 0, 1)


def found(cover: np.ndarray) -> Outline:
    made = outline_of(cover)
    assert made is not None
    return made


def painted(cover: np.ndarray, colour: tuple[float, ...], background: float) -> np.ndarray:
    mixed = background + cover[..., None] * (np.array(colour) - background)
    return (np.clip(mixed, 0, 1) * 255 + 0.5).astype(np.uint8)


@pytest.mark.parametrize("radius", [6.5, 9.3, 14.0, 25.0])
@pytest.mark.parametrize("width", [2.5, 4.0, 8.0])
def test_a_disc_is_compact_at_any_size_and_its_edge_is_that_of_the_ramp(radius: float, width: float) -> None:
    made = found(ramp(distances("disc", radius), width))
    assert made.compactness == pytest.approx(1.0, abs=0.006)
    assert made.radius == pytest.approx(radius, abs=0.08)
    assert made.edge == pytest.approx(0.8 * width, abs=0.16)


@pytest.mark.parametrize("half_side, cut", [(13.2, 0.03), (26.0, 0.015)])
def test_a_square_has_its_own_compactness(half_side: float, cut: float) -> None:
    made = found(ramp(distances("square", half_side)))
    assert math.pi / 4 < made.compactness < math.pi / 4 + cut  # a contour through pixels cuts corners
    assert made.radius == pytest.approx(2 * half_side / math.sqrt(math.pi), abs=0.1)


def test_the_contour_lies_between_pixels() -> None:
    starts, _ = contour(ramp(distances("disc", 10.0, y=30.25, x=33.6), width=6.0))
    away = np.hypot(starts[:, 0] - 30.25, starts[:, 1] - 33.6)
    assert abs(away - 10.0).max() < 0.03


def test_places_between_pixels_do_not_matter() -> None:
    rows = [found(ramp(distances("disc", 9.0, y=31 + place, x=31 + place / 2))) for place in np.arange(0, 1, 0.1)]
    assert np.ptp([row.compactness for row in rows]) < 0.004
    assert np.ptp([row.edge for row in rows]) < 0.2


def test_noise_and_lumps_lower_compactness() -> None:
    sharp = ramp(distances("disc", 12.0))
    noise = np.random.default_rng(0).normal(size=sharp.shape)
    rows = [found(sharp + strength * noise).compactness for strength in (0.0, 0.1, 0.2)]
    assert rows[0] - rows[1] > 0.02 and rows[1] - rows[2] > 0.05, rows
    down, right = np.mgrid[:SIDE, :SIDE].astype(float)
    lumpy = distances("disc", 12.0) + 1.2 * np.cos(6 * np.arctan2(down - 31.7, right - 32.4))
    assert found(ramp(lumpy)).compactness < 0.92


def test_blur_raises_compactness_and_widens_the_edge() -> None:
    square = ramp(distances("square", 10.0))
    rows = [found(ndimage.gaussian_filter(square, blur)) for blur in (0.0, 1.5, 3.0)]
    assert rows[0].compactness < rows[1].compactness - 0.01 < rows[2].compactness - 0.02
    assert rows[0].edge < rows[1].edge - 1 < rows[2].edge - 2


def test_what_is_cut_off_or_small_or_nothing_is_not_measured() -> None:
    assert outline_of(ramp(distances("disc", 10.0, x=10.5))) is None
    assert outline_of(ramp(distances("disc", 5.8))) is None
    assert outline_of(np.zeros((SIDE, SIDE))) is None
    assert outline(np.full((SIDE, SIDE, 3), 128, np.uint8)) is None


def test_specks_and_holes_do_not_count() -> None:
    disc = ramp(distances("disc", 12.0))
    spotted = disc.copy()
    spotted[5:8, 5:8] = 1.0
    spotted[30:33, 30:33] = 0.0
    assert found(spotted).compactness == pytest.approx(found(disc).compactness, abs=1e-9)


@pytest.mark.parametrize("colour", scenes.COLOURS)
@pytest.mark.parametrize("background", scenes.BACKGROUNDS)
def test_any_colours_give_the_same_coverage(colour: str, background: str) -> None:
    cover = ramp(distances("disc", 11.0))
    frame = painted(cover, scenes.COLOURS[colour], scenes.BACKGROUNDS[background])
    seen = coverage(frame)
    assert seen is not None and abs(seen - cover).max() < 0.02


def test_colours_of_decoders_that_miss_do_not_move_the_contour() -> None:
    cover = ramp(distances("disc", 11.0))
    rng = np.random.default_rng(1)
    noisy = painted(cover, (0.7, 0.3, 0.35), 0.42).astype(float) + rng.normal(scale=3.0, size=(SIDE, SIDE, 3))
    made = outline(np.clip(noisy, 0, 255).astype(np.uint8))
    assert made is not None
    assert made.radius == pytest.approx(11.0, abs=0.15) and made.compactness > 0.98
    assert made.edge == pytest.approx(2.0, abs=0.3)


def test_drawings_are_measured_as_they_are_drawn() -> None:
    rng = np.random.default_rng(4)
    compact = {}
    for shape in scenes.SHAPES:
        scene = scenes.place_scene(rng, "cyan", shape, "still", frames=1, config=scenes.SceneConfig(0.0, 0.0))
        made = outline(to_bytes(rendering.render([scene], 1, SIDE, SIDE)[0])[0])
        assert made is not None
        assert made.edge == pytest.approx(0.8 * rendering.EDGE_WIDTH, abs=0.25)
        compact[shape] = made.compactness
    assert compact["circle"] > 0.99 > compact["square"] > compact["triangle"] > compact["star"]
