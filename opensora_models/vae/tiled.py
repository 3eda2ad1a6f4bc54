"""Open-Sora 2.0's two video autoencoders behind one face: clips of any size, piece by piece.

Both decode in overlapping tiles whose statistics are their own, so the released tiling is part of the model. Latents
are those before the diffusion model's normalisation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from .dcae import DcAeConfig, DcAeDecoder, DcAeEncoder
from .distribution import Draw, Posterior, mode
from .hunyuan import HunyuanConfig, HunyuanDecoder, HunyuanEncoder
from .piecewise import PiecewiseAutoencoder
from .strips import Strips
from .tiling import Axis, Cut, Layout


@dataclass(frozen=True)
class Tiling:
    """Where an autoencoder is cut into tiles: of ``size`` pixels and ``frames`` frames, overlapping by ``overlap``.

    ``spatial``: as soon as a side is longer than a tile; ``temporal``: as soon as a clip is.
    """

    spatial: bool
    temporal: bool
    size: int = 256
    frames: int = 64
    overlap: float = 0.25


HUNYUAN_TILING = Tiling(spatial=True, temporal=False)
DC_AE_TILING = Tiling(spatial=True, temporal=True, frames=32)


class TiledAutoencoder(PiecewiseAutoencoder):
    """What both share: cutting a clip into tiles.

    ``leading``: frames at the start of a clip that have a latent frame of their own.
    """

    time_factor: int
    leading: int
    tiling: Tiling

    def latents_of_piece(self, frames: int) -> int:
        """Latent frames of a clip that is encoded in one piece."""
        raise TypeError("TiledAutoencoder is a base; use OpenSora20 or OpenSora20HighCompression")

    def frames_of_piece(self, latents: int) -> int:
        """Frames of a clip that is decoded in one piece."""
        raise TypeError("TiledAutoencoder is a base; use OpenSora20 or OpenSora20HighCompression")

    def encode_layout(self, shape: Sequence[int]) -> Layout:
        frames, height, width = shape[-3:]
        size, tile = self.tiling.size, self.tiling.frames
        return Layout(
            self._time(frames, tile, tile // self.time_factor, self.latents_of_piece),
            *self._sides(height, width, size, size // self.space_factor, lambda side: -(-side // self.space_factor)),
        )

    def decode_layout(self, shape: Sequence[int], num_frames: int | None = None) -> Layout:
        frames, height, width = shape[-3:]
        size, tile = self.tiling.size, self.tiling.frames
        layout = Layout(
            self._time(frames, tile // self.time_factor, tile, self.frames_of_piece),
            *self._sides(height, width, size // self.space_factor, size, lambda side: side * self.space_factor),
        )
        return layout if num_frames is None else replace(layout, time=layout.time.limited(num_frames))

    def _time(self, length: int, size: int, gives: int, count: Callable[[int], int]) -> Axis:
        if not self.tiling.temporal or length <= size:
            return Axis.whole(length, count)
        return Cut.overlapping(size, gives, self.tiling.overlap, self.leading).axis(length, count)

    def _sides(self, height: int, width: int, size: int, gives: int, count: Callable[[int], int]) -> tuple[Axis, Axis]:
        if not self.tiling.spatial or max(height, width) <= size:
            return Axis.whole(height, count), Axis.whole(width, count)
        cut = Cut.overlapping(size, gives, self.tiling.overlap)
        return cut.axis(height, count), cut.axis(width, count)

    def expect_even_tiles(self) -> None:
        """ValueError for a tiling whose tiles do not keep as much as they are apart, so that clips change their size.

        The original takes any numbers; what it makes of uneven ones is no use to anybody.
        """
        tiling = self.tiling
        checked = [("size", tiling.size, self.space_factor)] if tiling.spatial else []
        checked += [("frames", tiling.frames, self.time_factor)] if tiling.temporal else []
        for name, size, factor in checked:
            if _is_even(size, factor, tiling.overlap):
                continue
            good = [
                n for n in range(factor, 4 * max(size, factor * factor), factor) if _is_even(n, factor, tiling.overlap)
            ]
            near = (
                f"the nearest good value is {min(good, key=lambda n: abs(n - size))}" if good else "change the overlap"
            )
            raise ValueError(f"Tiles of {name} {size} cannot overlap evenly by {tiling.overlap:g}; {near}.")


def _is_even(size: int, factor: int, overlap: float) -> bool:
    """Whether tiles of ``size`` pixels or frames keep what their neighbours leave, in both directions."""
    latents = size // factor
    stride = int(latents * (1 - overlap))
    return (
        size % factor == 0
        and stride > 0
        and int(size * (1 - overlap)) == factor * stride == size - int(size * overlap)
        and latents - int(latents * overlap) == stride
    )


class OpenSora20(TiledAutoencoder):
    """Open-Sora 2.0's video autoencoder: causal, a Gaussian over 16 channels, 4k + 1 frames.

    Source: AutoencoderKLCausal3D (opensora/models/hunyuan_vae of release 2.0); keys are the checkpoint's.
    """

    version = "2.0"
    leading = 1

    def __init__(
        self, config: HunyuanConfig = HunyuanConfig(), *, tiling: Tiling = HUNYUAN_TILING, operations: Any = nn,  # noqa: B008
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.tiling = config, tiling
        channels = self.latent_channels = config.latent_channels
        self.time_factor, self.space_factor = config.factors
        self.encoder = HunyuanEncoder(config, operations)
        self.decoder = HunyuanDecoder(config, operations)
        self.quant_conv = operations.Conv3d(2 * channels, 2 * channels, 1)
        self.post_quant_conv = operations.Conv3d(channels, channels, 1)

    def latents_of_piece(self, frames: int) -> int:
        return (frames - 1) // self.time_factor + 1

    def frames_of_piece(self, latents: int) -> int:
        return self.time_factor * (latents - 1) + 1

    def encode_piece(self, pixels: Tensor, plan: Strips | None = None, draw: Draw = mode) -> Tensor:
        return self.quant_conv(self.encoder(pixels) if plan is None else self.encoder.strips(pixels, plan))

    def decode_piece(self, latents: Tensor, plan: Strips | None = None, *, frames: int | None = None) -> Tensor:
        features = self.post_quant_conv(latents)
        return self.decoder(features) if plan is None else self.decoder.strips(features, plan)

    def drawn(self, features: Tensor, draw: Draw) -> Tensor:
        return draw(Posterior(features))

    def normalise(self, latents: Tensor) -> Tensor:
        return (self.config.scale * (latents.float() - self.config.shift)).to(latents.dtype)

    def denormalise(self, latents: Tensor) -> Tensor:
        return (latents.float() / self.config.scale + self.config.shift).to(latents.dtype)


class OpenSora20HighCompression(TiledAutoencoder):
    """Open-Sora 2.0's high-compression autoencoder: not causal, nothing random, 4k frames or a single one.

    Source: DCAE (opensora/models/dc_ae of release 2.0, f32t4c128); keys are the checkpoint's.
    """

    version = "2.0 high compression"
    leading = 0

    def __init__(
        self, config: DcAeConfig = DcAeConfig(), *, tiling: Tiling = DC_AE_TILING, operations: Any = nn,  # noqa: B008
    ) -> None:  # fmt: skip
        super().__init__()
        self.config, self.tiling = config, tiling
        self.latent_channels = config.latent_channels
        self.time_factor, self.space_factor = config.time_factor, config.space_factor
        self.encoder = DcAeEncoder(config, operations)
        self.decoder = DcAeDecoder(config, operations)

    def encode_layout(self, shape: Sequence[int]) -> Layout:
        self._check(*shape[-3:])
        return super().encode_layout(shape)

    def _check(self, frames: int, height: int, width: int) -> None:
        time, space = self.time_factor, self.space_factor
        # Halved time and again; a single frame stays one at every step, so 2 frames become one latent frame, too.
        if frames < 1 or (frames & (frames - 1) or frames > time) and frames % time:
            good = max(1, time * round(frames / time))
            raise ValueError(
                f"The high-compression autoencoder of Open-Sora 2.0 encodes 1 frame or a multiple of {time}, {frames} "
                f"were given; the nearest good value is {good}."
            )
        for name, side in (("height", height), ("width", width)):
            if side < 1 or side % space:
                good = max(space, space * round(side / space))
                raise ValueError(
                    f"The high-compression autoencoder of Open-Sora 2.0 encodes sides that are multiples of {space} "
                    f"pixels, the {name} is {side}; the nearest good value is {good}."
                )

    def latents_of_piece(self, frames: int) -> int:
        return -(-frames // self.time_factor)

    def frames_of_piece(self, latents: int) -> int:
        return 1 if latents == 1 else self.time_factor * latents

    def encode_piece(self, pixels: Tensor, plan: Strips | None = None, draw: Draw = mode) -> Tensor:
        return self.encoder(pixels) if plan is None else self.encoder.strips(pixels, plan)

    def decode_piece(self, latents: Tensor, plan: Strips | None = None, *, frames: int | None = None) -> Tensor:
        return self.decoder(latents) if plan is None else self.decoder.strips(latents, plan)

    def lost_frames(self, latents: int) -> int:
        """Frames a clip of ``latents`` latent frames comes out short: a last tile of one latent frame gives one."""
        return self.frames_of_piece(latents) - self.frames_of(latents)

    def normalise(self, latents: Tensor) -> Tensor:
        return (latents.float() / self.config.scale).to(latents.dtype)

    def denormalise(self, latents: Tensor) -> Tensor:
        return (latents.float() * self.config.scale).to(latents.dtype)
