"""Finished segments of a long video in one folder."""

from __future__ import annotations

import logging
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from .pieces import Pieces
from .tensors import save_file

logger = logging.getLogger("opensora")

LATENT_KEY = "latent"
ADVICE = "finished segments stay stored; with resume off none are"


class SegmentStore:
    """Segments of the run ``run``, a fingerprint of everything that decides what they look like.

    ``about``: what people know it by.

    A run that is killed at any moment leaves whole segments behind. Segments of another run, damaged ones and whatever
    else lies in their place are removed and made again.
    """

    def __init__(self, folder: Path, run: str, about: str = "") -> None:
        self.folder = folder
        self.taken: list[int] = []
        self._pieces = Pieces(folder, run, kept=ADVICE, about=about)

    def path(self, index: int) -> Path:
        """Where segment ``index`` is kept."""
        return self._pieces.path(_name(index))

    def load(self, index: int) -> Tensor | None:
        """Segment ``index`` if it is there and whole; ``taken`` notes it."""
        found = self._pieces.content(_name(index))
        if found is None:
            return None
        facts, content = found
        try:
            latent = load(content)[LATENT_KEY]
            whole = facts == _facts(latent) and bool(torch.isfinite(latent).all())
        except (SafetensorError, KeyError):
            whole = False
        if not whole:
            self._pieces.remove(_name(index), "holds no latents of this run")
            return None
        self.taken.append(index)
        return latent

    def save(self, index: int, latent: Tensor) -> None:
        """Store a finished segment, all or nothing. One with values that are not numbers is not worth keeping."""
        if not bool(torch.isfinite(latent).all()):
            logger.warning("Segment %d holds values that are not numbers and is not stored.", index + 1)
            return
        kept = latent.detach().cpu().contiguous()
        self._pieces.write(_name(index), lambda path: save_file({LATENT_KEY: kept}, path), _facts(kept))


def _name(index: int) -> str:
    return f"segment_{index:04d}.safetensors"


def _facts(latent: Tensor) -> dict[str, object]:
    return {"shape": list(latent.shape), "dtype": str(latent.dtype)}
