"""The numbers that define one MMDiT, and how to read them off a checkpoint's key shapes.

Released settings: ``Open_Sora_v2.safetensors`` and its high-compression sibling (upstream
``opensora/models/mmdit/model.py`` of release 2.0); without reference input and with a guidance embedding the same
network is Flux.1-dev.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import isqrt
from typing import Literal, get_args

from ..checkpoint.counting import count_blocks
from ..text.padding import T5_LENGTH
from .keys import to_checkpoint_key

Shape = tuple[int, ...]

Rotation = Literal["half-split", "interleaved"]
"""Which dimensions of a head are rotated together: j and j + d/2, or 2j and 2j + 1."""
ROTATIONS: tuple[Rotation, ...] = get_args(Rotation)

PATCH_WITHOUT_REFERENCE = 2
"""Side of a patch where no reference input shows it (Flux)."""

TIME_WIDTH = 256
"""Width of the sinusoid of a flow time or a guidance scale (DiT)."""


@dataclass(frozen=True)
class MMDiTConfig:
    """Constructor settings of :class:`~.network.MMDiT`, named as upstream; the defaults are Open-Sora 2.0's.

    ``in_channels`` counts the features of a token: latent channels times ``patch_size`` squared. ``axes_dim`` are the
    parts of a head that are rotated by frame, row and column. ``cond_embed``: an input for a mask and reference
    latents. ``guidance_embed``: an input for a guidance scale (Flux). ``fused_qkv``: one layer makes queries, keys and
    values. ``rotation`` and ``round_time`` cannot be read off weights. ``round_time``: the network sees its time in
    bfloat16, as in training, whatever it computes in; above 512 of 1000 that means multiples of 4. Neither can
    ``text_tokens``, the number of text states it was trained with, padding included; the network takes any number.
    """

    in_channels: int = 64
    vec_in_dim: int = 768
    context_in_dim: int = 4096
    hidden_size: int = 3072
    mlp_ratio: float = 4.0
    num_heads: int = 24
    depth: int = 19
    depth_single_blocks: int = 38
    axes_dim: tuple[int, ...] = (16, 56, 56)
    theta: float = 10000
    qkv_bias: bool = True
    guidance_embed: bool = False
    cond_embed: bool = True
    fused_qkv: bool = False
    patch_size: int = 2
    rotation: Rotation = "half-split"
    round_time: bool = True
    text_tokens: int = T5_LENGTH

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of num_heads {self.num_heads}.")
        if len(self.axes_dim) != 3 or min(self.axes_dim) < 0 or any(width % 2 for width in self.axes_dim):
            raise ValueError(f"axes_dim is {self.axes_dim}; it needs three even widths for frame, row and column.")
        if sum(self.axes_dim) != self.head_dim:
            good = default_axes(self.head_dim) if self.head_dim % 2 == 0 else "none, heads need an even width"
            raise ValueError(
                f"axes_dim {self.axes_dim} does not add up to the head size {self.head_dim}; a good value is {good}."
            )
        if self.patch_size < 1 or self.in_channels % self.patch_size**2:
            raise ValueError(
                f"in_channels {self.in_channels} cannot be cut into patches of {self.patch_size}x{self.patch_size}."
            )
        if self.rotation not in ROTATIONS:
            raise ValueError(f"rotation is {self.rotation!r}; use {' or '.join(ROTATIONS)}.")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def mlp_hidden(self) -> int:
        # A ratio that was read off two widths may fall a rounding error short of the width it came from.
        return int(self.hidden_size * self.mlp_ratio + 1e-6)

    @property
    def channels(self) -> int:
        """Channels of a latent."""
        return self.in_channels // self.patch_size**2

    @property
    def reference_features(self) -> int:
        """Features of a token of the reference input: one mask channel and the latent's own channels."""
        return self.in_channels + self.patch_size**2


RELEASED = MMDiTConfig()
"""Open-Sora 2.0, 256px and 768px (11.89 G parameters)."""

RELEASED_HIGH_COMPRESSION = MMDiTConfig(in_channels=128, patch_size=1)
"""Open-Sora 2.0 for the high-compression autoencoder (11.89 G parameters)."""


def default_axes(head_dim: int) -> tuple[int, int, int]:
    """The parts of a head for frame, row and column: an eighth and two times the half of the rest, all even."""
    space = (head_dim - head_dim // 8) // 4 * 2
    return head_dim - 2 * space, space, space


def config_from_shapes(shapes: Mapping[str, Shape]) -> MMDiTConfig:
    """The config of a checkpoint, from its keys and shapes alone.

    Weights do not show how heads are rotated: split projections mean half-split in the released files, fused ones
    interleaved. Nor do they show ``axes_dim``, ``theta`` and, without a reference input, the patch; those get the
    released values (see :mod:`.settings` for files that say otherwise). Keys are those of a released file, without
    prefix. Raises ValueError where a key that MMDiT cannot do without is missing.
    """
    shapes = {to_checkpoint_key(key): shape for key, shape in shapes.items()}
    hidden_size, in_channels = _shape(shapes, "img_in.weight", 2)
    depths = {kind: count_blocks(shapes, f"{kind}_blocks.") for kind in ("double", "single")}
    block = "double_blocks.0.img_attn" if depths["double"] else "single_blocks.0"
    head_dim = _shape(shapes, f"{block}.norm.query_norm.scale", 1)[0]
    fused = f"{block}.qkv.weight" in shapes or f"{block}.linear1.weight" in shapes
    cond_embed = "cond_in.weight" in shapes
    return MMDiTConfig(
        in_channels=in_channels,
        vec_in_dim=_shape(shapes, "vector_in.in_layer.weight", 2)[1],
        context_in_dim=_shape(shapes, "txt_in.weight", 2)[1],
        hidden_size=hidden_size,
        mlp_ratio=_mlp_hidden(shapes, depths, hidden_size) / hidden_size,
        num_heads=hidden_size // head_dim,
        depth=depths["double"],
        depth_single_blocks=depths["single"],
        axes_dim=default_axes(head_dim),
        qkv_bias=not depths["double"] or f"{block}.{'qkv' if fused else 'q_proj'}.bias" in shapes,
        guidance_embed="guidance_in.in_layer.weight" in shapes,
        cond_embed=cond_embed,
        fused_qkv=fused,
        patch_size=_patch(shapes, in_channels) if cond_embed else PATCH_WITHOUT_REFERENCE,
        rotation="interleaved" if fused else "half-split",
    )


def _mlp_hidden(shapes: Mapping[str, Shape], depths: Mapping[str, int], hidden_size: int) -> int:
    if depths["double"]:
        return _shape(shapes, "double_blocks.0.img_mlp.0.weight", 2)[0]
    return _shape(shapes, "single_blocks.0.linear2.weight", 2)[1] - hidden_size


def _patch(shapes: Mapping[str, Shape], in_channels: int) -> int:
    """The reference input has one mask channel more than the latent, so a patch more features."""
    extra = _shape(shapes, "cond_in.weight", 2)[1] - in_channels
    side = isqrt(max(0, extra))
    if side < 1 or side**2 != extra:
        raise ValueError(
            f"Not an Open-Sora 2.0 checkpoint: cond_in.weight has {extra} columns more than img_in.weight, expected "
            "the square of a patch side such as 4 or 1."
        )
    return side


def _shape(shapes: Mapping[str, Shape], key: str, dimensions: int) -> Shape:
    shape = shapes.get(key)
    if shape is None or len(shape) != dimensions or 0 in shape:
        found = "missing" if shape is None else f"of shape {tuple(shape)}"
        raise ValueError(f"Not an MMDiT checkpoint: {key} is {found}, expected {dimensions} size(s) of at least 1.")
    return tuple(shape)
