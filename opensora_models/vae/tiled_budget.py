"""How much memory a piece of a 2.0 autoencoder takes, found by walking through its layers without computing them.

At each layer some tensors are held (what is stored) and some are worked with (copies with a margin, strips, float32
copies). The largest sum is the peak; ``tests/unit/test_vae_tiled_budget.py`` holds it to what is allocated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from .budget import USABLE, candidate_plans
from .dcae import DcAeConfig
from .hunyuan import HELD, HunyuanConfig
from .strips import COPY_BYTES, Rows, Strips
from .tiled import OpenSora20, OpenSora20HighCompression, TiledAutoencoder
from .tiling import Axis, Layout

Size = tuple[int, int, int]
"""Frames, rows and columns of a layer."""

FLOAT = 4
# While the taps of a doubling convolution are summed: the weights left after one axis, the sum and the result of the
# next, in float32 and as shares of all weights.
SUMS = 2 / 3 + 2 / 9 + 4 / 9


def decode_bytes(model: TiledAutoencoder, shape: Sequence[int], element_size: int, plan: Strips | None) -> float:
    """Peak bytes of activations while the largest piece of latents [..., T, h, w] is decoded; plain without a plan."""
    return _peak(model, _largest(model.decode_layout(shape)), element_size, plan, decoding=True)


def encode_bytes(model: TiledAutoencoder, shape: Sequence[int], element_size: int, plan: Strips | None) -> float:
    """Peak bytes while the largest piece of pixels [..., T, H, W] is encoded, its pixels included."""
    return _peak(model, _largest(model.encode_layout(shape)), element_size, plan, decoding=False)


def joining_bytes(layout: Layout, channels: int, element_size: int) -> int:
    """Bytes beside the pieces, where they are joined: the frames of one part and the ends of its row of tiles."""
    if len(layout.pieces) == 1:
        return 0
    frames, height, width = max(layout.time.gives), layout.rows.total, layout.columns.total
    ends = layout.rows.blend * sum(layout.columns.gives) + layout.columns.blend * max(layout.rows.gives)
    before = layout.time.blend * height * width if layout.parts > 1 else 0
    return channels * element_size * (frames * (height * width + ends) + before)


def fitting(model: TiledAutoencoder, shape: Sequence[int], element_size: int, free: float, *, decoding: bool) -> Strips:
    """The fastest plan whose largest piece fits into ``free`` bytes; the leanest one where none does."""
    measure = decode_bytes if decoding else encode_bytes
    candidates = candidate_plans()
    return next(
        (plan for plan in candidates if measure(model, shape, element_size, plan) <= USABLE * free), candidates[-1]
    )


def _largest(layout: Layout) -> Size:
    """Input positions of the largest piece."""

    def longest(axis: Axis) -> int:
        return max(part.stop - part.start for part in axis.takes)

    return longest(layout.time), longest(layout.rows), longest(layout.columns)


def _peak(model: TiledAutoencoder, size: Size, element_size: int, plan: Strips | None, *, decoding: bool) -> float:
    if isinstance(model, OpenSora20):
        hunyuan = _Hunyuan(plan, element_size, model.config)
        return hunyuan.decode(size) if decoding else hunyuan.encode(size)
    assert isinstance(model, OpenSora20HighCompression)
    dc_ae = _DcAe(plan, element_size, model.config)
    return dc_ae.decode(size) if decoding else dc_ae.encode(size)


class _Walk:
    """What both networks share: sizes of layers and of their strips, and the peak so far."""

    def __init__(self, plan: Strips | None, element_size: int) -> None:
        self.plan, self.element_size = plan, element_size
        self.peak = 0.0

    def note(self, held: float, working: float) -> None:
        """Some layers are held while others are worked with."""
        self.peak = max(self.peak, held + working)

    def layer(self, width: int, size: Size) -> float:
        """Bytes of a layer."""
        frames, rows, columns = size
        return float(self.element_size * width * frames * rows * columns)

    def strip(self, size: Size, *widths: int) -> Size:
        """Size of one strip of a layer computed from or through layers of these widths; all of it if it is not cut."""
        if self.plan is None:
            return size
        rows = Rows((1, max(widths), *size), lambda first, last: torch.empty(0), element_size=self.element_size)
        first, last = self.plan.bounds(rows)[0]
        return size[0], last - first, size[2]

    def summed(self, weights: int) -> float:
        """Bytes while so many weights of a doubling convolution are summed."""
        copies = SUMS if self.element_size == FLOAT else 1 + SUMS
        return FLOAT * copies * weights

    def measured(self, strip: float) -> float:
        """Bytes while the statistics of a strip are taken: it, the one before it, and float32 copies."""
        return 2 * strip + 2 * min(COPY_BYTES, strip * FLOAT / self.element_size)


def _grown(size: Size, rows: int, limit: Size) -> Size:
    """A strip with ``rows`` more rows, as far as there are any."""
    return size[0], min(limit[1], size[1] + rows), size[2]


@dataclass(frozen=True)
class _State:
    """What the next layer reads: a layer of ``width``, stored or computed again from ``held`` bytes."""

    width: int
    stored: bool
    held: float


class _Hunyuan(_Walk):
    """Walks through the Hunyuan VAE."""

    def __init__(self, plan: Strips | None, element_size: int, config: HunyuanConfig) -> None:
        super().__init__(plan, element_size)
        self.config = config

    def decode(self, size: Size) -> float:
        widths = self.config.widths[::-1]
        full = self._full_size(size)
        self._hold(self.layer(widths[-1], full))
        state = self._middle(_State(widths[0], True, self.layer(widths[0], size)), size)
        for width, step in zip(widths, self.config.steps, strict=True):
            for _ in range(self.config.layers + 1):
                state = self._residual(state, width, size)
            if step is not None:
                size = (step[0] * (size[0] - 1) + 1, step[1] * size[1], step[2] * size[2])
                state = self._enlarged(state, size)
        out = self.layer(self.config.channels, size)
        self.note(state.held + out, self._working(size, state.width, self.config.channels, computed=False))
        return self.peak

    def encode(self, size: Size) -> float:
        widths, pixels = self.config.widths, self.layer(self.config.channels, size)
        first = self.layer(widths[0], size)
        self._hold(first)
        stored = self._whole(size, widths[0])
        state = _State(widths[0], stored, pixels + (first if stored else 0.0))
        for width, step in zip(widths, self.config.steps, strict=True):
            for _ in range(self.config.layers):
                state = self._residual(state, width, size)
            if step is not None:
                size = (-(-size[0] // step[0]), -(-size[1] // step[1]), -(-size[2] // step[2]))
                rows = self.layer(width, self.strip(size, step[1] * step[2] * width)) * step[0] * step[1] * step[2]
                new = self.layer(width, size)
                self.note(state.held + new, 1.3 * rows)
                state = _State(width, True, new)
        self._middle(state, size)
        return self.peak

    def _full_size(self, size: Size) -> Size:
        for step in self.config.steps:
            if step is not None:
                size = (step[0] * (size[0] - 1) + 1, step[1] * size[1], step[2] * size[2])
        return size

    def _hold(self, full: float) -> None:
        if self.plan is not None:
            self.plan = replace(self.plan, hold=int(HELD * full))

    def _whole(self, size: Size, *widths: int) -> bool:
        """Whether a layer is computed in one piece."""
        return self.strip(size, *widths)[1] == size[1]

    def _middle(self, state: _State, size: Size) -> _State:
        for _ in range(2):
            state = self._residual(state, state.width, size)
        # Attention: x, its norm, queries, keys, values and the result, in their order and back.
        self.note(state.held, 6 * self.layer(state.width, size))
        return state

    def _residual(self, state: _State, width: int, size: Size) -> _State:
        new = self.layer(width, size)
        if self._whole(size, state.width, width):
            self.note(state.held, self._working(size, state.width, width, computed=False))
            self.note(state.held + new, self._working(size, width, width, computed=False))
            return _State(width, True, new)
        assert self.plan is not None
        kept = not state.stored or not self.plan.lean or new <= self.plan.hold
        first = self._working(size, state.width, width, computed=not state.stored)
        second = self._working(size, width, width, computed=not kept)
        self.note(state.held + kept * new, first)
        in_place = kept or (state.stored and state.width == width)
        # Computed again, the middle of the block has the first convolution's input still beside it.
        again = 0.0 if kept else first / 4
        self.note(state.held + kept * new + (0.0 if in_place else new), second + again)
        return _State(width, True, new)

    def _enlarged(self, state: _State, size: Size) -> _State:
        new = self.layer(state.width, size)
        strip = self.layer(state.width, self.strip(size, state.width))
        weights = self.summed(27 * state.width**2)
        if self._whole(size, state.width):
            self.note(state.held, weights + new + 0.6 * new)
            return _State(state.width, True, new)
        assert self.plan is not None
        if new <= self.plan.hold:
            self.note(state.held + new, weights + self.measured(strip))
            return _State(state.width, True, new)
        self.note(state.held, weights + 1.6 * strip)
        return _State(state.width, False, state.held)

    def _working(self, size: Size, width: int, out: int, *, computed: bool) -> float:
        """A norm and a convolution: its input normed and with a margin, and its result."""
        strip = self.strip(size, width, out)

        def made(rows: int) -> float:
            """Bytes while so many rows are computed and measured."""
            part = (size[0], rows, size[2])
            grown = _grown(part, 2, size)
            normed, result = self.layer(width, grown), self.layer(out, part)
            padded = normed * (size[0] + 2) / size[0] * (grown[2] + 2) / grown[2]
            if self.plan is None:
                return normed + max(normed, padded + result)
            read = 2 * normed if computed else 0.0
            copies = 2 * min(COPY_BYTES, result * FLOAT / self.element_size)
            return max(read + normed, normed + padded, padded + result, result + copies)

        rest = min(strip[1], size[1] - strip[1])  # of the second strip, while the first one waits to be written
        return max(made(strip[1]), made(rest) + self.layer(out, strip) if rest else 0.0)


class _DcAe(_Walk):
    """Walks through the DC-AE."""

    def __init__(self, plan: Strips | None, element_size: int, config: DcAeConfig) -> None:
        super().__init__(plan, element_size)
        self.config = config
        self.before = 0.0  # what the plain path still holds of the stage before

    def decode(self, size: Size) -> float:
        config, last = self.config, len(self.config.widths) - 1
        for stage in range(last, -1, -1):
            if stage < last:
                time, rows, columns = config.factors(stage)
                larger = (size[0] if size[0] == 1 else time * size[0], rows * size[1], columns * size[2])
                self._enlarged(size, larger, config.widths[stage + 1], config.widths[stage])
                size = larger
            if config.decoder_blocks[stage]:
                self._blocks(stage, size)
        x, out = self.layer(config.widths[0], size), self.layer(config.channels, size)
        self.note(x + out, 3 * self.layer(config.widths[0], self.strip(size, config.widths[0])))
        return self.peak

    def encode(self, size: Size) -> float:
        config, pixels = self.config, self.layer(self.config.channels, size)
        for stage, width in enumerate(config.widths):
            if config.encoder_blocks[stage]:
                self._blocks(stage, size, pixels)
            if stage < len(config.widths) - 1:
                time, rows, columns = (min(pair) for pair in zip(config.factors(stage), size, strict=True))
                smaller = (size[0] // time, size[1] // rows, size[2] // columns)
                self._reduced(size, smaller, width, config.widths[stage + 1], pixels)
                size = smaller
        return self.peak

    def _blocks(self, stage: int, size: Size, beside: float = 0.0) -> None:
        """The blocks of a stage, whose results take the place of their input where it is cut."""
        width = self.config.widths[stage]
        x = beside + self.layer(width, size)
        widths = (1, 2 * self.config.expansion) if self.config.attention[stage] else (1,)
        for wide in widths:
            strip = self.strip(size, wide * width)
            inner = self.layer(wide * width, _grown(strip, 2, size))
            result = self.layer(width, strip)
            copies = FLOAT / self.element_size * result / size[0]  # of the norm, for one frame
            if strip == size:
                self.note(x, 2 * result + copies)
                result += self.before
                self.note(x, 2 * inner + (inner if wide > 1 else 0.0) + (result if self.plan is None else 0.0))
            else:
                self.note(x, 2 * inner + 1.5 * result + copies)
        if self.config.attention[stage]:
            self._attention(width, size, x)

    def _attention(self, width: int, size: Size, x: float) -> None:
        mixed = 3 * width
        strip = self.strip(size, 2 * mixed)
        part = self.layer(mixed, _grown(strip, 4, size))
        # Projections, their copy with a margin and their mixture; then keys and values in float32.
        self.note(x, 3 * part + 2 * part * FLOAT / self.element_size)

    def _enlarged(self, size: Size, larger: Size, width: int, out: int) -> None:
        x, new = self.layer(width, size), self.layer(out, larger)
        weights = self.summed(27 * width * out)
        share = width * math.prod(size) // math.prod(larger)
        strip = self.strip(larger, out, max(1, share))
        part = self.layer(out, strip)
        if strip == larger:
            self.note(x, max(weights + x + new, x + 3 * new))
            self.before = x if self.plan is None else 0.0
            return
        # The result is made when the second strip is there.
        held = x + (new if larger[1] > 2 * strip[1] else 0.0)
        self.note(held, max(weights + part, 3 * part) + part)
        self.note(x + new, 2 * part)

    def _reduced(self, size: Size, smaller: Size, width: int, out: int, beside: float) -> None:
        x, new = self.layer(width, size), self.layer(out, smaller)
        share = size[1] * size[2] * size[0] // (smaller[0] * smaller[1] * smaller[2])
        strip = self.strip(smaller, out, width * share)
        rows = self.layer(width, strip) * share
        self.note(beside + x + (0.0 if strip == smaller else new), 2.2 * rows + self.layer(out, strip))
