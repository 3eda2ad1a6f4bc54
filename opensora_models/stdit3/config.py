"""The numbers that define one STDiT3 network, and how to read them off a checkpoint's key shapes.

Released settings: ``STDiT3-XL/2`` of Open-Sora 1.2 and 1.3 (upstream ``opensora/models/stdit/stdit3.py``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

from ..checkpoint.counting import count_blocks
from ..releases.groups import Version

Shape = tuple[int, ...]

RELEASED_KERNEL_SIZE = (8, 8, -1)
"""Window of Open-Sora 1.3's temporal blocks in token rows, token columns, latent frames; -1 = the whole axis."""

RELEASED_INPUT_SQ_SIZE = 512
"""Side in pixels at which the position embedding has scale 1 (both versions)."""


V13_FLASH_LENGTH = 128
"""Sequences up to this length get no flash kernel in version 1.3's original (``STDiT3Block``'s attention)."""


@dataclass(frozen=True)
class STDiT3Config:
    """Constructor settings of :class:`~.network.STDiT3`; the defaults are Open-Sora 1.2's XL/2.

    ``depth`` counts pairs of one spatial and one temporal block. ``kernel_size`` is the window of the temporal
    blocks (rows, columns, frames in tokens; None = every position attends over time alone) and decides, with
    ``use_spatial_rope``, how positions are rotated.
    """

    version: Version = "1.2"
    depth: int = 28
    hidden_size: int = 1152
    num_heads: int = 16
    mlp_ratio: float = 4.0
    in_channels: int = 4
    caption_channels: int = 4096
    model_max_length: int = 300
    input_sq_size: int = RELEASED_INPUT_SQ_SIZE
    patch_size: tuple[int, int, int] = (1, 2, 2)
    qk_norm: bool = True
    pred_sigma: bool = True
    kernel_size: tuple[int, int, int] | None = None
    use_spatial_rope: bool = False
    skip_temporal: bool = False

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}.")
        if self.patch_size[0] != 1:
            raise ValueError(f"patch_size {self.patch_size} joins frames; STDiT3 needs 1 in the first place.")
        if self.kernel_size is not None and (min(self.kernel_size[:2]) < 1 or self.kernel_size[2] in (0, -2)):
            raise ValueError(f"kernel_size {self.kernel_size} needs positive rows and columns, and frames or -1.")
        if self.use_spatial_rope and self.kernel_size is None:
            raise ValueError("use_spatial_rope needs a kernel_size, e.g. (8, 8, -1).")
        if self.rotated_width % 2:
            raise ValueError(f"head size {self.head_dim} gives an odd rotated width {self.rotated_width}.")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.in_channels

    @property
    def out_channels(self) -> int:
        """Velocity channels, followed by as many unused ones when ``pred_sigma`` is on."""
        return self.in_channels * 2 if self.pred_sigma else self.in_channels

    @property
    def mlp_hidden(self) -> int:
        # A ratio that was read off two widths may fall a rounding error short of the width it came from.
        return int(self.hidden_size * self.mlp_ratio + 1e-6)

    @property
    def rotated_width(self) -> int:
        """Width that shares one set of rotary frequencies: the head, or a third of it for time, row and column."""
        return self.head_dim if self.kernel_size is None else self.head_dim // 3

    @property
    def takes_given_frames(self) -> bool:
        """Whether there are embedders for given latents and their mask (1.3)."""
        return self.version == "1.3"

    @property
    def float_time(self) -> bool:
        """Whether the original keeps the float32 timestep even when the rest runs in bfloat16 (1.3)."""
        return self.version == "1.3"

    @property
    def written_out_length(self) -> int | None:
        """Sequences up to this length get no flash kernel in the original; None: up to their number (1.2)."""
        return V13_FLASH_LENGTH if self.version == "1.3" else None


XL_V12 = STDiT3Config()
"""Open-Sora 1.2 as released (1.21 G parameters)."""

XL_V13 = STDiT3Config(version="1.3", in_channels=16, kernel_size=RELEASED_KERNEL_SIZE, use_spatial_rope=True)
"""Open-Sora 1.3 as released (1.21 G parameters)."""


def config_from_shapes(shapes: Mapping[str, Shape]) -> STDiT3Config:
    """The config of a checkpoint, from its keys and shapes alone.

    The window size and spatial rotary are not visible in weights: version 1.3 gets the released values, unless its
    ``rope.freqs`` has the length of a whole head, which means that there is no window. Keys are those of a released
    file, without prefix. Raises ValueError where a key that STDiT3 cannot do without is missing.
    """
    patch = _shape(shapes, "x_embedder.proj.weight", 5)
    hidden_size, in_channels, *patch_size = patch
    temporal_blocks = count_blocks(shapes, "temporal_blocks.")
    has_temporal = temporal_blocks > 0
    qk_norm = "spatial_blocks.0.attn.q_norm.weight" in shapes
    rope_length = _shape(shapes, "rope.freqs", 1)[0] if has_temporal else 0
    head_dim = _head_dim(shapes, qk_norm, rope_length)
    max_length, caption_channels = _shape(shapes, "y_embedder.y_embedding", 2)
    version: Version = "1.3" if "x_embedder_cond.proj.weight" in shapes else "1.2"
    windowed = version == "1.3" and rope_length != head_dim // 2
    return STDiT3Config(
        version=version,
        depth=max(count_blocks(shapes, "spatial_blocks."), temporal_blocks),
        hidden_size=hidden_size,
        num_heads=hidden_size // head_dim,
        mlp_ratio=_shape(shapes, "spatial_blocks.0.mlp.fc1.weight", 2)[0] / hidden_size,
        in_channels=in_channels,
        caption_channels=caption_channels,
        model_max_length=max_length,
        patch_size=(patch_size[0], patch_size[1], patch_size[2]),
        qk_norm=qk_norm,
        pred_sigma=_shape(shapes, "final_layer.linear.weight", 2)[0] == 2 * in_channels * prod(patch_size),
        kernel_size=RELEASED_KERNEL_SIZE if windowed else None,
        use_spatial_rope=windowed,
        skip_temporal=not has_temporal,
    )


def _head_dim(shapes: Mapping[str, Shape], qk_norm: bool, rope_length: int) -> int:
    """The q norm's width; without one, version 1.2's rotary frequencies are half as many as a head is wide."""
    if qk_norm:
        return _shape(shapes, "spatial_blocks.0.attn.q_norm.weight", 1)[0]
    if rope_length and "x_embedder_cond.proj.weight" not in shapes:
        return 2 * rope_length
    raise ValueError("The head size cannot be read from these weights: no q_norm and no rope.freqs.")


def _shape(shapes: Mapping[str, Shape], key: str, dimensions: int) -> Shape:
    shape = shapes.get(key)
    if shape is None or len(shape) != dimensions or 0 in shape:
        found = "missing" if shape is None else f"of shape {tuple(shape)}"
        raise ValueError(f"Not an STDiT3 checkpoint: {key} is {found}, expected {dimensions} sizes of at least 1.")
    return tuple(shape)
