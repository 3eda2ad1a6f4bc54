"""What the weights of an autoencoder cannot show, read from a file's settings and put among them again on saving.

``groups``: of the group norms; 1.2 has also ``image_groups`` and ``temporal_groups``, one for each half, and diffusers
calls the former ``norm_num_groups``. 1.3 has also ``overlap``, whether neighbouring groups of frames share one, and
``normalization``, the statistics its latents are meant for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from ..checkpoint.settings import Settings, whole_number, yes_or_no
from ..messages.quoting import shown
from .autoencoder import OpenSora12, OpenSora13
from .image import ImageConfig
from .statistics import V13_STATISTICS
from .temporal import TemporalConfig

# Group norms have this many groups in every released autoencoder; narrower tiny ones use what divides their width.
GROUPS = 32
NOT_IN_WEIGHTS = ("groups",)
"""Fields of the three configs that shapes do not show."""

PART_OF = {ImageConfig: "image_", TemporalConfig: "temporal_"}
"""What stands before a setting that only one half of a 1.2 file has."""

FOREIGN_NAMES = {"image_groups": "norm_num_groups"}


def groups_of(settings: Settings, widths: Sequence[int], part: str = "") -> int:
    """Groups of the norms over ``widths`` channels; ``part`` is the prefix of a half. ValueError if impossible."""
    common = math.gcd(*widths)
    names = (f"{part}groups", FOREIGN_NAMES.get(f"{part}groups", ""), "groups")
    name = next((name for name in names if settings.get(name) is not None), None)
    if name is None:
        return math.gcd(GROUPS, common)
    groups = whole_number(settings[name], name, 1, common)
    if common % groups:
        near = min((n for n in range(1, common + 1) if common % n == 0), key=lambda n: abs(n - groups))
        raise ValueError(
            f"{name} is {groups}, which does not divide the widths {shown(sorted(set(widths)))}; the nearest good "
            f"value is {near}."
        )
    return groups


def options_of(settings: Settings) -> dict[str, Any]:
    """Options of the 1.3 network that a file may set; {} for what it leaves to the released values."""
    options: dict[str, Any] = {}
    if "overlap" in settings:
        options["overlap"] = yes_or_no(settings["overlap"], "overlap")
    if "normalization" in settings:
        value = settings["normalization"]
        if value is not None and (not isinstance(value, str) or value not in V13_STATISTICS):
            raise ValueError(f"normalization is {shown(value)}; expected {', '.join(V13_STATISTICS)} or null.")
        options["normalization"] = value
    return options


def saved_settings(configs: Sequence[Any], network: OpenSora12 | OpenSora13) -> dict[str, Any]:
    """What must travel with the weights of ``network`` so that its file gives the same pictures again."""
    settings: dict[str, Any] = {"version": network.version}
    for config in configs:
        values: Mapping[str, Any] = {field.name: getattr(config, field.name) for field in fields(config)}
        settings |= {PART_OF.get(type(config), "") + name: values[name] for name in NOT_IN_WEIGHTS}
    if isinstance(network, OpenSora13):
        settings |= {"overlap": network.overlap, "normalization": network.normalization}
    return settings
