"""What the pack keeps in ComfyUI's output folder: listed, and cleared when a person says so.

Nothing goes by itself unless the setting ``OpenSora.Stored.KeepDays`` says after how many days. The page keeps settings
in a file of the user, which is read here; a server without a page takes it from there as well.
"""

from __future__ import annotations

import json
import logging
import math
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import folder_paths

from ..messages.quoting import LONGEST_PATH, one_line, shortened, shown
from ..storage.housekeeping import Stored, cleared, file_of, stores
from ..vae.latent_file import kept_latents
from .graph_words import words_of
from .messages import tell
from .page_settings import page_setting
from .sampling.long_video import STORE_FOLDER
from .vae.plans import UNFINISHED

logger = logging.getLogger("opensora")

EVERYTHING = "everything"
SEGMENTS, DECODES, LATENTS = "segments of long videos", "unfinished decodes", "saved latents"
KINDS = (EVERYTHING, SEGMENTS, DECODES, LATENTS)
LIST, CLEAR = "only list", "clear"

SETTING = "OpenSora.Stored.KeepDays"
"""Days after which what is kept goes when ComfyUI starts; 0 or nothing: never."""
DAY = 24 * 3600.0
MOST_LINES, MOST_SAID = 500, 12


@dataclass(frozen=True)
class Choice:
    """What of all that is kept: one of :data:`KINDS`, not changed for some days, with words in its name or prompt."""

    kind: str = EVERYTHING
    older_than: float = 0.0
    containing: str = ""


def kept(choice: Choice) -> list[Stored]:
    """What is kept of this choice, the largest first."""
    output = Path(folder_paths.get_output_directory())
    found = [*stores(output / STORE_FOLDER, SEGMENTS), *stores(output / UNFINISHED, DECODES, depth=2)]
    if choice.kind in (EVERYTHING, LATENTS):
        files = (file_of(path, LATENTS, words_of({"prompt": _parsed(prompt)})) for path, prompt in kept_latents(output))
        found += filter(None, files)
    oldest, words = time.time() - choice.older_than * DAY, choice.containing.casefold().strip()
    return sorted(
        (
            each
            for each in found
            if choice.kind in (EVERYTHING, each.kind)
            and (choice.older_than <= 0 or each.changed <= oldest)
            and (words in _name(each).casefold() or words in each.about.casefold())
        ),
        key=lambda each: (-each.size, each.path),
    )


def housekeeping(choice: Choice, clear: bool) -> tuple[str, int]:
    """List what is kept, or clear it; a report and the bytes that were found, or went."""
    found = kept(choice)
    done = [cleared(each) for each in found] if clear else found
    size = sum(each.size for each in done)
    whole = sum(not each.held for each in done)
    summary = f"{whole} of {len(found)} removed, {_size(size)}" if clear else f"{len(done)} kept, {_size(size)}"
    seen = sorted(done, key=lambda each: not each.held)[:MOST_SAID]
    listing = "" if clear or not found else "; nothing was removed"
    tell(f"{summary}{listing}.", *map(_line, seen), level=logging.INFO)
    if len(done) > len(seen):
        tell(f"And {len(done) - len(seen)} more, which the report names.", level=logging.INFO)
    if clear:
        _log([each for each in done if each not in seen])
    lines = [_line(each) for each in done[:MOST_LINES]]
    lines += [f"and {len(done) - MOST_LINES} more"] * (len(done) > MOST_LINES)
    days = days_to_keep()
    stay = f"goes {days:g} days after it was last changed" if days else "stays until it is cleared"
    return "\n".join([f"{summary}. What is kept {stay}.", *lines]), size


def remove_expired() -> None:
    """Clear what has been kept for longer than the setting allows, and say so in the log."""
    days = days_to_keep()
    if days:
        logger.info("What Open-Sora keeps goes after %g days, as the setting %s says.", days, SETTING)
        _log([cleared(each) for each in kept(Choice(older_than=days))])


def days_to_keep() -> float:
    """The setting; 0 where there is none, or several people have settings of their own."""
    days = page_setting(SETTING)
    if days is None:
        return 0.0
    if isinstance(days, bool) or not isinstance(days, (int, float)) or not 0 <= days < math.inf:
        logger.warning("The setting %s is %s, but must be a number of days from 0; nothing is removed.", SETTING,
                       shown(days))  # fmt: skip
        return 0.0
    return float(days)


def _parsed(text: str | None) -> Any:
    try:
        return json.loads(text or "")
    except (ValueError, RecursionError):
        return None


def _name(stored: Stored) -> str:
    """The path below the output folder, on one line."""
    output = Path(folder_paths.get_output_directory())
    path = stored.path.relative_to(output) if stored.path.is_relative_to(output) else stored.path
    return one_line(path.as_posix().replace("\n", "\\n"), LONGEST_PATH)


def _held(stored: Stored) -> str:
    return f"is {stored.held} and stays" if stored.held == "in use" else stored.held


def _line(stored: Stored) -> str:
    about = f": {shortened(stored.about)}" if stored.about else ""
    held = f" ({_held(stored)})" if stored.held else ""
    age = max(0.0, time.time() - stored.changed)
    return f"{stored.kind}, {_size(stored.size)}, {_age(age)}, {_name(stored)}{about}{held}"


def _log(done: list[Stored]) -> None:
    for each in done:
        if each.size or not each.held:
            logger.info("Removed '%s' (%s), %s.", _name(each), each.kind, _size(each.size))
        if each.held:
            logger.info("'%s' (%s) %s.", _name(each), each.kind, _held(each))


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count} bytes"


def _age(seconds: float) -> str:
    for unit, factor in (("days", DAY), ("hours", 3600.0)):
        if seconds >= 2 * factor:
            return f"{seconds / factor:.0f} {unit} old"
    return f"{seconds / 60:.0f} minutes old"
