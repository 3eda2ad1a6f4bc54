"""ComfyUI's curves: the inputs, drawn in its editor or written, and what comes of them, or of a wire, as factors.

Versions that have no curves know the input as a socket alone; values of programs arrive there as well.
"""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...sampling.factor_curve import EXAMPLE, FLAT, FactorCurve, read_curve, read_points
from ..messages import tell

try:
    from comfy_api.input import CurveInput, LinearCurve, MonotoneCubicCurve
except ImportError:  # ComfyUI before it had an editor
    CurveInput = LinearCurve = MonotoneCubicCurve = None

TYPE = "CURVE"
SAMPLES = 257
"""Of a curve that is none of core's two kinds: one more than its own lookup tables have, so that both ends are hit."""


def points_input(name: str, *, advanced: bool = False) -> io.Input:
    """A curve as plain numbers, for pages that draw no editor and for programs."""
    return io.String.Input(
        name,
        default="",
        optional=True,
        advanced=advanced,
        tooltip=f"The curve as numbers, share:factor, for example {EXAMPLE}. Empty: the drawn curve.",
    )


def curve_input(name: str, tooltip: str, *, advanced: bool = False) -> io.Input:
    """An optional input for a curve that is flat at 1, with core's editor where there is one."""
    options = {"optional": True, "tooltip": tooltip, "advanced": advanced}
    if hasattr(io, "Curve"):
        return io.Curve.Input(name, default=list(FLAT.points), socketless=False, **options)
    return io.Custom(TYPE).Input(name, **options)


def curve_of(value: Any) -> FactorCurve:
    """The curve of an input's value; None is flat. Raises ValueError for what is no curve between 0 and 1."""
    if value is None:
        return FLAT
    if isinstance(value, FactorCurve):
        return value
    if CurveInput is None or not isinstance(value, CurveInput):
        return read_curve(value)
    if isinstance(value, (LinearCurve, MonotoneCubicCurve)):
        kind = "linear" if isinstance(value, LinearCurve) else "monotone_cubic"
        return read_curve({"points": value.points, "interpolation": kind})
    shares = [place / (SAMPLES - 1) for place in range(SAMPLES)]
    return read_curve({"points": [(share, value.interp(share)) for share in shares], "interpolation": "linear"})


def chosen_curve(what: str, points: str, drawn: Any) -> FactorCurve:
    """The curve of the inputs ``<what>_points`` and ``<what>_curve``: the text where there is one, else the drawn."""
    drawn = curve_of(drawn)
    if not points.strip():
        return drawn
    if not drawn.flat:
        tell(f"The numbers of {what}_points are used and the curve of {what}_curve is set aside; empty one of them.")
    return read_points(f"{what}_points", points)
