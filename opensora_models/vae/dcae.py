"""The networks of Open-Sora 2.0's high-compression autoencoder (DC-AE f32t4c128): 4k frames to k latent frames.

32 pixels and 4 frames per latent, 128 channels, zeros around the clip, nothing causal and no statistics beyond the
sums of its linear attention. A single frame stays a single frame. Keys are the original's.
Source: opensora/models/dc_ae/models/{dc_ae.py,nn/ops.py} of release 2.0.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn

from .doubling import Doubling
from .edges import CentredConv3d, Factors
from .layers import doubling_convolution, doubling_strip
from .linear_attention import (
    GatedLayer,
    LinearAttention,
    NormedConv3d,
    activated_in_place,
    channel_norm,
    channel_normed,
)
from .strips import Recent, Rows, Strips


@dataclass(frozen=True)
class DcAeConfig:
    """Widths and depth from the pixels to the latents; the defaults are the released model's.

    ``attention``: stages made of attention blocks; ``time_stages``: stages whose step halves the frames, too;
    ``head``, ``window``, ``expansion``: of the attention blocks. ``scale``: the latents are the encoder's divided by
    it. The class and the inference settings of the original have 1, the training settings 0.493.
    """

    widths: tuple[int, ...] = (128, 256, 512, 512, 1024, 1024)
    encoder_blocks: tuple[int, ...] = (2, 2, 2, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 3, 3, 3)
    attention: tuple[bool, ...] = (False, False, False, True, True, True)
    time_stages: tuple[int, ...] = (3, 4)
    latent_channels: int = 128
    channels: int = 3
    head: int = 32
    window: int = 5
    expansion: int = 4
    scale: float = 1.0

    @property
    def time_factor(self) -> int:
        """Frames per latent frame."""
        return 2 ** len(self.time_stages)

    @property
    def space_factor(self) -> int:
        """Pixels per latent in height and width."""
        return 2 ** (len(self.widths) - 1)

    def factors(self, stage: int) -> Factors:
        """Reduction of T, H and W between a stage and the next deeper one."""
        return (2 if stage in self.time_stages else 1, 2, 2)


class _Holder(nn.Module):
    """Gives a layer the name ``main`` in the checkpoint."""

    def __init__(self, main: nn.Module) -> None:
        super().__init__()
        self.main = main


class _Operations(nn.Module):
    """Layers one after the other, keyed ``op_list``."""

    def __init__(self, layers: list[nn.Module]) -> None:
        super().__init__()
        self.op_list = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.op_list:
            x = layer(x)
        return x


class ConvolutionBlock(nn.Module):
    """x + norm(conv2(SiLU(conv1 x))). Keys ``main.conv1``, ``main.conv2``."""

    def __init__(self, width: int, *, operations: Any = nn) -> None:
        super().__init__()
        self.main = nn.Module()
        self.main.conv1 = CentredConv3d(width, width, operations=operations)
        self.main.conv2 = NormedConv3d(width, width, 3, operations=operations)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.main.conv2(activated_in_place(self.main.conv1(x)))

    def strips(self, x: Rows, plan: Strips) -> Rows:
        """The block by strips; the result may take the place of x."""
        conv1, conv2 = self.main.conv1, self.main.conv2
        inner = x.computed(x.shape, lambda a, b: activated_in_place(conv1.strip(x.read, x.height, a, b)))
        recent = Recent(inner)

        def read(first: int, last: int) -> Tensor:
            return conv2.strip(recent.read, x.height, first, last).add_(x.read(first, last))

        return plan.store(inner.computed(x.shape, read), None, into=x)


class AttentionBlock(nn.Module):
    """x + attention(x), then x + gated(x). Keys ``context_module.main``, ``local_module.main``."""

    def __init__(self, width: int, config: DcAeConfig, *, operations: Any = nn) -> None:
        super().__init__()
        mixed = 3 * (width // config.head * config.head)
        attention = LinearAttention(width, mixed, config.head, config.window, operations=operations)
        self.context_module = _Holder(attention)
        self.local_module = _Holder(GatedLayer(width, config.expansion * width, operations=operations))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.context_module.main(x)
        return x + self.local_module.main(x)

    def strips(self, x: Rows, plan: Strips) -> Rows:
        """The block by strips; the result may take the place of x."""
        return self.local_module.main.strips(self.context_module.main.strips(x, plan), plan)


class Reduction(nn.Module):
    """A strided convolution plus the input, folded into channels and averaged. Key ``main.conv``."""

    def __init__(self, width: int, out: int, factors: Factors, *, operations: Any = nn) -> None:
        super().__init__()
        self.factors = factors
        self.main = CentredConv3d(width, out, stride=factors, operations=operations)

    def forward(self, x: Tensor) -> Tensor:
        return self.main(x).add_(self.shortcut(x))

    def strips(self, x: Rows, plan: Strips) -> Rows:
        """The step by strips."""
        time, rows, columns = (min(pair) for pair in zip(self.factors, x.shape[2:], strict=True))
        sizes = (x.shape[2] // time, x.shape[3] // rows, x.shape[4] // columns)

        def read(first: int, last: int) -> Tensor:
            y = self.main.strip(x.read, x.height, first, last)
            return y.add_(self.shortcut(x.read(rows * first, rows * last)))

        return plan.store(x.computed((x.shape[0], self.main.conv.out_channels, *sizes), read), None)

    def shortcut(self, x: Tensor) -> Tensor:
        """Blocks of positions as channels (channel, frame, row, column), consecutive ones averaged to the new width."""
        time, rows, columns = (min(pair) for pair in zip(self.factors, x.shape[2:], strict=True))
        x = x.unflatten(4, (-1, columns)).unflatten(3, (-1, rows)).unflatten(2, (-1, time))
        x = x.permute(0, 1, 3, 5, 7, 2, 4, 6).flatten(1, 4)
        return x.unflatten(1, (self.main.conv.out_channels, -1)).mean(2)


class Enlargement(nn.Module):
    """Nearest-neighbour enlargement with a convolution, plus repeated channels unfolded. Key ``main.conv.conv``."""

    def __init__(self, width: int, out: int, factors: Factors, *, operations: Any = nn) -> None:
        super().__init__()
        self.factors, self.out = factors, out
        self.axes: tuple[Doubling, ...] = ("several" if factors[0] == 2 else "same", "centred", "centred")
        self.main = nn.Module()
        self.main.conv = nn.Module()
        self.main.conv.conv = doubling_convolution(operations.Conv3d, self.axes)(width, out, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.doubled(x, 1, 1).add_(self.shortcut(x))

    def strips(self, x: Rows, plan: Strips) -> Rows:
        """The step by strips."""
        time = 1 if x.shape[2] == 1 else self.factors[0]
        shape = (x.shape[0], self.out, time * x.shape[2], 2 * x.shape[3], 2 * x.shape[4])

        def read(first: int, last: int) -> Tensor:
            y = doubling_strip(self.doubled, x.read, x.height, first, last)
            low = first // 2
            return y.add_(self.shortcut(x.read(low, (last + 1) // 2))[..., first - 2 * low : last - 2 * low, :])

        return plan.store(x.computed(shape, read), None)

    def doubled(self, x: Tensor, above: int, below: int) -> Tensor:
        """The enlarging convolution of rows with so many rows of zeros above and below."""
        return self.main.conv.conv(F.pad(x, (1, 1, above, below, 1, 1)))

    def shortcut(self, x: Tensor) -> Tensor:
        """Each channel repeated, then channels (channel, frame, row, column) spread over the new positions."""
        time = 1 if x.shape[2] == 1 else self.factors[0]
        x = x.repeat_interleave(4 * time * self.out // x.shape[1], dim=1)
        x = x.unflatten(1, (self.out, time, 2, 2)).permute(0, 1, 5, 2, 6, 3, 7, 4)
        return x.flatten(6, 7).flatten(4, 5).flatten(2, 3)


def _blocks(config: DcAeConfig, stage: int, count: int, operations: Any) -> list[nn.Module]:
    width = config.widths[stage]
    if config.attention[stage]:
        return [AttentionBlock(width, config, operations=operations) for _ in range(count)]
    return [ConvolutionBlock(width, operations=operations) for _ in range(count)]


class DcAeEncoder(nn.Module):
    """Pixels [B, 3, T, H, W] to latents [B, C, T/4, H/32, W/32], a single frame to a single one; before scaling."""

    def __init__(self, config: DcAeConfig, operations: Any) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.project_in = CentredConv3d(config.channels, widths[0], operations=operations)
        self.stages = nn.ModuleList()
        for stage, count in enumerate(config.encoder_blocks):
            layers = _blocks(config, stage, count, operations)
            if stage < last:
                layers.append(Reduction(widths[stage], widths[stage + 1], config.factors(stage), operations=operations))
            self.stages.append(_Operations(layers))
        out = CentredConv3d(widths[-1], config.latent_channels, operations=operations)
        self.project_out = _Holder(_Operations([out]))

    def forward(self, x: Tensor) -> Tensor:
        x = self.project_in(x)
        for stage in self.stages:
            x = stage(x)
        return self._out(x)

    def strips(self, x: Tensor, plan: Strips) -> Tensor:
        """The same by strips."""
        rows = plan.store(_convolved(self.project_in, Rows.of(x)), None)
        for layer in chain.from_iterable(stage.op_list for stage in self.stages):
            rows = layer.strips(rows, plan)
        return self._out(plan.finish(rows))

    def _out(self, x: Tensor) -> Tensor:
        y = self.project_out.main(x)
        return y + x.unflatten(1, (y.shape[1], -1)).mean(2)


class DcAeDecoder(nn.Module):
    """Latents [B, C, T, h, w], scaling undone, to pixels [B, 3, 4T, 32h, 32w]; a single frame to a single one."""

    def __init__(self, config: DcAeConfig, operations: Any) -> None:
        super().__init__()
        widths, last = config.widths, len(config.widths) - 1
        self.project_in = _Holder(CentredConv3d(config.latent_channels, widths[-1], operations=operations))
        self.stages = nn.ModuleList()
        for stage, count in enumerate(config.decoder_blocks):
            layers = _blocks(config, stage, count, operations)
            if stage < last:
                layers.insert(
                    0, Enlargement(widths[stage + 1], widths[stage], config.factors(stage), operations=operations)
                )
            self.stages.append(_Operations(layers))
        out = CentredConv3d(widths[0], config.channels, operations=operations)
        self.project_out = _Operations([channel_norm(widths[0], operations), nn.ReLU(), out])

    def forward(self, z: Tensor) -> Tensor:
        x = self._in(z)
        for stage in reversed(self.stages):
            x = stage(x)
        norm, _, conv = self.project_out.op_list
        return conv(F.relu(channel_normed(norm, x)))

    def strips(self, z: Tensor, plan: Strips) -> Tensor:
        """The same by strips."""
        rows = Rows.of(self._in(z))
        for layer in chain.from_iterable(stage.op_list for stage in reversed(self.stages)):
            rows = layer.strips(rows, plan)
        norm, _, conv = self.project_out.op_list
        normed = rows.computed(rows.shape, lambda a, b: F.relu_(channel_normed(norm, rows.read(a, b))))
        return plan.finish(_convolved(conv, normed))

    def _in(self, z: Tensor) -> Tensor:
        y = self.project_in.main(z)
        return y + z.repeat_interleave(y.shape[1] // z.shape[1], dim=1)


def _convolved(conv: CentredConv3d, rows: Rows) -> Rows:
    shape = (rows.shape[0], conv.conv.out_channels, *rows.shape[2:])
    return rows.computed(shape, lambda a, b: conv.strip(rows.read, rows.height, a, b))
