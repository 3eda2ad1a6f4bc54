"""Where a token stands: the fixed position table, the timestep sinusoid and the rotary angles.

Every function takes ``precision``, the dtype its intermediate results are rounded to: float32 for the accurate path,
bfloat16 to repeat what the original does when its whole module is cast (frequencies, positions, angles and results).
Tables are made once per forward call and shared by all blocks; nothing is stored on a module.
"""

from __future__ import annotations

import struct

import torch
from torch import Tensor, nn

from ..transformer.positions import MAX_PERIOD, Rotary


def rounded_number(value: float, precision: torch.dtype) -> float:
    """``value`` as the original sees it: rounded to bfloat16 (nearest, ties to even) if that is the precision."""
    if precision != torch.bfloat16:
        return float(value)
    bits = struct.unpack("<I", struct.pack("<f", value))[0]
    bits = (bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000
    return struct.unpack("<f", struct.pack("<I", bits))[0]


class PositionEmbedding2D(nn.Module):
    """Sine/cosine table over the token grid of one frame; the column comes first. Holds no weights."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size

    def forward(
        self,
        rows: int,
        columns: int,
        scale: float = 1.0,
        base_size: int | None = None,
        *,
        device: torch.device | str | None = None,
        precision: torch.dtype = torch.float32,
    ) -> Tensor:
        """[1, rows·columns, hidden_size] in float32, row by row.

        ``scale`` is sqrt(height·width in pixels) / input_sq_size; ``base_size`` is the side of the square grid with
        as many tokens (None: positions are not stretched to it).
        """
        exponents = torch.arange(0, self.hidden_size // 2, 2, dtype=torch.float32, device=device)
        frequencies = 1.0 / MAX_PERIOD ** (exponents / (self.hidden_size // 2))
        frequencies = frequencies.to(precision).float()
        waves = []
        for count in (columns, rows):
            position = torch.arange(count, dtype=torch.float32, device=device) / scale
            if base_size is not None:
                position = position * (base_size / count)
            angles = position[:, None] * frequencies
            waves.append(torch.cat([angles.sin(), angles.cos()], dim=-1))
        by_column = waves[0].expand(rows, -1, -1)
        by_row = waves[1][:, None].expand(-1, columns, -1)
        table = torch.cat([by_column, by_row], dim=-1).flatten(0, 1)[None]
        return table.to(precision).float()


class RotaryEmbedding(nn.Module):
    """Rotary position embedding (RoFormer, arXiv 2104.09864) with the frequencies stored in the checkpoint.

    ``freqs`` [width/2] stays float32 whatever the weights are, so that a float32 file keeps its exact angles.
    """

    def __init__(self, width: int, device: torch.device | str | None = None) -> None:
        super().__init__()
        natural = MAX_PERIOD ** (-torch.arange(0, width, 2, dtype=torch.float32, device=device) / width)
        self.register_buffer("freqs", natural)

    freqs: Tensor

    def angles(self, count: int, scale: float, device: torch.device, precision: torch.dtype) -> Tensor:
        """[count, width/2] in ``precision``: position / scale times frequency."""
        position = torch.arange(count, device=device).to(precision) / scale
        return position[:, None] * self.freqs.to(device=device, dtype=precision)

    def along(
        self, count: int, *, device: torch.device, scale: float = 1.0, precision: torch.dtype = torch.float32
    ) -> Rotary:
        """Rotation by one position; the whole head is ``width`` wide. Tables [count, 1, width/2]."""
        return _rotary(self.angles(count, scale, device, precision))

    def over_grid(
        self,
        frames: int,
        rows: int,
        columns: int,
        *,
        scale: float,
        device: torch.device,
        precision: torch.dtype = torch.float32,
    ) -> Rotary:
        """Rotation by [time | row | column] thirds of a head 3·width wide, tokens ordered frame, row, column.

        Rows and columns are divided by ``scale``, frames are not. Tables [frames·rows·columns, 1, 3·width/2].
        """
        shape = (frames, rows, columns, -1)
        time = self.angles(frames, 1.0, device, precision)[:, None, None].expand(shape)
        row = self.angles(rows, scale, device, precision)[None, :, None].expand(shape)
        column = self.angles(columns, scale, device, precision)[None, None].expand(shape)
        return _rotary(torch.cat([time, row, column], dim=-1).flatten(0, 2))


def _rotary(angles: Tensor) -> Rotary:
    """Cosines and sines are rounded to the precision of the angles, then widened to float32."""
    return Rotary(angles.cos().float()[:, None], angles.sin().float()[:, None])
