"""Reads a 2.0 autoencoder's settings from the names and shapes of a file, whichever names it uses.

The Hunyuan VAE comes under three sets of names for one model: the original's, which diffusers shares, an older one of
diffusers, and ComfyUI's. The DC-AE has its own alone. Errors are what
:func:`..checkpoint.reading.reading` puts a file's name to.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from torch import Tensor

from ..checkpoint.counting import count_blocks
from ..checkpoint.settings import Settings, expect_object, whole_number, yes_or_no
from ..messages.quoting import shown
from .dcae import DcAeConfig
from .file_settings import groups_of
from .hunyuan import HunyuanConfig
from .keys import image_names
from .statistics import Exchange, exchange_scaled
from .tiled import OpenSora20, OpenSora20HighCompression, TiledAutoencoder, Tiling

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

# The released reduction in space; deeper networks than the released one do not reduce further.
SPACE_FACTOR = 8
LARGEST_FACTOR = 1024
HUNYUAN_NAMES = (
    "encoder.down_blocks.0.resnets.0.conv1.conv.weight",
    "decoder.conv_in.conv.weight",
    "quant_conv.weight",
)
DC_AE_NAMES = ("encoder.project_in.conv.weight", "decoder.project_out.op_list.2.conv.weight")


def hunyuan_names(names: Iterable[str]) -> dict[str, str]:
    """For each name of a Hunyuan VAE, as the original, diffusers or ComfyUI has it, the original's."""
    return image_names(names)


def is_hunyuan(shapes: Shapes) -> bool:
    """Whether a file with these tensors is a Hunyuan VAE, whatever its width and names."""
    ours = {name: shapes[old] for old, name in hunyuan_names(shapes).items()}
    # CogVideoX's autoencoder has layers inside its norms.
    return all(len(ours.get(name, ())) == 5 for name in HUNYUAN_NAMES) and not any(
        "norm_layer" in name for name in ours
    )


def is_dc_ae(shapes: Shapes) -> bool:
    """Whether a file with these tensors is the video DC-AE, whatever its width."""
    return all(len(shapes.get(name, ())) == 5 for name in DC_AE_NAMES)


def as_linear(name: str, tensor: Tensor) -> Tensor:
    """Attention projections, by the original's name, as linear layers: ComfyUI has them as 1×1×1 convolutions."""
    return tensor.flatten(1) if ".attentions.0.to_" in name and tensor.ndim > 2 else tensor


def hunyuan_config(shapes: Shapes, settings: Settings | None = None) -> HunyuanConfig:
    """Settings of a Hunyuan VAE from tensors in the original's names.

    ``settings``: what weights cannot show, by our names or the original's (``groups`` or ``norm_num_groups`` …).
    Raises ValueError for a file with tensors missing.
    """
    settings = settings or {}
    levels = _count(shapes, "encoder.down_blocks.")
    blocks = [f"encoder.down_blocks.{level}" for level in range(levels)]
    widths = tuple(_shape(shapes, f"{block}.resnets.0.conv1.conv.weight")[0] for block in blocks)
    steps = sum(f"{block}.downsamplers.0.conv.conv.weight" in shapes for block in blocks)
    groups = _setting(settings, None, "groups", "norm_num_groups")
    released = HunyuanConfig()
    return HunyuanConfig(
        widths=widths,
        layers=_count(shapes, "encoder.down_blocks.0.resnets."),
        latent_channels=_shape(shapes, "decoder.conv_in.conv.weight")[1],
        groups=groups_of({"groups": groups}, widths),
        channels=_shape(shapes, "encoder.conv_in.conv.weight")[1],
        time_factor=_factor(settings, released.time_factor, "time_factor", "time_compression_ratio"),
        space_factor=_factor(settings, min(SPACE_FACTOR, 2**steps), "space_factor", "spatial_compression_ratio"),
        attention="encoder.mid_block.attentions.0.to_q.weight" in shapes,
        scale=_scale(settings, released.scale, "scale", "scale_factor"),
        shift=_number(settings, released.shift, "shift", "shift_factor"),
    )


def dc_ae_config(shapes: Shapes, settings: Settings | None = None) -> DcAeConfig:
    """Settings of a DC-AE; ``settings``: what weights cannot show, ``scale`` (the original's ``scaling_factor``).

    Raises ValueError for a file with tensors missing.
    """
    settings = settings or {}
    stages = _count(shapes, "encoder.stages.")
    attention = tuple(_attention_block(shapes, stage) is not None for stage in range(stages))
    widths = tuple(_width(shapes, stage) for stage in range(stages))
    latents = _shape(shapes, "encoder.project_out.main.op_list.0.conv.weight")[0]
    _expect_folding(widths, latents)
    return DcAeConfig(
        widths=widths,
        encoder_blocks=tuple(_blocks(shapes, "encoder", stage, stages) for stage in range(stages)),
        decoder_blocks=tuple(_blocks(shapes, "decoder", stage, stages) for stage in range(stages)),
        attention=attention,
        # The last two steps halve the frames.
        time_stages=tuple(range(max(0, stages - 3), stages - 1)),
        latent_channels=latents,
        channels=_shape(shapes, "encoder.project_in.conv.weight")[1],
        scale=_scale(settings, 1.0, "scale", "scaling_factor"),
        **(_attention_sizes(shapes, attention.index(True)) if any(attention) else {}),
    )


# Names of the original for the fields of a tiling: the Hunyuan VAE's, then the DC-AE's.
_TILING_NAMES = {
    "spatial": ("use_spatial_tiling",),
    "temporal": ("use_temporal_tiling",),
    "size": ("sample_size", "spatial_tile_size"),
    "frames": ("sample_tsize", "temporal_tile_size"),
    "overlap": ("tile_overlap_factor",),
}
LARGEST_TILE = 2**16


def tiling_of(settings: Settings, released: Tiling) -> Tiling:
    """The tiling a file was saved with, under ``tiling`` or in the original's names, else the released one."""
    own = expect_object(settings["tiling"], "tiling") if settings.get("tiling") is not None else {}
    found: dict[str, Any] = {}
    for name, others in _TILING_NAMES.items():
        value = own.get(name, _setting(settings, None, *others))
        if value is None:
            continue
        if name in ("spatial", "temporal"):
            found[name] = yes_or_no(value, name)
        elif name == "overlap":
            found[name] = _number({name: value}, released.overlap, name)
        else:
            found[name] = whole_number(value, name, 1, LARGEST_TILE)
    return replace(released, **found)


def saved_tiled_settings(network: TiledAutoencoder) -> dict[str, Any]:
    """What must travel with the weights of a 2.0 autoencoder so that its file gives the same pictures again."""
    settings: dict[str, Any] = {"version": network.version, "tiling": asdict(network.tiling)}
    if isinstance(network, OpenSora20):
        config = network.config
        return settings | {"groups": config.groups, "scale": config.scale, "shift": config.shift}
    assert isinstance(network, OpenSora20HighCompression)
    return settings | {"scale": network.config.scale}


def tiled_exchange(network: TiledAutoencoder) -> Exchange | None:
    """How latents of a network with its own scale are exchanged with programs that expect the released one."""
    if isinstance(network, OpenSora20):
        config, released = network.config, HunyuanConfig()
        return exchange_scaled((config.shift, config.scale), (released.shift, released.scale), config.latent_channels)
    assert isinstance(network, OpenSora20HighCompression)
    return exchange_scaled((0.0, 1 / network.config.scale), (0.0, 1.0), network.latent_channels)


def _expect_folding(widths: tuple[int, ...], latents: int) -> None:
    """The shortcuts fold four pixels of a channel into the next stage's channels, and back."""
    for narrow, wide in zip(widths, widths[1:], strict=False):
        if 4 * narrow % wide or 4 * wide % narrow:
            raise ValueError(f"its stages of {narrow} and {wide} channels cannot follow each other.")
    if widths[-1] % latents:
        raise ValueError(
            f"its last stage has {widths[-1]} channels, which is no multiple of its {latents} latent ones."
        )


def _attention_block(shapes: Shapes, stage: int) -> str | None:
    """Prefix of a block with attention in this stage."""
    for half in ("encoder", "decoder"):
        for block in range(2):  # of the decoder, the first may be the step
            prefix = f"{half}.stages.{stage}.op_list.{block}."
            if f"{prefix}context_module.main.qkv.conv.weight" in shapes:
                return prefix
    return None


def _width(shapes: Shapes, stage: int) -> int:
    """Channels of a stage: what the step before it, or the first layer, gives."""
    if stage == 0:
        return _shape(shapes, "encoder.project_in.conv.weight")[0]
    last = _count(shapes, f"encoder.stages.{stage - 1}.op_list.") - 1
    return _shape(shapes, f"encoder.stages.{stage - 1}.op_list.{last}.main.conv.weight")[0]


def _blocks(shapes: Shapes, half: str, stage: int, stages: int) -> int:
    """Blocks of a stage; its step to another resolution, which all but the deepest have, is not counted."""
    return count_blocks(shapes, f"{half}.stages.{stage}.op_list.") - (stage < stages - 1)


def _attention_sizes(shapes: Shapes, stage: int) -> dict[str, int]:
    block = _attention_block(shapes, stage)
    mixing = f"{block}context_module.main.aggreg.0"
    hidden, width = _shape(shapes, f"{block}local_module.main.inverted_conv.conv.weight")[:2]
    return {
        "head": _shape(shapes, f"{mixing}.1.weight")[1],
        "window": _shape(shapes, f"{mixing}.0.weight")[2],
        "expansion": hidden // 2 // width,
    }


def _setting(settings: Settings, default: Any, *names: str) -> Any:
    """The first of these settings that says anything."""
    return next((settings[name] for name in names if settings.get(name) is not None), default)


def _factor(settings: Settings, default: int, *names: str) -> int:
    factor = whole_number(_setting(settings, default, *names), names[0], 1, LARGEST_FACTOR)
    if factor & (factor - 1):
        below = 1 << (factor.bit_length() - 1)
        near = below if factor - below <= 2 * below - factor else 2 * below
        raise ValueError(f"{names[0]} is {factor}; expected a power of two; the nearest good value is {near}.")
    return factor


def _number(settings: Settings, default: float, *names: str) -> float:
    value = _setting(settings, default, *names)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not abs(value) < float("inf"):
        raise ValueError(f"{names[0]} is {shown(value)}; expected a number such as {default:g}.")
    return float(value)


def _scale(settings: Settings, default: float, *names: str) -> float:
    scale = _number(settings, default, *names)
    if scale <= 0:
        raise ValueError(f"{names[0]} is {scale:g}; expected a number above 0 such as {default:g}.")
    return scale


def _count(shapes: Shapes, prefix: str) -> int:
    count = count_blocks(shapes, prefix)
    if not count:
        raise ValueError(f"it has no tensor named like '{prefix}0'; download or export it again.")
    return count


def _shape(shapes: Shapes, name: str) -> Shape:
    """Shape of a convolution that the network cannot do without."""
    shape = shapes.get(name)
    if shape is None:
        raise ValueError(f"it lacks '{name}'; it is incomplete, download or export it again.")
    if len(shape) != 5 or 0 in shape:
        raise ValueError(f"its tensor '{name}' has the shape {list(shape)}; expected 5 sizes of at least 1.")
    return tuple(shape)
