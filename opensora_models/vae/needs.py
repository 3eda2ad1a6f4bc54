"""Memory of every video autoencoder: what a clip needs, which strips fit, and strips of the area of a tile."""

from __future__ import annotations

from collections.abc import Sequence

from . import budget, tiled_budget
from .autoencoder import OpenSora12, OpenSora13, VideoAutoencoder
from .budget import Job, candidate_plans
from .piecewise import PiecewiseAutoencoder
from .strips import Strips
from .tiled import OpenSora20, OpenSora20HighCompression, TiledAutoencoder

COLOURS = 3
USABLE = budget.USABLE


def decode_bytes(network: PiecewiseAutoencoder, shape: Sequence[int], element_size: int, plan: Strips) -> float:
    """Peak bytes of activations while latents [B, C, T, h, w] are decoded piece by piece."""
    if isinstance(network, TiledAutoencoder):
        beside = shape[0] * tiled_budget.joining_bytes(network.decode_layout(shape), COLOURS, element_size)
        return beside + tiled_budget.decode_bytes(network, shape, element_size, plan)
    assert isinstance(network, VideoAutoencoder)
    return budget.decode_bytes(network, Job.decoding(shape, element_size), plan)


def encode_bytes(network: PiecewiseAutoencoder, shape: Sequence[int], element_size: int, plan: Strips) -> float:
    """Peak bytes while pixels [B, 3, T, H, W] are encoded piece by piece, the pixels of a piece included."""
    if isinstance(network, TiledAutoencoder):
        channels = network.latent_channels * (2 if isinstance(network, OpenSora20) else 1)
        beside = shape[0] * tiled_budget.joining_bytes(network.encode_layout(shape), channels, element_size)
        return beside + tiled_budget.encode_bytes(network, shape, element_size, plan)
    assert isinstance(network, VideoAutoencoder)
    return budget.encode_bytes(network, Job.encoding(shape, element_size), plan)


def fitting(
    network: PiecewiseAutoencoder, shape: Sequence[int], element_size: int, free: float, *, decoding: bool
) -> Strips:
    """The fastest plan that fits into ``free`` bytes; the leanest one where nothing does."""
    measure = decode_bytes if decoding else encode_bytes
    plans = candidate_plans()
    return next((plan for plan in plans if measure(network, shape, element_size, plan) <= USABLE * free), plans[-1])


def tile_strips(network: PiecewiseAutoencoder, height: int, width: int, element_size: int) -> Strips:
    """A lean plan whose strips have the area of ``height`` × ``width`` pixels, all frames of a piece deep."""
    return Strips(max(1, height * width * _depth(network) * element_size), lean=True, images=1)


def _depth(network: PiecewiseAutoencoder) -> int:
    """Values of one pixel in the widest layers of full size: channels, and frames where a layer holds several."""
    if isinstance(network, OpenSora12):
        return network.spatial_vae.module.config.widths[0]
    if isinstance(network, OpenSora13):
        return network.encoder.conv_in.conv.out_channels * budget.GROUP_FRAMES
    assert isinstance(network, (OpenSora20, OpenSora20HighCompression))
    return network.config.widths[0] * network.tiling.frames
