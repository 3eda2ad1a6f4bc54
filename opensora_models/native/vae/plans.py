"""In which strips a clip is decoded or encoded: what a person chose, what fits into memory, what a killed run had.

The last bits of a result depend on the strips (the statistics of a layer are merged from theirs), and strips that are
chosen by themselves on the memory that is free. What was begun in some strips is therefore repeated in the same ones.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import comfy.model_management
import folder_paths
from torch import Tensor

from ...storage.failures import CannotStore, explained
from ...storage.identity import identity
from ...storage.locks import FolderLock, remove_if_idle
from ...storage.pieces import Pieces
from ...vae.budget import candidate_plans
from ...vae.needs import decode_bytes, encode_bytes, fitting
from ...vae.strips import Strips
from ...vae.tiled import TiledAutoencoder
from ..messages import tell
from .vae import IN_TIME_TOO, OpenSoraVAE

logger = logging.getLogger("opensora")

# What the nodes offer for the size of the strips: automatic, one piece per layer, or the area of a tile in pixels.
AUTO, WHOLE = "auto", "off"
TILE_SIZES = (AUTO, WHOLE, "1024", "512", "256", "128")
ONE_PIECE = Strips(None, images=4)

UNFINISHED = "opensora_unfinished"
"""The folder in the output folder for what is kept of decodes and encodes until they are complete."""
BEGUN = "begun"
"""The folder in it for the plans of decodes and encodes that leave nothing else behind when they are killed."""
PLAN = "plan"
DECODE, ENCODE = "decode", "encode"
COMPARED = 8  # frames by which a clip is told from others of its size


def chosen_plan(vae: OpenSoraVAE, tile: str) -> Strips | None:
    """The plan of a menu entry; None lets free memory decide."""
    if tile == AUTO:
        return None
    return ONE_PIECE if tile == WHOLE else vae.tile_plan(int(tile), int(tile))


def prepared(vae: OpenSoraVAE, shape: Sequence[int], plan: Strips | None, *, decoding: bool) -> Strips:
    """Make room on the device, load the weights, and settle the plan by what is then free."""
    measure = decode_bytes if decoding else encode_bytes
    size = vae.vae_dtype.itemsize
    needed = measure(vae.network, shape, size, plan or candidate_plans()[0])
    comfy.model_management.load_models_gpu([vae.patcher], memory_required=needed, force_full_load=vae.disable_offload)
    if plan is not None:
        return plan
    free = vae.patcher.get_free_memory(vae.device)
    settled = fitting(vae.network, shape, size, free, decoding=decoding)
    need, work = measure(vae.network, shape, size, settled), "Decoding" if decoding else "Encoding"
    logger.info("%s %s in %s: about %.1f GB needed, %.1f GB free.", work, " x ".join(map(str, shape[-3:])), settled,
                need / 2**30, free / 2**30)  # fmt: skip
    if need > free:
        tell(f"{work} needs about {need / 2**30:.1f} GB beside the weights, and {free / 2**30:.1f} GB are free; "
             f"{_way_out(vae, shape, decoding)}.")  # fmt: skip
    return settled


def _way_out(vae: OpenSoraVAE, shape: Sequence[int], decoding: bool) -> str:
    """What takes less memory than a clip in the smallest strips, as the end of a sentence."""
    network = vae.network
    layout = (network.decode_layout if decoding else network.encode_layout)(shape)
    if isinstance(network, TiledAutoencoder) and not network.tiling.temporal and layout.time.takes[0].stop > 1:
        return f"a tile holds all frames of the clip: choose tiling '{IN_TIME_TOO}' in Open-Sora Load VAE"
    return "choose a smaller size, or dtype bf16 in Open-Sora Load VAE"


def plan_begun_with(pieces: Pieces, work: str, vae: OpenSoraVAE, shape: Sequence[int]) -> Strips:
    """The plan noted among ``pieces``, so that what is computed now equals bit for bit what a run in one go gives.

    Else the one that fits, which is noted. ``work``: what is computed, "encode" for an encode. Raises CannotStore.
    """
    decoding = work != ENCODE
    settled = prepared(vae, shape, None, decoding=decoding)
    kept = pieces.content(PLAN)
    begun = None if kept is None else next((plan for plan in candidate_plans() if asdict(plan) == kept[0]), None)
    if begun is not None:
        measure = decode_bytes if decoding else encode_bytes
        need = measure(vae.network, shape, vae.vae_dtype.itemsize, begun)
        if begun == settled or need <= vae.patcher.get_free_memory(vae.device):
            if begun != settled:
                tell(f"A run that was cut off began this {work} in other strips than fit now; it is repeated in those, "
                     "to give the same to the last bit.", level=logging.INFO)  # fmt: skip
            return begun
        tell(f"Less memory is free than when this {work} was begun, so the rest is computed in smaller strips; the "
             "last bits of the result may differ from those of a run in one go.")  # fmt: skip
    pieces.write_bytes_of(PLAN, b"", asdict(settled))
    return settled


@contextmanager
def plan_while_working(vae: OpenSoraVAE, clip: Tensor, tile: str, work: str, about: str = "") -> Iterator[Strips]:
    """The plan by which ``clip``, latents or pixels [B, C, T, H, W], is to be computed inside the block.

    One that was chosen by free memory is noted on disk until the block is left: after a process was killed in it, the
    same clip is computed by the same plan. ``about``: what people know it by.
    """
    plan = chosen_plan(vae, tile)
    if plan is not None:
        yield prepared(vae, clip.shape, plan, decoding=work != ENCODE)
        return
    key = _key(vae, clip, work)
    folder = Path(folder_paths.get_output_directory()) / UNFINISHED / BEGUN / key[:20]
    lock = FolderLock(folder, depth=2)
    try:
        yield _noted(lock, partial(Pieces, folder, key, depth=2, about=about), vae, clip, work)
    finally:
        lock.release()
        if lock.folder.is_dir():
            with suppress(OSError):
                remove_if_idle(folder, ours=True)
                folder.parent.rmdir()
                folder.parent.parent.rmdir()


def _noted(lock: FolderLock, pieces: Callable[[], Pieces], vae: OpenSoraVAE, clip: Tensor, work: str) -> Strips:
    """The plan of a note that is there, or that is left; where none can be, or another process does the same, any."""
    try:
        with explained(lock.folder):
            if lock.take():
                return plan_begun_with(pieces(), work, vae, clip.shape)
    except CannotStore as error:
        logger.info("If this %s is killed, its repetition may take other strips: %s", work, error)
    return prepared(vae, clip.shape, None, decoding=work != ENCODE)


def _key(vae: OpenSoraVAE, clip: Tensor, work: str) -> str:
    """What a plan belongs to. It changes last bits only, so that some frames and no weights tell clips apart."""
    step = max(1, clip.shape[2] // COMPARED)
    parts = {"work": work, "version": vae.network.version, "dtype": str(vae.vae_dtype), "shape": tuple(clip.shape)}
    return identity({**parts, "frames": clip[:, :, ::step]}).digest
