"""Latents on disk, in the layout of ComfyUI's Save Latent, written so that a file is complete or not there."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

ENDING = ".latent"
TENSOR = "latent_tensor"
# ComfyUI's mark of latents that were not scaled for Stable Diffusion 1; without it older files need a division.
MARK = "latent_format_version_0"
NOTES = "opensora.decode"


def save_latent(path: Path, latents: Tensor, notes: Mapping[str, Any], metadata: Mapping[str, Any] | None) -> None:
    """Write latents [B, C, T, h, w] under a temporary name and rename; ``notes`` come back from ``load_latent``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = {key: json.dumps(value) for key, value in (metadata or {}).items()}
    texts[NOTES] = json.dumps(dict(notes))
    unfinished = path.with_name(path.name + ".part")
    tensors = {TENSOR: latents.detach().cpu().contiguous(), MARK: torch.tensor([])}
    save_file(tensors, unfinished, metadata=texts)
    os.replace(unfinished, path)


def load_latent(path: Path) -> tuple[Tensor, dict[str, Any]]:
    """Latents in float32 and the notes saved with them ({} for files of other nodes).

    Raises ValueError with one sentence for a file that is no latent file.
    """
    try:
        with safe_open(str(path), "pt") as file:
            names = set(file.keys())
            if TENSOR not in names:
                raise ValueError(f"'{path.name}' holds no latents; choose a file written by a decode or save node.")
            latents = file.get_tensor(TENSOR).float()
            notes = json.loads((file.metadata() or {}).get(NOTES, "{}"))
    except (SafetensorError, OSError) as error:
        raise ValueError(f"'{path.name}' cannot be read as latents ({error}); choose another file.") from error
    # 0.18215: what Save Latent of old ComfyUI versions multiplied with.
    return (latents if MARK in names else latents / 0.18215), notes
