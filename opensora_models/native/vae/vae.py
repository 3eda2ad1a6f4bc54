"""The video autoencoders as ComfyUI's own VAE, so that every node with a VAE input works on them.

Core calls ``first_stage_model.decode`` and ``encode``; both work piece by piece and strip by strip, which bounds
memory, and check for an interrupt between pieces. Core's tiled nodes get the same exact computation with strips of
the asked size: nothing is cut in time or space but where the release does it, so no tile can have a seam.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import torch
from torch import Tensor

from ...checkpoint.opening import VAE_PARTS, open_checkpoint
from ...checkpoint.reading import reading
from ...checkpoint.settings import NAME as SETTINGS
from ...checkpoint.settings import to_tensor
from ...messages.quoting import quoted
from ...parallel.workers import Workers
from ...vae.autoencoder import OpenSora13
from ...vae.budget import candidate_plans
from ...vae.dcae import DcAeConfig
from ...vae.file_settings import saved_settings
from ...vae.needs import decode_bytes, encode_bytes, tile_strips
from ...vae.recognition import Recipe, recognise
from ...vae.statistics import V12_STATISTICS, exchange_named, exchange_with
from ...vae.strips import Strips
from ...vae.tiled import TiledAutoencoder
from ...vae.tiled_files import saved_tiled_settings, tiled_exchange
from ..memory import check_frames_fit
from ..messages import tell
from .first_stage import FIRST_STAGES, FirstStage, Operations

logger = logging.getLogger("opensora")

SMALL_TILE = 256  # pixels; what core falls back to when memory ran out

AS_RELEASED, ONE_PIECE, IN_TIME_TOO = "as released", "one piece", "temporal too"
TILINGS: dict[str, dict[str, bool]] = {
    AS_RELEASED: {},
    ONE_PIECE: {"spatial": False, "temporal": False},
    IN_TIME_TOO: {"spatial": True, "temporal": True},
}
"""What a person may choose of a 2.0 autoencoder's tiles: fields of its tiling that are changed."""

OUTPUT_TYPE = getattr(comfy.model_management, "intermediate_dtype", lambda: torch.float32)


@dataclass(frozen=True)
class VAEChoices:
    """What a person chooses of a VAE beside its file; each is for some releases only.

    ``overlap``: groups of 1.3 share a frame. ``tiling``: one of :data:`TILINGS`, of 2.0. ``scale``: what the
    high-compression autoencoder's latents are divided by; None is what its file says, else 1.
    """

    overlap: bool = True
    tiling: str = AS_RELEASED
    scale: float | None = None


class OpenSoraVAE(comfy.sd.VAE):
    """ComfyUI's VAE object around an Open-Sora network."""

    workers: Workers | None = None
    """Who decodes pieces of a clip, too."""

    def __init__(
        self, recipe: Recipe, *, choices: VAEChoices = VAEChoices(), device: torch.device | None = None,
        dtype: torch.dtype | None = None, disable_dynamic: bool = False,
    ) -> None:  # fmt: skip
        with _quiet():
            # Without weights core sets every attribute to its default and stops; the rest is ours.
            super().__init__(sd={})
        recipe_check(recipe)
        with reading(recipe.name):
            weights = recipe.load()
            exchange = exchange_with(weights.get("shift"), weights.get("scale"))
        recipe = _chosen(recipe, choices)
        self.configs = recipe.settings
        self.first_stage_model = recipe.build(FIRST_STAGES, operations=Operations).eval()
        if isinstance(self.first_stage_model, TiledAutoencoder):
            with reading(recipe.name):
                self.first_stage_model.expect_even_tiles()
        self._describe()
        self._place(device, dtype, disable_dynamic)
        if isinstance(self.first_stage_model, OpenSora13):
            exchange = exchange_named(self.first_stage_model.normalization)
        elif isinstance(self.first_stage_model, TiledAutoencoder):
            exchange = tiled_exchange(self.first_stage_model)
        self.first_stage_model.exchange = exchange
        self.first_stage_model.load_state_dict(weights, strict=False, assign=self.patcher.is_dynamic())
        self.size = None
        self.model_size()

    @property
    def network(self) -> FirstStage:
        """The network, typed."""
        return self.first_stage_model

    def _describe(self) -> None:
        """Tell core about ratios, channels and memory."""
        network = self.network
        self.latent_dim, self.output_channels = 3, 3
        self.latent_channels = network.latent_channels
        space = network.space_factor
        self.downscale_ratio = (network.latents_of, space, space)
        self.upscale_ratio = (lambda count: network.frames_of(max(1, count)), space, space)
        self.downscale_index_formula, self.upscale_index_formula = self.downscale_ratio, self.upscale_ratio
        self.memory_used_decode = self._decode_bytes
        self.memory_used_encode = self._encode_bytes
        self.working_dtypes = [torch.bfloat16, torch.float32]

    def _decode_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> float:
        return decode_bytes(self.network, shape, dtype.itemsize, self.network.plan or candidate_plans()[0])

    def _encode_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> float:
        return encode_bytes(self.network, shape, dtype.itemsize, self.network.plan or candidate_plans()[0])

    def _place(self, device: torch.device | None, dtype: torch.dtype | None, disable_dynamic: bool) -> None:
        """Devices, dtype and patcher, as core's own constructor chooses them."""
        management = comfy.model_management
        self.device = management.vae_device() if device is None else device
        self.vae_dtype = management.vae_dtype(self.device, self.working_dtypes) if dtype is None else dtype
        self.first_stage_model.to(self.vae_dtype).requires_grad_(False)
        management.archive_model_dtypes(self.first_stage_model)
        self.output_device = management.intermediate_device()
        patchers = comfy.model_patcher
        patcher = patchers.ModelPatcher if disable_dynamic else patchers.CoreModelPatcher
        self.patcher = patcher(
            self.first_stage_model, load_device=self.device, offload_device=management.vae_offload_device()
        )

    def get_sd(self) -> dict[str, Tensor]:
        """What core's save nodes write: the weights, and as one more tensor the settings they do not show."""
        weights = dict(super().get_sd())
        if "shift" in weights:
            # As they were read: the network's own copies have the dtype it computes in.
            own = self.network.exchange.own if self.network.exchange is not None else None
            weights["shift"], weights["scale"] = (own or V12_STATISTICS).tensors(1)
        network = self.network
        tiled = isinstance(network, TiledAutoencoder)
        settings = saved_tiled_settings(network) if tiled else saved_settings(self.configs, network)
        weights[SETTINGS] = to_tensor(settings)
        return weights

    @contextlib.contextmanager
    def using(self, plan: Strips | None) -> Iterator[None]:
        """Compute by this plan inside the block."""
        before, self.network.plan = self.network.plan, plan
        try:
            yield
        finally:
            self.network.plan = before

    def decode(self, samples_in: Tensor, vae_options: dict[str, Any] | None = None) -> Tensor:
        """Core's decoding; ``vae_options`` may hold ``num_frames``, which core's result buffer must know as well."""
        self.network.true_length = (vae_options or {}).get("num_frames")
        try:
            if samples_in.ndim == 5:
                check_frames_fit(self.network.decode_output_shape(samples_in.shape))
            return super().decode(samples_in, vae_options or {})
        finally:
            self.network.true_length = None

    def vae_encode_crop_pixels(self, pixels: Tensor) -> Tensor:
        """Core's cropping [..., H, W, 3] to whole latents, said where it takes something away."""
        cropped = super().vae_encode_crop_pixels(pixels)
        before, after = pixels.shape[-3:-1], cropped.shape[-3:-1]
        if before != after:
            tell(
                f"Pictures of {before[1]} x {before[0]} pixels are cropped to {after[1]} x {after[0]}, the middle that "
                f"is made of whole latents of {self.network.space_factor} pixels."
            )
        return cropped

    def tile_plan(self, height: int, width: int) -> Strips:
        """Strips with the area of a tile of ``height`` × ``width`` pixels."""
        return tile_strips(self.network, height, width, self.vae_dtype.itemsize)

    def decode_tiled(
        self, samples: Tensor, tile_x: int | None = None, tile_y: int | None = None, overlap: int | None = None,
        tile_t: int | None = None, overlap_t: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Core's tiled decoding: tile sizes (in latents) set the size of the strips; the result is the untiled one."""
        space = self.network.space_factor
        side = SMALL_TILE // space
        with self.using(self.tile_plan((tile_y or side) * space, (tile_x or side) * space)):
            return self.decode(samples)

    def encode_tiled(
        self, pixel_samples: Tensor, tile_x: int | None = None, tile_y: int | None = None, overlap: int | None = None,
        tile_t: int | None = None, overlap_t: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Core's tiled encoding: tile sizes (in pixels) set the size of the strips; the result is the untiled one."""
        with self.using(self.tile_plan(tile_y or SMALL_TILE, tile_x or SMALL_TILE)):
            return self.encode(pixel_samples)

    def decode_tiled_3d(
        self, samples: Tensor, tile_t: int = 999, tile_x: int = 32, tile_y: int = 32, overlap: Any = None
    ) -> Tensor:
        """What core calls when decoding ran out of memory: latents [B, C, l, h, w] to images [B, 3, T, H, W]."""
        space = self.network.space_factor
        with self.using(self.tile_plan(tile_y * space, tile_x * space)):
            pixels = self.network.decode(samples.to(self.vae_dtype).to(self.device))
        return self.process_output(pixels.to(device=self.output_device, dtype=OUTPUT_TYPE()))

    def encode_tiled_3d(
        self, samples: Tensor, tile_t: int = 9999, tile_x: int = 512, tile_y: int = 512, overlap: Any = None
    ) -> Tensor:
        """What core calls when encoding ran out of memory: images [B, 3, T, H, W] in [0, 1] to latents."""
        with self.using(self.tile_plan(tile_y, tile_x)):
            latents = self.network.encode(self.process_input(samples).to(self.vae_dtype), device=self.device)
        return latents.to(device=self.output_device, dtype=OUTPUT_TYPE())


def load_vae(
    path: str | Path, spatial: str | Path | None = None, overlap: bool = True, dtype: torch.dtype | None = None,
    tiling: str = AS_RELEASED, scale: float | None = None, *, disable_dynamic: bool = False,
) -> OpenSoraVAE:  # fmt: skip
    """The VAE of a file, or of a temporal and a spatial file of version 1.2; choices as in :class:`VAEChoices`.

    Raises ValueError with one sentence for any other or damaged file.
    """
    recipe = recognise(open_checkpoint(path, VAE_PARTS), open_checkpoint(spatial, VAE_PARTS) if spatial else None)
    choices = VAEChoices(overlap, tiling, scale)
    vae = OpenSoraVAE(recipe, choices=choices, dtype=dtype, disable_dynamic=disable_dynamic)
    arguments = (str(path), str(spatial) if spatial else None, overlap, dtype, tiling, scale)
    vae.patcher.cached_patcher_init = (load_vae_patcher, arguments)
    logger.info("%s: %s VAE, %s on %s.", quoted(recipe.name), vae.network.release.title, vae.vae_dtype, vae.device)
    return vae


def load_vae_patcher(
    path: str, spatial: str | None, overlap: bool, dtype: torch.dtype | None, tiling: str, scale: float | None, *,
    disable_dynamic: bool = False,
) -> Any:  # fmt: skip
    """The patcher alone: how ComfyUI makes further copies of a loaded VAE."""
    return load_vae(path, spatial, overlap, dtype, tiling, scale, disable_dynamic=disable_dynamic).patcher


def recipe_check(recipe: Recipe) -> None:
    """Refuse a file that does not fit its network; mention tensors nobody uses."""
    unused = recipe.check()
    if unused:
        tell(f"{quoted(recipe.name)} has {len(unused)} tensors that are not used, for example {quoted(unused[0])}.")


def _chosen(recipe: Recipe, choices: VAEChoices) -> Recipe:
    """The recipe with what the person chose; a choice that this file or release has no use for is told."""
    options, settings, unused = dict(recipe.options), recipe.settings, []
    if "tiling" in options:
        options["tiling"] = replace(options["tiling"], **TILINGS[choices.tiling])
    elif choices.tiling != AS_RELEASED:
        unused.append(f"tiling '{choices.tiling}'")
    if choices.scale is not None and isinstance(settings[0], DcAeConfig):
        settings = (replace(settings[0], scale=choices.scale),)
    elif choices.scale is not None:
        unused.append(f"scaling_factor {choices.scale:g}")
    if recipe.version == OpenSora13.version:
        options["overlap"] = choices.overlap and options.get("overlap", True)
        if choices.overlap and not options["overlap"]:
            tell(f"{quoted(recipe.name)} was saved for groups of frames that lie side by side; temporal_overlap stays "
                 "off.")  # fmt: skip
    tell(*(f"{quoted(recipe.name)} is a VAE of Open-Sora {recipe.version}, which has no use for {each}."
           for each in unused))  # fmt: skip
    return replace(recipe, options=options, settings=settings)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without core's warning about missing VAE weights, which is how its defaults are asked for."""
    root = logging.root  # where core writes it
    silence = lambda record: "No VAE weights" not in record.getMessage()  # noqa: E731
    root.addFilter(silence)
    try:
        yield
    finally:
        root.removeFilter(silence)
