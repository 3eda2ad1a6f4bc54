"""Latents on disk, in the layout of ComfyUI's Save Latent, written so that a file is complete or not there."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checkpoint.readers import SafetensorsFile
from ..checkpoint.reading import reading
from ..checkpoint.settings import parse_settings, whole_number
from ..messages.quoting import shown
from ..storage.file_tree import FileTree
from ..storage.places import is_file
from ..storage.tensors import CHECKSUM, expect_whole, save_file
from ..storage.writing import Name, write_new, write_whole

ENDING = ".latent"
TENSOR = "latent_tensor"
# ComfyUI's mark of latents that were not scaled for Stable Diffusion 1; without it older files need a division.
MARK = "latent_format_version_0"
NOTES = "opensora.decode"
# More than any node makes; only nonsense is refused.
LONGEST_CLIP, HIGHEST_RATE = 1_000_000, 10_000


def save_latent(path: Path, latents: Tensor, notes: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> None:
    """Write latents [B, C, T, h, w], all or nothing; ``notes`` come back from ``load_latent``. Raises CannotStore."""
    write_whole(path, _writer(latents, notes, metadata))


def save_new_latent(
    choose: Callable[[], Name],
    latents: Tensor,
    notes: Mapping[str, Any],
    metadata: Mapping[str, Any] | None,
) -> Name:
    """As ``save_latent``, under a name that no file has; arguments and errors as those of ``write_new``."""
    return write_new(choose, _writer(latents, notes, metadata))


def _writer(latents: Tensor, notes: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> Callable[[Path], None]:
    texts = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    texts[NOTES] = json.dumps(dict(notes))
    tensors = {TENSOR: latents.detach().cpu().contiguous(), MARK: torch.tensor([])}
    return lambda path: save_file(tensors, path, metadata=texts)


def load_latent(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Latents in float32 and the notes saved with them ({} for files of other nodes).

    Raises ValueError with one sentence for a file that is no latent file.
    """
    file = SafetensorsFile.open(path)
    with reading(path.name):
        info = file.tensors.get(TENSOR)
        if info is None:
            raise ValueError("it holds no latents; choose a file written by a decode or save node.")
        if len(info.shape) not in (4, 5) or 0 in info.shape or not info.dtype.is_floating_point:
            raise ValueError(
                f"its latents have the shape {list(info.shape)} and type {info.dtype}; expected fractions in [batch, "
                "channels, frames, height, width] with every size at least 1."
            )
        notes = _notes(file.metadata.get(NOTES))
        tensors = dict(file.read(None if CHECKSUM in file.metadata else [TENSOR]))
        expect_whole(tensors, file.metadata)
        latents = tensors[TENSOR].float()
        # 0.18215: what Save Latent of old ComfyUI versions multiplied with.
        return (latents if MARK in file.tensors else latents / 0.18215), notes


def kept_latents(root: Path) -> Iterator[tuple[Path, str | None]]:
    """Files below ``root`` in which our nodes kept latents, and the graph saved with them, as JSON; links are left out.

    Latents of other programs, and what cannot be read as latents, are nobody's to clear.
    """
    for name in FileTree(str(root), (ENDING,), follow_links=False, dated=False).files():
        path = root / name
        try:
            metadata = SafetensorsFile.open(path).metadata if is_file(path) else {}
        except ValueError:
            continue
        if NOTES in metadata:
            yield path, metadata.get("prompt")


def _notes(text: str | None) -> dict[str, Any]:
    """What was noted with the latents; what we know of it must be what we write."""
    if text is None:
        return {}
    notes = parse_settings(text, f"its notes '{NOTES}'")
    if "num_frames" in notes:
        whole_number(notes["num_frames"], "The noted num_frames", 0, LONGEST_CLIP)
    rate = notes.get("frame_rate", 1.0)
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 < rate <= HIGHEST_RATE:
        raise ValueError(f"The noted frame_rate is {shown(rate)}; expected a number above 0, up to {HIGHEST_RATE}.")
    return notes
