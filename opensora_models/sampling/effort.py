"""What a clip costs with a release: network rows of a run, tokens and arithmetic, in numbers and in one sentence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from ..releases.known import IMAGE_STAGE
from ..releases.printed_sizes import FRAME_RATE, Size
from ..releases.release import Release, Use
from .schedule import sigmas
from .three_rows import rows_of, run_scales

PETA, TERA = 1e15, 1e12
GIGA = 2**30
SURE_MINUTES, LONG_MINUTES = 10, 120
"""Below the first a time is told with a decimal, above the second in hours as well."""
WEIGHT_SIZES = {"bf16": 2, "fp8": 1}
"""Bytes of a weight."""


def rows_of_run(release: Release, use: Use, latent_frames: int, steps: int | None = None) -> int:
    """Rows the network computes in a released run, per sample; rows that count for nothing are not computed."""
    rules = release.guidance
    levels = sigmas(steps or release.times.steps).tolist()
    scales = run_scales(rules.presets[use], levels, latent_frames, reaches_end=rules.fade_reaches_end)
    return rows_of(scales, use != "text" and release.given.kind == "input")


def operations_per_row(release: Release, frames: int, height: int, width: int) -> int:
    """Operations of one sample going once through the released network, text of full length."""
    return release.operations(release.latents.cells(frames, height, width), release.text.limit)


def picture_summary(height: int, width: int) -> str:
    """One plain sentence about a picture of the image stage, which Flux makes."""
    return (
        f"1 image of height {height} × width {width} pixels for Flux.1-dev: make it from an empty latent of 16 "
        f"channels (Empty SD3 Latent) with the sigmas of Open-Sora Sigmas for {IMAGE_STAGE}."
    )


@dataclass(frozen=True)
class Needs:
    """Bytes that sampling needs: the weights by what they are called, and one row of the network beside them."""

    weights: Mapping[str, float]
    row: float
    counted: str = "one row of the network"
    devices: int = 1
    """Each of which needs it, where a step is shared."""


def released_needs(release: Release, frames: int, height: int, width: int) -> Needs | None:
    """What the released model needs for a clip; None where its row has not been counted."""
    if release.row_bytes is None:
        return None
    cells = release.latents.cells(frames, height, width)
    row = release.row_bytes(cells, release.text.limit, WEIGHT_SIZES["bf16"])
    return Needs({name: release.weights * size for name, size in WEIGHT_SIZES.items()}, row)


def memory_sentence(needs: Needs, card: float | None) -> str:
    """What sampling needs in GB, and whether a card with ``card`` bytes to use holds it; None: there is no card.

    One row is counted; several at once, which ComfyUI computes where memory is left, need more.
    """
    row = needs.row / GIGA
    needed = {name: weights / GIGA + row for name, weights in needs.weights.items()}
    listed = " or ".join(f"{total:.1f} GB with {name} weights" for name, total in needed.items())
    each = f" on each of {needs.devices} devices" if needs.devices > 1 else ""
    sentence = f"Sampling needs {listed}{each}, {row:.1f} GB of it for {needs.counted}."
    if card is None:
        return f"{sentence} ComfyUI uses no graphics card here."
    fits = [_fits(name, total - card / GIGA, card / GIGA - row) for name, total in needed.items()]
    return f"{sentence} The card here has {card / GIGA:.1f} GB to use: {', '.join(fits)}."


def _fits(name: str, missing: float, left: float) -> str:
    if missing <= 0:
        return f"{name} fits"
    if left <= 0:
        return f"{name} does not fit even with all weights streamed"
    return f"{name} streams {missing:.1f} GB of weights in every step"


def clip_sentence(release: Release, frames: int, height: int, width: int, published: Size) -> str:
    """What a clip is and what it becomes as a latent."""
    return f"{_clip(release, frames, height, width, published)}."


def summary(release: Release, frames: int, height: int, width: int, published: Size, use: Use = "text") -> str:
    """One plain sentence: what the clip is, the latent's shape, and the arithmetic of a released run."""
    row = operations_per_row(release, frames, height, width)
    run = row * rows_of_run(release, use, release.latent_shape(frames, height, width)[1])
    return (
        f"{_clip(release, frames, height, width, published)}, {row / TERA:.1f} TFLOP per network row, "
        f"{run / PETA:.2f} PFLOP for {release.times.steps} steps with the released {release.parameters} model."
    )


def _clip(release: Release, frames: int, height: int, width: int, published: Size) -> str:
    shape = release.latent_shape(frames, height, width)
    clip = "1 image" if frames == 1 else f"{frames} frames ({frames / FRAME_RATE:.1f} s at {FRAME_RATE:.0f} fps)"
    cut = "" if published == (height, width) else f" (published {published[0]}×{published[1]}, cut to whole cells)"
    tokens = shape[1] * release.latents.tokens_per_frame(height, width)
    return (
        f"{clip} of height {height} × width {width} pixels{cut}: latent {'×'.join(map(str, shape))}, {tokens:,} tokens"
    )


def time_sentence(operations: float, rate: float, steps: int) -> str:
    """How long a run of ``operations`` takes at ``rate`` operations a second, as earlier steps were computed."""
    minutes = operations / rate / 60
    if minutes < 1:
        long = "less than a minute"
    elif minutes < SURE_MINUTES:
        long = f"about {minutes:.1f} minutes"
    else:
        hours = f" ({minutes / 60:.1f} hours)" if minutes > LONG_MINUTES else ""
        long = f"about {minutes:,.0f} minutes{hours}"
    return f"{steps} steps take {long} here, by the {rate / TERA:.3g} TFLOP a second of the last run on this machine."
