"""What the words of the Reference node mean: which frames of a picture or clip are encoded, and where they go."""

from __future__ import annotations

from dataclasses import dataclass

from ..releases.groups import (
    GROUP_FRAMES,
    GROUP_LATENTS,
    GROUP_STEP,
    LENGTH_RULES,
    Version,
    is_good_length,
    nearest_good_length,
)

AT_POSITION = "at position"
FIRST = "first frame"
LAST = "last frame"
FIRST_AND_LAST = "first and last frame"
LOOP = "loop (same first and last)"
KEYFRAMES = "keyframes, evenly spread"
FORWARDS = "extend forwards"
BACKWARDS = "extend backwards"
CONNECT = "connect two clips"
EDIT = "edit whole clip"
PLACEMENTS = (FIRST, LAST, FIRST_AND_LAST, LOOP, KEYFRAMES, AT_POSITION, FORWARDS, BACKWARDS, CONNECT, EDIT)


@dataclass(frozen=True)
class Piece:
    """``count`` frames from frame ``start`` of picture input ``source`` (0 or 1), put at latent frame ``target``.

    A negative target counts from the end of the clip; None puts the piece at the very end, whatever its length.
    """

    source: int
    start: int
    count: int
    target: int | None


def plan(
    placement: str, counts: tuple[int, int], clip_length: int, version: Version | None, *, take: int, at: int
) -> list[Piece]:
    """The pieces of one Reference node.

    Args:
        placement: one of :data:`PLACEMENTS`.
        counts: pictures in the first and in the second input (0 = not connected).
        clip_length: latent frames of the clip to be made.
        version: None for another model's clip, whose lengths follow rules we do not know.
        take: frames to use of a clip; 0 = all of it, or one group where a clip is extended.
        at: latent frame for ``at position``.

    Raises:
        ValueError: a length that does not fill groups, more frames than there are, or too many keyframes.
    """
    first, second = counts
    if first < 1:
        raise ValueError("A reference needs at least 1 picture or a latent, none was given; connect one.")
    if placement in (FIRST, LAST, FIRST_AND_LAST, LOOP):
        end = (1, second - 1) if second and placement == FIRST_AND_LAST else (0, 0 if placement == LOOP else first - 1)
        opening = [] if placement == LAST else [Piece(0, 0, 1, 0)]
        return opening if placement == FIRST else [*opening, Piece(*end, 1, -1)]
    if placement == KEYFRAMES:
        return _keyframes(first, clip_length, version)
    if placement in (AT_POSITION, EDIT):
        count = _checked(version, take or first, first, "reference")
        return [Piece(0, 0, count, at if placement == AT_POSITION else 0)]
    group = _checked(version, take or min(GROUP_FRAMES, first), first, "reference")
    if placement == FORWARDS:
        return [Piece(0, first - group, group, 0)]
    if placement == BACKWARDS:
        return [Piece(0, 0, group, None)]
    if not second:
        raise ValueError("To connect two clips a second one is needed; connect the clip that comes after.")
    after = _checked(version, take or min(GROUP_FRAMES, second), second, "second reference")
    return [Piece(0, first - group, group, 0), Piece(1, 0, after, None)]


def _checked(version: Version | None, count: int, available: int, name: str) -> int:
    """``count`` if the reference has so many frames and they fill whole groups."""
    if count > available:
        raise ValueError(
            f"{count} frames of the {name} are wanted but it has {available}; the nearest good value is "
            f"{_longest(version, available)}."
        )
    if count > 1 and version is not None and not is_good_length(version, count):
        raise ValueError(
            f"{count} frames of the {name} do not fill the groups of Open-Sora {version}, which take "
            f"{LENGTH_RULES[version]} frames; of the {available} there are the nearest good value is "
            f"{_nearest(version, count, available)}."
        )
    return count


def _nearest(version: Version, count: int, available: int) -> int:
    """The whole-group length nearest to ``count`` that ``available`` frames can give."""
    return min(nearest_good_length(version, count), _longest(version, available))


def _longest(version: Version | None, available: int) -> int:
    """The longest whole-group length inside ``available`` frames."""
    if version is None:
        return available
    if available < GROUP_FRAMES:
        return 1
    return available - (available - GROUP_FRAMES) % GROUP_STEP[version]


def _keyframes(count: int, clip_length: int, version: Version | None) -> list[Piece]:
    """Pictures spread over the clip: in 1.2 over the starts of its groups, in 1.3 over its latent frames."""
    step = GROUP_LATENTS if version == "1.2" else 1
    places = list(range(0, clip_length, step))
    if count > len(places):
        raise ValueError(
            f"{count} keyframes do not fit into a clip with {len(places)} places; "
            f"the nearest good value is {len(places)}."
        )
    span = (len(places) - 1) / max(1, count - 1)
    return [Piece(0, number, 1, places[round(number * span)]) for number in range(count)]


def latent_of_frame(version: Version | None, frame: int, clip_length: int) -> int:
    """The latent frame that holds pixel frame ``frame`` of a clip of ``clip_length`` latent frames.

    A latent frame holds four pixel frames, the first one of a group only one. Negative frames stay negative:
    -1 is the last latent frame.
    """
    if version is None:
        if frame:
            raise ValueError("This latent is not Open-Sora's; count the position in latent frames, 0 is the first.")
        return 0
    if frame < 0:
        whole = clip_length // GROUP_LATENTS * GROUP_STEP[version] + (GROUP_FRAMES - GROUP_STEP[version])
        total = whole if clip_length >= GROUP_LATENTS else 4 * clip_length - 3
        return latent_of_frame(version, max(0, total + frame), clip_length) - clip_length
    groups = max(1, -(-clip_length // GROUP_LATENTS))
    group = min(frame // GROUP_STEP[version], groups - 1)
    inside = frame - group * GROUP_STEP[version]
    return group * GROUP_LATENTS + (0 if inside == 0 else 1 + (inside - 1) // 4)
