"""The video autoencoders as ComfyUI's own VAE, so that every node with a VAE input works on them.

Core calls ``first_stage_model.decode`` and ``encode``; both work group by group and strip by strip, which bounds
memory, and check for an interrupt between groups. Core's tiled nodes get the same exact computation with strips of
the asked size: nothing is cut in time or space, so no tile can have a seam.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import torch
from torch import Tensor

from ...checkpoint.opening import VAE_PARTS, open_checkpoint
from ...checkpoint.reading import quoted, reading
from ...checkpoint.settings import NAME as SETTINGS
from ...checkpoint.settings import to_tensor
from ...releases.groups import SPATIAL_FACTOR
from ...vae.autoencoder import OpenSora12, OpenSora13
from ...vae.budget import Job, candidate_plans, decode_bytes, encode_bytes, fitting, tiles
from ...vae.distribution import Draw, mode
from ...vae.file_settings import saved_settings
from ...vae.guards import check_latents, check_num_frames
from ...vae.recognition import Recipe, recognise
from ...vae.statistics import V12_STATISTICS, Exchange, exchange_named, exchange_with
from ...vae.strips import Strips
from ..memory import check_frames_fit
from ..messages import tell

if TYPE_CHECKING:
    from ...vae.autoencoder import VideoAutoencoder
else:
    VideoAutoencoder = object  # the mixin stands before the network among the bases, not behind it

logger = logging.getLogger("opensora")

SMALL_TILE = 256  # pixels; what core falls back to when memory ran out

OUTPUT_TYPE = getattr(comfy.model_management, "intermediate_dtype", lambda: torch.float32)


class Operations(comfy.ops.disable_weight_init):
    """Core's layers; the group norm can also lend its weights, wherever they are kept."""

    class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
        def weight_and_bias(self, like: Tensor) -> tuple[Tensor, Tensor]:
            """Weight and bias on the device of ``like``."""
            weight, bias, stream = comfy.ops.cast_bias_weight(self, like, offloadable=True)
            values = weight.clone(), bias.clone()
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return values


class _CoreFace(VideoAutoencoder):
    """How core calls the networks; the mixin keeps their state-dict names."""

    comfy_has_chunked_io = True
    plan: Strips | None = None
    exchange: Exchange | None = None
    true_length: int | None = None

    def decode_output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Pixels [B, 3, T, H, W] that come from latents of ``shape``."""
        batch, _, latents, height, width = shape
        frames = self.true_length or self.frames_of(latents)
        return batch, 3, frames, height * SPATIAL_FACTOR, width * SPATIAL_FACTOR

    def decode(  # type: ignore[override]  # core's arguments, not the network's
        self, samples: Tensor, output_buffer: Tensor | None = None, num_frames: int | None = None
    ) -> Tensor:
        """Latents to pixels in [-1, 1], on core's output device."""
        check_latents(samples, self.version, self.latent_channels)
        num_frames = num_frames or self.true_length
        if num_frames is not None:
            check_num_frames(self.version, samples.shape[2], num_frames)
        pixels = output_buffer
        if pixels is None:
            device = comfy.model_management.intermediate_device()
            pixels = torch.empty(self.decode_output_shape(samples.shape), dtype=samples.dtype, device=device)
        super().decode(self.to_own(samples), num_frames, self.plan_for(samples, decoding=True), between=_between,
                       out=pixels)  # fmt: skip
        return pixels

    def encode(  # type: ignore[override]
        self, pixels: Tensor, device: torch.device | None = None, draw: Draw = mode
    ) -> Tensor:
        """Pixels [B, 3, T, H, W] in [-1, 1] to latents."""
        if pixels.shape[2] < 1:
            raise ValueError("The VAE was given a clip without frames; give it at least one image.")
        plan = self.plan_for(pixels, decoding=False)
        return self.from_own(super().encode(pixels, plan, draw=draw, between=_between, device=device))

    def plan_for(self, tensor: Tensor, *, decoding: bool) -> Strips:
        """The plan somebody set, else the fastest that fits into the memory that is free now."""
        if self.plan is not None:
            return self.plan
        job = (Job.decoding if decoding else Job.encoding)(tensor.shape, tensor.element_size())
        device = comfy.model_management.vae_device() if tensor.device.type == "cpu" else tensor.device
        return fitting(self, job, comfy.model_management.get_free_memory(device), decoding=decoding)

    def to_own(self, latents: Tensor) -> Tensor:
        """Exchangeable latents to those of a file with other statistics."""
        return latents if self.exchange is None else self.exchange.to_file(latents)

    def from_own(self, latents: Tensor) -> Tensor:
        """The inverse of ``to_own``."""
        return latents if self.exchange is None else self.exchange.from_file(latents)


class FirstStage12(_CoreFace, OpenSora12):
    """Open-Sora 1.2's network with core's calls."""


class FirstStage13(_CoreFace, OpenSora13):
    """Open-Sora 1.3's network with core's calls."""


def _between(done: int, groups: int) -> None:
    comfy.model_management.throw_exception_if_processing_interrupted()


class OpenSoraVAE(comfy.sd.VAE):
    """ComfyUI's VAE object around an Open-Sora network."""

    def __init__(
        self, recipe: Recipe, *, overlap: bool = True, device: torch.device | None = None,
        dtype: torch.dtype | None = None, disable_dynamic: bool = False,
    ) -> None:  # fmt: skip
        with _quiet():
            # Without weights core sets every attribute to its default and stops; the rest is ours.
            super().__init__(sd={})
        recipe_check(recipe)
        with reading(recipe.name):
            weights = recipe.load()
            exchange = exchange_with(weights.get("shift"), weights.get("scale"))
        self.configs = recipe.settings
        self.first_stage_model = _first_stage(recipe, overlap)
        self._describe()
        self._place(device, dtype, disable_dynamic)
        if isinstance(self.first_stage_model, OpenSora13):
            exchange = exchange_named(self.first_stage_model.normalization)
        self.first_stage_model.exchange = exchange
        self.first_stage_model.load_state_dict(weights, strict=False, assign=self.patcher.is_dynamic())
        self.size = None
        self.model_size()

    @property
    def network(self) -> FirstStage12 | FirstStage13:
        """The network, typed."""
        return self.first_stage_model

    def _describe(self) -> None:
        """Tell core about ratios, channels and memory."""
        network = self.network
        self.latent_dim, self.output_channels = 3, 3
        self.latent_channels = network.latent_channels
        self.downscale_ratio = (network.latents_of, SPATIAL_FACTOR, SPATIAL_FACTOR)
        self.upscale_ratio = (lambda count: network.frames_of(max(1, count)), SPATIAL_FACTOR, SPATIAL_FACTOR)
        self.downscale_index_formula, self.upscale_index_formula = self.downscale_ratio, self.upscale_ratio
        self.memory_used_decode = self._decode_bytes
        self.memory_used_encode = self._encode_bytes
        self.working_dtypes = [torch.bfloat16, torch.float32]

    def _decode_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> float:
        job = Job.decoding(shape, dtype.itemsize)
        return decode_bytes(self.network, job, self.network.plan or candidate_plans()[0])

    def _encode_bytes(self, shape: tuple[int, ...], dtype: torch.dtype) -> float:
        job = Job.encoding(shape, dtype.itemsize)
        return encode_bytes(self.network, job, self.network.plan or candidate_plans()[0])

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
        weights[SETTINGS] = to_tensor(saved_settings(self.configs, self.network))
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

    def tile_plan(self, height: int, width: int) -> Strips:
        """Strips with the area of a tile of ``height`` × ``width`` pixels."""
        return tiles(height, width, self.network, self.vae_dtype.itemsize)

    def decode_tiled(
        self, samples: Tensor, tile_x: int | None = None, tile_y: int | None = None, overlap: int | None = None,
        tile_t: int | None = None, overlap_t: int | None = None,
    ) -> Tensor:  # fmt: skip
        """Core's tiled decoding: tile sizes (in latents) set the size of the strips; the result is the untiled one."""
        side = SMALL_TILE // SPATIAL_FACTOR
        with self.using(self.tile_plan((tile_y or side) * SPATIAL_FACTOR, (tile_x or side) * SPATIAL_FACTOR)):
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
        with self.using(self.tile_plan(tile_y * SPATIAL_FACTOR, tile_x * SPATIAL_FACTOR)):
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
    disable_dynamic: bool = False,
) -> OpenSoraVAE:  # fmt: skip
    """The VAE of a file, or of a temporal and a spatial file of version 1.2.

    Raises ValueError with one sentence for any other or damaged file.
    """
    recipe = recognise(open_checkpoint(path, VAE_PARTS), open_checkpoint(spatial, VAE_PARTS) if spatial else None)
    vae = OpenSoraVAE(recipe, overlap=overlap, dtype=dtype, disable_dynamic=disable_dynamic)
    arguments = (str(path), str(spatial) if spatial else None, overlap, dtype)
    vae.patcher.cached_patcher_init = (load_vae_patcher, arguments)
    logger.info("%s: Open-Sora %s VAE, %s on %s.", quoted(recipe.name), recipe.version, vae.vae_dtype, vae.device)
    return vae


def load_vae_patcher(
    path: str, spatial: str | None, overlap: bool, dtype: torch.dtype | None, *, disable_dynamic: bool = False
) -> Any:
    """The patcher alone: how ComfyUI makes further copies of a loaded VAE."""
    return load_vae(path, spatial, overlap, dtype, disable_dynamic=disable_dynamic).patcher


def recipe_check(recipe: Recipe) -> None:
    """Refuse a file that does not fit its network; mention tensors nobody uses."""
    unused = recipe.check()
    if unused:
        logger.warning("%s has %d tensors that are not used, for example %s.", quoted(recipe.name), len(unused),
                       quoted(unused[0]))  # fmt: skip


def _first_stage(recipe: Recipe, overlap: bool) -> FirstStage12 | FirstStage13:
    if recipe.version == "1.2":
        return FirstStage12(*recipe.settings, operations=Operations).eval()
    options = dict(recipe.options)
    if overlap and not options.get("overlap", True):
        tell(f"{quoted(recipe.name)} was saved for groups of frames that lie side by side; temporal_overlap stays off.")
    options["overlap"] = overlap and options.get("overlap", True)
    return FirstStage13(*recipe.settings, operations=Operations, **options).eval()


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
