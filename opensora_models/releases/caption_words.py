"""What a release's prompts say beside the picture: scores and camera in 1.x, frame rate and motion score in 2.0."""

from __future__ import annotations

from dataclasses import dataclass

from ..messages.quoting import shortened
from ..text import suffixes, wording
from ..text.wording import Score
from .release import Release


@dataclass(frozen=True)
class CaptionWords:
    """Words for one release, read and found good. ``left_out``: sentences on what the release has no words for."""

    release: Release
    aesthetic: Score | None
    motion: Score | None
    camera: str | None
    frame_rate: float
    left_out: tuple[str, ...] = ()

    def added_to(self, text: str) -> str:
        """``text`` with the words behind it; what it says already is not said again."""
        if self.release.text.suffixes:
            return suffixes.append_once(text, self.frame_rate, self.motion)
        return wording.append_scores(text, self.release.id, self.aesthetic, self.motion, self.camera)


def read_words(
    release: Release, aesthetic: str, motion: str, camera: str | None, frame_rate: float = suffixes.FRAME_RATE
) -> CaptionWords:
    """The words for what a person typed and chose. Raises ValueError for what the release was not trained with.

    In 2.0 no motion means the usual score, since every training text has one; "off" leaves it away.
    """
    if not release.text.suffixes:
        scores = wording.read_aesthetic(release.id, aesthetic), wording.read_motion(release.id, motion)
        return CaptionWords(release, *scores, camera, frame_rate)
    score = suffixes.read_motion(motion) if motion.strip() else release.text.motion
    left_out = []
    if aesthetic.strip().lower() not in wording.NO_SCORE:
        left_out.append(
            f"{release.title} was trained without aesthetic scores; '{shortened(aesthetic)}' is left out of the prompt."
        )
    if camera is not None:
        left_out.append(
            f"{release.title} was trained without camera sentences; '{camera}' is left out, write it into the prompt."
        )
    return CaptionWords(release, None, score, None, frame_rate, tuple(left_out))
