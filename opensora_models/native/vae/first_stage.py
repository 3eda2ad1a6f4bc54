"""The networks as core calls them: ``first_stage_model`` of a VAE, with ``encode`` and ``decode`` of whole clips."""

from __future__ import annotations

from typing import TYPE_CHECKING

import comfy.model_management
import comfy.ops
import torch
from torch import Tensor

from ...vae.autoencoder import OpenSora12, OpenSora13
from ...vae.distribution import Draw, mode
from ...vae.guards import check_latents, check_num_frames, possible_lengths
from ...vae.needs import fitting
from ...vae.piecewise import Between, Prepare
from ...vae.statistics import Exchange
from ...vae.strips import Strips
from ...vae.tiled import OpenSora20, OpenSora20HighCompression
from ..messages import tell

if TYPE_CHECKING:
    from ...vae.piecewise import PiecewiseAutoencoder
else:
    PiecewiseAutoencoder = object  # the mixin stands before the network among the bases, not behind it


class Operations(comfy.ops.disable_weight_init):
    """Core's layers; the group norm can also lend its weights, wherever they are kept."""

    class GroupNorm(comfy.ops.disable_weight_init.GroupNorm):
        def weight_and_bias(self, like: Tensor) -> tuple[Tensor, Tensor]:
            """Weight and bias on the device of ``like``."""
            weight, bias, stream = comfy.ops.cast_bias_weight(self, like, offloadable=True)
            values = weight.clone(), bias.clone()
            comfy.ops.uncast_bias_weight(self, weight, bias, stream)
            return values


class FirstStage(PiecewiseAutoencoder):
    """How core calls the networks; the mixin keeps their state-dict names."""

    comfy_has_chunked_io = True
    plan: Strips | None = None
    exchange: Exchange | None = None
    true_length: int | None = None

    def decode_output_shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Pixels [B, 3, T, H, W] that come from latents of ``shape``."""
        return shape[0], 3, *self.decode_layout(shape, self.true_length).shape

    def decode(  # type: ignore[override]  # core's arguments, not the network's
        self, samples: Tensor, output_buffer: Tensor | None = None, num_frames: int | None = None
    ) -> Tensor:
        """Latents to pixels in [-1, 1], on core's output device."""
        check_latents(samples, self.version, self.latent_channels)
        num_frames = num_frames or self.true_length
        tell_length_decoded(self, samples.shape[2], num_frames)
        pixels = output_buffer
        if pixels is None:
            device = comfy.model_management.intermediate_device()
            pixels = torch.empty(self.decode_output_shape(samples.shape), dtype=samples.dtype, device=device)
        plan = self.plan_for(samples, decoding=True)
        super().decode(self.to_own(samples), num_frames, plan, between=interrupted, out=pixels)
        return pixels

    def encode(  # type: ignore[override]
        self, pixels: Tensor, device: torch.device | None = None, draw: Draw = mode
    ) -> Tensor:
        """Pixels [B, 3, T, H, W] in [-1, 1] to latents; ``device``: where each piece is computed."""
        tell_length_encoded(self, pixels.shape[2])
        prepare: Prepare | None = None if device is None else lambda block: block.to(device)
        plan = self.plan_for(pixels, decoding=False)
        return self.from_own(self.encode_own(pixels, plan, draw=draw, between=interrupted, prepare=prepare))

    def encode_own(
        self, pixels: Tensor, plan: Strips, *, draw: Draw, between: Between, prepare: Prepare | None
    ) -> Tensor:
        """The network's encoding, before latents are exchanged."""
        return super().encode(pixels, plan, draw=draw, between=between, prepare=prepare)

    def plan_for(self, tensor: Tensor, *, decoding: bool) -> Strips:
        """The plan somebody set, else the fastest that fits into the memory that is free now."""
        if self.plan is not None:
            return self.plan
        device = comfy.model_management.vae_device() if tensor.device.type == "cpu" else tensor.device
        free = comfy.model_management.get_free_memory(device)
        return fitting(self, tensor.shape, tensor.element_size(), free, decoding=decoding)

    def to_own(self, latents: Tensor) -> Tensor:
        """Exchangeable latents to those of a file with other statistics."""
        return latents if self.exchange is None else self.exchange.to_file(latents)

    def from_own(self, latents: Tensor) -> Tensor:
        """The inverse of ``to_own``."""
        return latents if self.exchange is None else self.exchange.from_file(latents)


class FirstStage12(FirstStage, OpenSora12):
    """Open-Sora 1.2's network with core's calls."""


class FirstStage13(FirstStage, OpenSora13):
    """Open-Sora 1.3's network with core's calls."""


class FirstStage20(FirstStage, OpenSora20):
    """Open-Sora 2.0's network with core's calls."""


class FirstStage20HighCompression(FirstStage, OpenSora20HighCompression):
    """Open-Sora 2.0's high-compression network with core's calls."""


FIRST_STAGES = {kind.version: kind for kind in (FirstStage12, FirstStage13, FirstStage20, FirstStage20HighCompression)}


def tell_length_encoded(network: PiecewiseAutoencoder, frames: int) -> None:
    """Say which frames of a clip will not come back. ValueError for no frames or an impossible length."""
    if frames < 1:
        raise ValueError("The VAE was given a clip without frames; give it at least one image.")
    latents = network.latents_of(frames)
    back = network.frames_of(latents)
    if back < frames:
        way = (
            f" unless num_frames is {frames} in the node that decodes"
            if frames in possible_lengths(network.version, latents)
            else ""
        )
        tell(
            f"{frames} frames become {latents} latent frames of {network.release.title}, which stand for {back}: the "
            f"last {frames - back} do not come back{way}. The nearest length that comes back whole is "
            f"{network.release.latents.lengths.nearest(frames)}."
        )


def tell_length_decoded(network: PiecewiseAutoencoder, latents: int, num_frames: int | None) -> None:
    """Say by how much latents decode to less than they stand for. ValueError for an impossible ``num_frames``."""
    if num_frames is not None:
        check_num_frames(network.version, latents, num_frames)
    lost = network.lost_frames(latents)
    if lost:
        tell(
            f"{latents} latent frames of {network.release.title} decode to {network.frames_of(latents)} frames, {lost} "
            f"fewer than usual: the last tile has a single latent frame, which gives one frame. {latents - 1} or "
            f"{latents + 1} latent frames, or tiling 'one piece', lose none."
        )


def interrupted(done: int = 0, pieces: int = 0) -> None:
    """Raise where the person has stopped the run."""
    comfy.model_management.throw_exception_if_processing_interrupted()
