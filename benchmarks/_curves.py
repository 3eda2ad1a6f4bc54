"""Ways of computing less as curves of nearness to the full run over computed rows, and how far one is above others."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

NAMES = {"easy": "EasyCache", "lazy": "LazyCache", "fewer": "fewer steps"}
MARGIN = 4.0
"""dB above the best of the others that are asked for."""


@dataclass
class Way:
    """One way of computing less, and what came of it: a number a prompt, the mean of its clips."""

    name: str
    kind: str
    psnr: list[float] = field(default_factory=list)
    ssim: list[float] = field(default_factory=list)
    rows: list[float] = field(default_factory=list)
    seconds: float = 0.0
    right: dict[str, int] = field(default_factory=lambda: {"colour": 0, "shape": 0, "motion": 0})
    clips: int = 0

    @property
    def mean_rows(self) -> float:
        """Rows a clip, which adaptive caches have a mean of."""
        return statistics.fmean(self.rows)


def at_rows(curve: Sequence[Way], rows: float) -> list[float] | None:
    """PSNR a prompt of a family of ways, between its two nearest in rows; None where it has none of so many.

    Ways that another of the family surpasses with no more rows are left out. Where all of a family compute more, the
    one of the fewest rows counts. Both is to the family's advantage.
    """
    ordered: list[Way] = []
    for way in sorted(curve, key=lambda way: (way.mean_rows, -statistics.fmean(way.psnr))):
        if not ordered or statistics.fmean(way.psnr) > statistics.fmean(ordered[-1].psnr):
            ordered.append(way)
    if ordered and rows < ordered[0].mean_rows:
        return ordered[0].psnr
    for low, high in zip(ordered, ordered[1:], strict=False):
        if low.mean_rows <= rows <= high.mean_rows:
            share = (rows - low.mean_rows) / (high.mean_rows - low.mean_rows)
            return [(1 - share) * a + share * b for a, b in zip(low.psnr, high.psnr, strict=True)]
    return None


def mean_with_interval(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and half of its 95 % interval over prompts."""
    if len(values) < 2:
        return values[0], math.nan
    return statistics.fmean(values), 1.96 * statistics.stdev(values) / math.sqrt(len(values))


def gains(found: Sequence[Way]) -> dict[str, dict[str, Any]]:
    """Share of rows -> the distance of the Step Cache to the best of the others at equal rows."""
    families = {kind: [each for each in found if each.kind == kind] for kind in ("easy", "lazy", "fewer")}
    told = {}
    for way in (each for each in found if each.kind == "step"):
        others = {kind: at_rows(family, way.mean_rows) for kind, family in families.items()}
        known = {kind: values for kind, values in others.items() if values is not None}
        best = max(known, key=lambda kind: statistics.fmean(known[kind])) if known else None
        level = statistics.fmean(way.psnr)
        told[way.name.split()[2]] = {"rows": way.mean_rows, "psnr": level, "best": best and NAMES[best]}
        if best is not None:
            gain, half = mean_with_interval([a - b for a, b in zip(way.psnr, known[best], strict=True)])
            told[way.name.split()[2]].update(gain=gain, half=half)
    return told


def verdicts(found: Sequence[Way]) -> list[str]:
    """A line for every share."""
    lines = []
    for share, told in gains(found).items():
        here = f"Step Cache {share} %, {told['rows']:.1f} rows"
        if told["best"] is None:
            lines.append(f"{here}: no other way computes so many")
            continue
        bar = "above" if told["gain"] >= MARGIN else "below"
        lines.append(
            f"{here}: {told['gain']:+.1f} ± {told['half']:.1f} dB against {told['best']} "
            f"({told['psnr'] - told['gain']:.1f}), {bar} the bar of {MARGIN:g} dB"
        )
    return lines
