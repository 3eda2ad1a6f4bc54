"""What the words of the Reference node mean: which frames of a picture or clip are encoded, and where they go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..releases.known import RELEASES
from ..releases.release import Release

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


ANOTHER_MODELS_TAKE = 17
"""Frames of a clip that is extended where we know nothing of the model."""


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
    placement: str, counts: tuple[int, int], clip_length: int, version: str | None, *, take: int, at: int
) -> list[Piece]:
    """The pieces of one Reference node.

    Args:
        placement: one of :data:`PLACEMENTS`.
        counts: pictures in the first and in the second input (0 = not connected).
        clip_length: latent frames of the clip to be made.
        version: id of the release; None for another model's clip, whose lengths follow rules we do not know.
        take: frames to use of a clip; 0 = all of it, or the release's usual number where a clip is extended.
        at: latent frame for ``at position``.

    Two clips are connected by the last frame of one and the first of the other where the release was trained with
    pictures at both ends but not with clips, unless ``take`` asks for clips.

    Raises:
        ValueError: a length that does not fill groups, more frames than there are or than the clip has room for, or too
            many keyframes.
    """
    first, second = counts
    release = RELEASES.get(version or "")
    if first < 1:
        raise ValueError("A reference needs at least 1 picture or a latent, none was given; connect one.")
    check_room(release, clip_length)
    if placement in (FIRST, LAST, FIRST_AND_LAST, LOOP):
        end = (1, second - 1) if second and placement == FIRST_AND_LAST else (0, 0 if placement == LOOP else first - 1)
        opening = [] if placement == LAST else [Piece(0, 0, 1, 0)]
        return opening if placement == FIRST else [*opening, Piece(*end, 1, -1)]
    if placement == KEYFRAMES:
        return _keyframes(first, clip_length, release)
    if placement == EDIT and release is not None and not release.given.frame_mask:
        raise ValueError(
            f"{release.title} has one time for all frames and cannot edit some of them: encode the clip with your VAE "
            f"and sample that latent with denoise below 1, or give its frames with '{FORWARDS}' or '{AT_POSITION}'."
        )
    if placement in (AT_POSITION, EDIT):
        count = _checked(release, take or first, first, "reference", _room(release, clip_length))
        return [Piece(0, 0, count, at if placement == AT_POSITION else 0)]
    if placement == CONNECT and not second:
        raise ValueError("To connect two clips a second one is needed; connect what comes after to second_image.")
    if placement == CONNECT and not take and release is not None and not release.given.anywhere:
        return [Piece(0, first - 1, 1, 0), Piece(1, 0, 1, -1)]
    room = _room(release, clip_length, clips=2 if placement == CONNECT else 1)
    ends = [Piece(0, 0, _taken(release, take, first, room, "reference", at_end=placement == BACKWARDS), None)]
    if placement != BACKWARDS:
        ends = [Piece(0, first - ends[0].count, ends[0].count, 0)]
    if placement == CONNECT:
        ends.append(Piece(1, 0, _taken(release, take, second, room, "second reference", at_end=True), None))
    return ends


def unused(pieces: Sequence[Piece], counts: tuple[int, int]) -> list[str]:
    """Sentences on the pictures that no piece takes, for each input that has some.

    ``counts`` are the pictures in the first and in the second input, as for :func:`plan`.
    """
    notes = []
    for source, (count, name) in enumerate(zip(counts, ("reference", "second reference"), strict=True)):
        taken = sorted({piece.start + k for piece in pieces if piece.source == source for k in range(piece.count)})
        if count and not taken:
            notes.append(f"The {name} is not used by this placement.")
        elif len(taken) < count:
            numbers = f"frame {taken[0]} is" if len(taken) == 1 else f"frames {taken[0]} to {taken[-1]} are"
            if len(taken) > 1 and taken[-1] - taken[0] >= len(taken):
                numbers = f"frames {', '.join(map(str, taken))} are"
            notes.append(f"Of the {count} frames of the {name}, counted from 0, {numbers} used.")
    return notes


def check_room(release: Release | None, clip_length: int) -> None:
    """Refuse references for a single picture where the release gives frames of clips only."""
    if release is not None and not release.given.anywhere and clip_length == 1:
        raise ValueError(
            f"{release.title} makes a single picture from words alone, without references; the nearest good value is "
            f"{release.latents.lengths.first} frames."
        )


@dataclass(frozen=True)
class _Room:
    """Latent frames that each given clip may fill, of the ``length`` of the clip to be made."""

    each: int
    length: int


def _room(release: Release | None, length: int, clips: int = 1) -> _Room | None:
    """The room of given clips; where a release gives ends only, they leave a latent frame to make."""
    if release is None:
        return None
    return _Room(length if release.given.anywhere else max(1, (length - 1) // clips), length)


def _taken(
    release: Release | None, take: int, available: int, room: _Room | None, name: str, *, at_end: bool = False
) -> int:
    """Frames of a clip that is extended. Refused is what leaves nothing to make, and ``at_end`` what has no room."""
    usual = release.given.takes[0] if release is not None else ANOTHER_MODELS_TAKE
    count = _checked(release, take or min(usual, available), available, name, room)
    if release is None or room is None or (release.given.anywhere and not at_end):
        return count
    latents = release.latents.lengths.counting.latents(count)
    if latents > room.each:
        rule = "" if release.given.anywhere else " and must keep some of its own"
        raise ValueError(
            f"{count} frames of the {name} fill {latents} latent frames, but the clip to be made has {room.length}"
            f"{rule}; the nearest good value is {_most(release, available, room)}."
        )
    return count


def _most(release: Release | None, available: int, room: _Room | None) -> int:
    """The most frames that ``available`` ones and the room allow."""
    if release is not None and room is not None:
        available = min(available, release.latents.lengths.counting.frames(room.each))
    return longest_good(release, available)


def _checked(release: Release | None, count: int, available: int, name: str, room: _Room | None) -> int:
    """``count`` if the reference has so many frames and they fill whole groups; what is suggested fits the room too."""
    most = _most(release, available, room)
    if count > available:
        raise ValueError(
            f"{count} frames of the {name} are wanted but it has {available}; the nearest good value is {most}."
        )
    if count > 1 and release is not None and not release.latents.lengths.is_good(count):
        raise ValueError(
            f"{count} frames of the {name} do not fill the groups of {release.title}, which take "
            f"{release.latents.lengths.examples} frames; of the {available} there are the nearest good value is "
            f"{min(release.latents.lengths.nearest(count), most)}."
        )
    return count


def longest_good(release: Release | None, available: int) -> int:
    """The longest whole-group length inside ``available`` frames, 1 where no group fits."""
    if release is None:
        return available
    lengths = release.latents.lengths
    if available < lengths.first:
        return 1
    return available - (available - lengths.first) % lengths.step


def _keyframes(count: int, clip_length: int, release: Release | None) -> list[Piece]:
    """Pictures spread over the clip: over its latent frames, or in 1.2 over the starts of its groups."""
    step = (release.given.align if release is not None else None) or 1
    places = list(range(0, clip_length, step))
    most = len(places) - (release is not None and not release.given.frame_mask)  # where frames are given, one is made
    if count > most:
        raise ValueError(
            f"{count} keyframes do not fit into a clip with {len(places)} places"
            f"{', one of which is left to make' * (most < len(places))}; the nearest good value is {most}."
        )
    span = (len(places) - 1) / max(1, count - 1)
    return [Piece(0, number, 1, places[round(number * span)]) for number in range(count)]


def latent_of_frame(version: str | None, frame: int, clip_length: int) -> int:
    """The latent frame that holds pixel frame ``frame`` of a clip of ``clip_length`` latent frames.

    ``version`` is the release's id. Negative frames stay negative: -1 is the last latent frame.

    Raises:
        ValueError: a frame outside the clip, or one of a clip whose frames cannot be counted.
    """
    release = RELEASES.get(version or "")
    if release is None:
        if frame:
            raise ValueError("This latent is not Open-Sora's; count the position in latent frames, 0 is the first.")
        return 0
    counting = release.latents.lengths.counting
    length = counting.frames(clip_length)
    if not -length <= frame < length:
        raise ValueError(
            f"Frame {frame} lies outside the clip of {length} frames; the nearest good value is "
            f"{-length if frame < 0 else length - 1}."
        )
    if frame >= 0:
        return counting.holding(frame, clip_length)
    return counting.holding(length + frame, clip_length) - clip_length
