"""What all video autoencoders share: clips of any length and size, computed piece by piece.

A piece is what a network takes at once, a group of frames of 1.2 and 1.3 or a tile of 2.0; the layouts say which there
are and how their results are joined (:mod:`.tiling`). All pieces of the same frames make a *part* of the clip: decoding
hands out one part after the other, and can begin with any of them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from ..releases.known import release_named
from ..releases.release import Release
from .distribution import Draw, mode
from .strips import Strips
from .tiling import Compute, Layout, Piece, RowStore, joined

Between = Callable[[int, int], None]
"""Called after each piece with the number of pieces done and of all pieces; may raise to stop."""

Helped = Callable[[Layout, Compute, Sequence[Piece]], Compute]
"""See :meth:`PiecewiseAutoencoder.decoded`."""

Prepare = Callable[[Tensor], Tensor]
"""Brings a piece of the pixels into the form that is encoded, for example onto a device."""


class PiecewiseAutoencoder(nn.Module):
    """The face of every video autoencoder. Latents are those before the diffusion model's normalisation.

    ``version``: id of the release. ``space_factor``: pixels per latent in height and width. ``clips_apart``: clips of
    a batch are encoded one by one where memory counts; decoded they always are.
    """

    version: str
    latent_channels: int
    space_factor: int
    clips_apart: bool = True

    @property
    def release(self) -> Release:
        """The release whose latents these are."""
        return release_named(self.version)

    # -- What a network says of itself -------------------------------------------------------------------------------

    def encode_layout(self, shape: Sequence[int]) -> Layout:
        """The pieces of pixels [..., T, H, W]. ValueError for a clip the autoencoder cannot take."""
        raise TypeError("PiecewiseAutoencoder is a base")

    def decode_layout(self, shape: Sequence[int], num_frames: int | None = None) -> Layout:
        """The pieces of latents [..., T, h, w]; ``num_frames``: the clip's true length, else the longest certain."""
        raise TypeError("PiecewiseAutoencoder is a base")

    def encode_piece(self, pixels: Tensor, plan: Strips | None = None, draw: Draw = mode) -> Tensor:
        """Pixels [B, 3, t, h, w] in [-1, 1] of one piece to what is joined; plain without a plan."""
        raise TypeError("PiecewiseAutoencoder is a base")

    def decode_piece(self, latents: Tensor, plan: Strips | None = None, *, frames: int | None = None) -> Tensor:
        """Latents [B, C, t, h, w] of one piece to pixels of ``frames`` frames; plain without a plan."""
        raise TypeError("PiecewiseAutoencoder is a base")

    def drawn(self, features: Tensor, draw: Draw) -> Tensor:
        """Latents [B, C, T, h, w] from what was joined of a clip; where pieces are not latents yet."""
        return features

    def normalise(self, latents: Tensor) -> Tensor:
        """What the diffusion model sees of the latents."""
        raise TypeError("PiecewiseAutoencoder is a base")

    def denormalise(self, latents: Tensor) -> Tensor:
        """The inverse of ``normalise``."""
        raise TypeError("PiecewiseAutoencoder is a base")

    def latents_of(self, frames: int) -> int:
        """Latent frames that encoding ``frames`` frames gives."""
        return self.encode_layout((frames, self.space_factor, self.space_factor)).time.total

    def frames_of(self, latents: int) -> int:
        """Frames that come back for ``latents`` latent frames when the true length is not given."""
        return self.decode_layout((latents, 1, 1)).time.total

    def lost_frames(self, latents: int) -> int:
        """Frames by which a clip of ``latents`` latent frames comes back shorter than it was encoded."""
        return 0

    # -- Clips -------------------------------------------------------------------------------------------------------

    def encode(
        self, video: Tensor, plan: Strips | None = None, *, draw: Draw = mode, between: Between | None = None,
        prepare: Prepare | None = None,
    ) -> Tensor:  # fmt: skip
        """Pixels [B, 3, T, H, W] in [-1, 1], or what ``prepare`` brings there, to latents [B, C, t, h, w]."""
        layout = self.encode_layout(video.shape)
        apart = plan is not None and self.clips_apart

        def compute(piece: Piece) -> Tensor:
            block = piece.of(video) if prepare is None else prepare(piece.of(video))
            return _each(block, lambda clips: self.encode_piece(clips, plan, draw), apart)

        features = torch.cat(list(joined(layout, _reported(compute, layout.pieces, between))), dim=2)
        return self.drawn(features, draw)

    def decoding(
        self, latents: Tensor, num_frames: int | None = None, plan: Strips | None = None
    ) -> tuple[Layout, Compute]:
        """The pieces of latents [B, C, T, h, w], and what decodes each of them."""
        layout = self.decode_layout(latents.shape, num_frames)

        def compute(piece: Piece) -> Tensor:
            frames = layout.time.gives[piece.part]
            work = lambda clips: self.decode_piece(clips, plan, frames=frames)  # noqa: E731
            return _each(piece.of(latents), work, plan is not None)

        return layout, compute

    def decoded(
        self, latents: Tensor, num_frames: int | None = None, plan: Strips | None = None, *, first_part: int = 0,
        end_part: int | None = None, between: Between | None = None, store: RowStore | None = None,
        helped: Helped | None = None,
    ) -> Iterator[Tensor]:  # fmt: skip
        """Yield pixels [B, 3, t, H, W] part by part.

        ``first_part`` leaves out earlier parts, ``end_part`` itself and later ones: what is left equals what the whole
        run would yield there. ``store`` keeps finished rows of tiles. ``helped`` makes of what decodes a piece
        something that has pieces decoded elsewhere; it is handed the layout, and the pieces in the order in which they
        are asked for.
        """
        layout, compute = self.decoding(latents, num_frames, plan)
        pieces = layout.needed(first_part, end_part)
        if helped is not None:
            if store is not None:
                raise ValueError("Pieces that are decoded elsewhere cannot be kept in a store of rows; leave one away.")
            compute = helped(layout, compute, pieces)
        told = _reported(compute, pieces, between)
        yield from joined(layout, told, first_part=first_part, end_part=end_part, store=store)

    def decode(
        self, latents: Tensor, num_frames: int | None = None, plan: Strips | None = None, *,
        between: Between | None = None, out: Tensor | None = None,
    ) -> Tensor:  # fmt: skip
        """Latents [B, C, T, h, w] to pixels [B, 3, t, H, W]; ``out``: written part by part, on any device."""
        parts: list[Tensor] = []
        position = 0
        for frames in self.decoded(latents, num_frames, plan, between=between):
            if out is None:
                parts.append(frames)
            else:
                out[:, :, position : position + frames.shape[2]] = frames
                position += frames.shape[2]
        return out if out is not None else torch.cat(parts, dim=2) if len(parts) > 1 else parts[0]


def _each(block: Tensor, work: Callable[[Tensor], Tensor], apart: bool) -> Tensor:
    """Work on a piece of every clip of a batch, at once or one clip at a time."""
    if not apart or block.shape[0] == 1:
        return work(block)
    return torch.cat([work(clip[None]) for clip in block])


def _reported(compute: Compute, pieces: Sequence[Piece], between: Between | None) -> Compute:
    """The same, telling after each piece how many of ``pieces`` are done."""
    if between is None or not pieces:
        return compute
    first, count = pieces[0].number, len(pieces)

    def told(piece: Piece) -> Tensor:
        result = compute(piece)
        between(piece.number - first + 1, count)
        return result

    return told
