"""What of a run's settings is not its release's own: said, never changed.

The nodes start with one set of numbers whatever MODEL is connected, so somebody who touches nothing gets those and not
the ones a later release was published with.
"""

from __future__ import annotations

from collections.abc import Mapping

from ..releases.guidance import PRESETS
from ..releases.release import Release, Use

RUN_STARTS: Mapping[str, float] = {"steps": 30, "cfg": 7.0, "image_cfg": 5.0}
"""What the sampling nodes start with."""
GUIDER_STARTS: Mapping[str, float] = {"cfg": RUN_STARTS["cfg"], "image_cfg": 0.0}
"""What the guider starts with."""
STEPS_START: Mapping[str, float] = {"steps": RUN_STARTS["steps"]}
"""What the schedule starts with."""


def untouched(release: Release, use: Use, values: Mapping[str, float | None], starts: Mapping[str, float]) -> str:
    """A sentence where every setting is the one a node starts with and the release was published with others; or ""."""
    if any(values.get(name) != start for name, start in starts.items()):
        return ""
    guidance = release.guidance.presets[use]
    own = {"steps": release.times.steps, "cfg": guidance.text_scale, "image_cfg": guidance.image_scale}
    others = {name: own[name] for name, start in starts.items() if own[name] not in (None, start)}
    if not others:
        return ""
    verb = "are" if len(starts) > 1 else "is"
    return f"{release.title} was released with {_listed(others)}; {_listed(starts)}, as the node starts, {verb} kept."


def anothers_preset(release: Release, name: str) -> str:
    """A sentence where a guidance preset is not among the release's own; "" for its own and for other words."""
    own = [known for known, preset in PRESETS.items() if preset in release.guidance.presets.values()]
    if name not in PRESETS or name in own:
        return ""
    return (
        f"The guidance {name} is that of another release and is kept; {release.title} was released with "
        f"{' or '.join(own)}, which automatic chooses."
    )


def _listed(numbers: Mapping[str, float | None]) -> str:
    *first, last = [f"{name} {number:g}" for name, number in numbers.items()]
    return f"{', '.join(first)} and {last}" if first else last
