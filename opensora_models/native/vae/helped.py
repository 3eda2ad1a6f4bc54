"""Decoding on several devices: workers that hold the VAE as rank 0 has it decode pieces of a clip."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from ...parallel.pieces import SharedDecoding
from ...parallel.workers import MODEL, VAE, Workers
from ...vae.piecewise import Helped
from ...vae.strips import Strips
from ..identity import model_identity, vae_parts
from ..messages import tell
from ..model.parallel_settings import numbers_told, streamed
from .vae import OpenSoraVAE, load_vae, load_vae_patcher


def with_workers(vae: OpenSoraVAE, workers: Workers) -> OpenSoraVAE:
    """A copy of ``vae`` whose decodes by the nodes of this pack are shared. Raises ValueError for other loaders'."""
    settings_of_vae(vae)
    shared = copy.copy(vae)
    shared.workers = workers
    return shared


def settings_of_vae(vae: OpenSoraVAE) -> dict[str, Any]:
    """How the VAE was loaded, as plain values."""
    made = getattr(vae.patcher, "cached_patcher_init", None)
    if not made or made[0] is not load_vae_patcher:
        raise ValueError("Workers load a VAE again from its file: load it with Open-Sora Load VAE.")
    path, spatial, overlap, _, tiling, scale = made[1]
    dtype = str(vae.vae_dtype).removeprefix("torch.")
    told = {"path": path, "spatial": spatial, "overlap": overlap, "dtype": dtype, "tiling": tiling, "scale": scale}
    return {"kind": VAE, "streamed": streamed(vae.patcher), **told}


def loaded_vae(settings: Mapping[str, Any]) -> OpenSoraVAE:
    """The VAE of :func:`settings_of_vae`, in another process."""
    told = {name: value for name, value in settings.items() if name not in ("kind", "streamed")}
    return load_vae(**{**told, "dtype": getattr(torch, told["dtype"])})


def numbers_of_vae(vae: OpenSoraVAE) -> str:
    """The digest of a VAE, the same in every process that holds it. Raises ValueError where it has none."""
    if streamed(vae.patcher):
        return numbers_told(settings_of_vae(vae))
    found = model_identity({"vae": vae_parts(vae)})
    if found.unknown:
        raise ValueError(f"Workers cannot be told of {found.unknown[0]} of this VAE.")
    return found.digest


@contextmanager
def helpers(
    vae: OpenSoraVAE, latents: Tensor, num_frames: int | None, plan: Strips, first_part: int, end_part: int | None
) -> Iterator[Helped | None]:
    """Workers decode meanwhile, where the VAE has some and a clip is more than one piece.

    ``latents`` [B, C, T, h, w] are the network's own. Raises :class:`..workers.WorkersFailed` where one is lost.
    """
    workers, layout = vae.workers, vae.network.decode_layout(latents.shape, num_frames)
    pieces = layout.needed(first_part, end_part)
    if workers is None or len(pieces) < 2:
        yield None
        return
    numbers = numbers_of_vae(vae)
    workers.prepare(settings_of_vae(vae), numbers, VAE)
    parts = {"first_part": first_part, "end_part": end_part}
    inputs = {"latents": latents, "num_frames": num_frames, "plan": asdict(plan), **parts}
    try:
        with workers.call(inputs, numbers, VAE) as crew:
            yield SharedDecoding(crew.everybody, len(latents)).helped
        tell(f"{crew.everybody.size} ranks decoded {len(pieces)} pieces of this clip in turn.", level=logging.INFO)
    finally:
        if not workers.holds(MODEL):  # memory is short: ComfyUI has unloaded it
            workers.close()
