"""One row of each network as something that ranks share: what each holds, and what it sends."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Protocol

from ..mmdit.config import MMDiTConfig
from ..mmdit.memory import ATTENTION_TENSORS
from ..releases.arithmetic import mmdit_operations
from ..releases.stdit3_cost import NetworkSize, operations_per_row
from ..stdit3.config import STDiT3Config
from .frames_positions import ClipShares
from .heads import TokenShares


class Shares(Protocol):
    """What the ranks of a row hold of it."""

    @property
    def busiest(self) -> float:
        """The largest share of a row's tokens that one rank computes, on average."""

    @property
    def largest(self) -> float:
        """The largest share of a row's tokens that one rank ever holds."""


class Clip(Protocol):
    """One row of a network, to be shared."""

    rate: ClassVar[float]
    """Operations per second that published runs on one H100 reach."""

    def __hash__(self) -> int:
        """Of its numbers."""

    @property
    def operations(self) -> float:
        """Of this row going once through the network, alone."""

    @property
    def values(self) -> int:
        """Numbers in all its tokens."""

    @property
    def tables(self) -> int:
        """Bytes of the tables by which its positions are turned, where they grow with the clip."""

    def exchanged(self, ranks: int) -> float:
        """Tensors of its own tokens that a rank holds while they change hands."""

    @property
    def exchanges(self) -> int:
        """All-to-alls of ranks that share it during the blocks."""

    def fits(self, ranks: int) -> bool:
        """Whether so many ranks can share it."""

    def shares(self, ranks: int) -> Shares:
        """What each of them holds."""

    def parts(self, ranks: int) -> str:
        """In words: what is shared, and how large the shares are."""

    def sent_inside(self, ranks: int, rank: int) -> int:
        """Numbers that one of so many ranks sends to the others during the blocks."""

    def held_behind(self, ranks: int, rank: int) -> int:
        """Numbers that one of so many ranks holds behind the blocks."""


@dataclass(frozen=True)
class STDiT3Clip:
    """A row of Open-Sora 1.2 or 1.3: ``frames`` and the token ``grid`` of a frame."""

    config: STDiT3Config
    frames: int
    grid: tuple[int, int]

    rate: ClassVar[float] = 134e12
    """1.2 at 720p in 68 s."""

    @property
    def operations(self) -> float:
        """With text of full length."""
        config, (rows, columns) = self.config, self.grid
        window = config.kernel_size and config.kernel_size[:2]
        sizes = (config.hidden_size, config.depth, config.in_channels, config.caption_channels, config.mlp_ratio)
        cells = (self.frames, 2 * rows, 2 * columns)
        return operations_per_row(NetworkSize(*sizes, window), cells, config.model_max_length, count_padding=False)

    @property
    def values(self) -> int:
        """Numbers in all its tokens."""
        return self.frames * self.grid[0] * self.grid[1] * self.config.hidden_size

    @property
    def tables(self) -> int:
        """Those of a window, or of a frame: small."""
        return 0

    def exchanged(self, ranks: int) -> float:
        """The tokens in front of all blocks, of the last one, in pieces, as they leave, as they arrive, and joined."""
        return 0.0 if ranks == 1 else 4 + 2 * (ranks - 1) / ranks

    @property
    def exchanges(self) -> int:
        """One between two blocks."""
        return 0 if self.config.skip_temporal else 2 * self.config.depth - 1

    def fits(self, ranks: int) -> bool:
        """Any number of ranks will do; those without a frame or a window wait for the others."""
        return ranks >= 1

    def shares(self, ranks: int) -> ClipShares:
        """What each of them holds."""
        return _clip_shares(self.config, self.frames, self.grid, ranks)

    def parts(self, ranks: int) -> str:
        """In words."""
        shares = self.shares(ranks)
        frames, positions = (sorted({len(span) for span in of}) for of in (shares.of_frames, shares.of_positions))
        return f"{_from_to(frames)} of {self.frames} frames, then {_from_to(positions)} of {shares.positions} positions"

    def sent_inside(self, ranks: int, rank: int) -> int:
        """A rank's frames go where their positions are, once a pair of blocks; all but the last time they return."""
        shares, config = self.shares(ranks), self.config
        if config.skip_temporal:
            return 0
        frames, positions = len(shares.of_frames[rank]), len(shares.of_positions[rank])
        to_positions, to_frames = frames * (shares.positions - positions), (self.frames - frames) * positions
        return config.hidden_size * (config.depth * to_positions + (config.depth - 1) * to_frames)

    def held_behind(self, ranks: int, rank: int) -> int:
        """The tokens of a rank's positions."""
        shares = self.shares(ranks)
        if self.config.skip_temporal:
            return self.config.hidden_size * len(shares.of_frames[rank]) * shares.positions
        return self.config.hidden_size * self.frames * len(shares.of_positions[rank])


@dataclass(frozen=True)
class MMDiTClip:
    """A row of Open-Sora 2.0: ``image`` and ``text`` tokens."""

    config: MMDiTConfig
    image: int
    text: int

    rate: ClassVar[float] = 461e12
    """2.0 at 768px in 1656 s."""

    @property
    def operations(self) -> float:
        """Modulations and ends among them."""
        return mmdit_operations(self.config)((self.image * self.config.patch_size**2, 1, 1), self.text)

    @property
    def values(self) -> int:
        """Numbers in all its tokens, of image and text."""
        return (self.image + self.text) * self.config.hidden_size

    @property
    def tables(self) -> int:
        """A cosine and a sine in float32 for every other number of a head."""
        return (self.image + self.text) * sum(self.config.axes_dim) * 4

    def exchanged(self, ranks: int) -> float:
        """What a block holds (:mod:`..mmdit.memory`), and queries, keys and values as they leave and as they arrive."""
        held = ATTENTION_TENSORS + self.config.mlp_ratio
        return 0.0 if ranks == 1 else held + 2.3 + 6 * (ranks - 1) / ranks

    @property
    def exchanges(self) -> int:
        """Two a block."""
        return 2 * (self.config.depth + self.config.depth_single_blocks)

    def fits(self, ranks: int) -> bool:
        """Only ranks that divide the heads can share a row."""
        return ranks >= 1 and self.config.num_heads % ranks == 0

    def shares(self, ranks: int) -> TokenShares:
        """What each of them holds."""
        return _token_shares(self.image, self.text, ranks)

    def parts(self, ranks: int) -> str:
        """In words."""
        tokens = sorted(set(self.shares(ranks).tokens))
        heads = self.config.num_heads
        return f"{_from_to(tokens)} of {self.image + self.text} tokens, {heads // ranks} of {heads} heads in attention"

    def sent_inside(self, ranks: int, rank: int) -> int:
        """Queries, keys and values of the others' heads in front of attention, the others' tokens behind it."""
        own, width = self.shares(ranks).tokens[rank], self.config.hidden_size
        heads = width // ranks
        blocks = self.config.depth + self.config.depth_single_blocks
        return blocks * (3 * own * (width - heads) + (self.image + self.text - own) * heads)

    def held_behind(self, ranks: int, rank: int) -> int:
        """The image tokens of a rank."""
        return self.config.hidden_size * len(self.shares(ranks).of_image[rank])


@lru_cache(maxsize=16)
def _clip_shares(config: STDiT3Config, frames: int, grid: tuple[int, int], ranks: int) -> ClipShares:
    return ClipShares(config, frames, grid, ranks)


@lru_cache(maxsize=16)
def _token_shares(image: int, text: int, ranks: int) -> TokenShares:
    return TokenShares(image, text, ranks)


def _from_to(sizes: list[int]) -> str:
    return str(sizes[0]) if len(sizes) == 1 else f"{sizes[0]} to {sizes[-1]}"
