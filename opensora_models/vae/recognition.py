"""From a weight file to the settings of the autoencoder it holds, or one sentence saying why it holds none."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..checkpoint.counting import count_blocks
from ..checkpoint.kinds import DC_AE, FLUX_VAE, HUNYUAN_VAE, SD_VAE, VAE_V12, VAE_V13, FileKind
from ..checkpoint.opening import Checkpoint, expect_shapes, expect_weights
from ..checkpoint.reading import reading
from ..checkpoint.settings import Settings
from ..releases.groups import FRAMES_PER_LATENT, SPATIAL_FACTOR, Version
from ..releases.known import release_named
from .autoencoder import OpenSora12, OpenSora13
from .causal import CausalConfig
from .file_settings import groups_of, options_of
from .image import ImageConfig
from .keys import PIPELINE_PREFIX, image_names
from .piecewise import PiecewiseAutoencoder
from .temporal import TemporalConfig
from .tiled import DC_AE_TILING, HUNYUAN_TILING, OpenSora20, OpenSora20HighCompression
from .tiled_files import as_linear, dc_ae_config, hunyuan_config, hunyuan_names, is_dc_ae, is_hunyuan, tiling_of

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

EXPECTED = "a video VAE of Open-Sora 1.2, 1.3 or 2.0"
NETWORKS: dict[str, type[PiecewiseAutoencoder]] = {
    kind.version: kind for kind in (OpenSora12, OpenSora13, OpenSora20, OpenSora20HighCompression)
}
"""The network of each release."""
TEMPORAL_PREFIX = "temporal_vae."
LATENT_CHANNELS: dict[Version, int] = {"1.2": 4, "1.3": 16}
"""Channels of the latents every program of a version exchanges."""


@dataclass(frozen=True)
class Recipe:
    """What a file (or a pair of files) holds: settings, and for each file its tensors under our names.

    ``options`` are what a file says of its network beside the weights: a 1.3 file ``overlap`` and ``normalization``,
    a 2.0 file its ``tiling``.
    """

    version: str
    settings: tuple[Any, ...]
    parts: tuple[Checkpoint, ...]
    names: tuple[Mapping[str, str], ...]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """Of the main file, for messages."""
        return self.parts[0].name

    def build(self, kinds: Mapping[str, type[PiecewiseAutoencoder]] = NETWORKS, **options: Any) -> PiecewiseAutoencoder:
        """The empty network, of one of ``kinds``; ``options`` go to its constructor, over what the file says."""
        return kinds[self.version](*self.settings, **{**self.options, **options})

    def check(self) -> list[str]:
        """Hold the files against the network: ValueError for missing or wrong tensors, else names not used."""
        with reading(self.name), torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in self.build().state_dict().items()}
        merged = {}
        for part, names in zip(self.parts, self.names, strict=True):
            merged.update({ours: part.tensors[theirs] for theirs, ours in names.items()})
        found = {name: info._replace(shape=_as_wanted(info.shape, wanted.get(name))) for name, info in merged.items()}
        whole = replace(self.parts[0], tensors=found)
        unused = expect_shapes(whole, wanted, ignore=("shift", "scale"))
        expect_weights(whole, wanted)
        return unused

    def load(self) -> dict[str, Tensor]:
        """All tensors under our names, on the CPU; 1×1 convolutions of old files become the linear layers they are."""
        loaded: dict[str, Tensor] = {}
        for part, names in zip(self.parts, self.names, strict=True):
            for theirs, tensor in part.load().items():
                ours = names.get(theirs)
                if ours is not None:
                    loaded[ours] = as_linear(ours, tensor)
        return loaded


def recognise(checkpoint: Checkpoint, spatial: Checkpoint | None = None) -> Recipe:
    """What ``checkpoint`` holds; ``spatial`` is the image VAE where the main file has only the temporal part.

    Raises ValueError with one sentence for anything that is not a video VAE of Open-Sora.
    """
    with reading(checkpoint.name):
        holds_all = _WHOLE.get(checkpoint.kind)
        if holds_all is None:
            return _split(checkpoint, spatial)
        if spatial is not None:
            raise ValueError(
                f"{checkpoint.quoted} already holds everything; leave spatial_vae on none instead of {spatial.quoted}."
            )
        return holds_all(checkpoint)


def _causal(checkpoint: Checkpoint) -> Recipe:
    settings, shapes = checkpoint.settings(), checkpoint.shapes
    config = causal_config(shapes, settings)
    _expect_factors("1.3", config.latent_channels, len(config.multipliers) - 1, len(config.temporal_down))
    if len(config.temporal_up) != len(config.temporal_down):
        raise ValueError("its decoder makes another number of frames than its encoder takes.")
    return Recipe("1.3", (config,), (checkpoint,), ({name: name for name in shapes},), options_of(settings))


def _whole_pipeline(checkpoint: Checkpoint) -> Recipe:
    shapes = checkpoint.shapes
    inner = [name.removeprefix(PIPELINE_PREFIX) for name in shapes if name.startswith(PIPELINE_PREFIX)]
    renamed = image_names(inner)
    names = {name: name for name in shapes}
    names.update({PIPELINE_PREFIX + old: PIPELINE_PREFIX + new for old, new in renamed.items()})
    ours = {names[name]: shape for name, shape in shapes.items()}
    settings = checkpoint.settings()
    configs = (
        image_config(_below(ours, PIPELINE_PREFIX), settings),
        temporal_config(_below(ours, TEMPORAL_PREFIX), settings),
    )
    return Recipe("1.2", _expect_halves(*configs), (checkpoint,), (names,))


def _hunyuan(checkpoint: Checkpoint) -> Recipe:
    if not is_hunyuan(checkpoint.shapes):
        _refuse(checkpoint, "of which it lacks parts")
    settings, names = checkpoint.settings(), hunyuan_names(checkpoint.shapes)
    config = hunyuan_config({ours: checkpoint.shapes[name] for name, ours in names.items()}, settings)
    _expect_reductions("2.0", config.factors)
    return Recipe("2.0", (config,), (checkpoint,), (names,), {"tiling": tiling_of(settings, HUNYUAN_TILING)})


def _dc_ae(checkpoint: Checkpoint) -> Recipe:
    shapes, settings = checkpoint.shapes, checkpoint.settings()
    if not is_dc_ae(shapes):
        _refuse(checkpoint, "of which it lacks parts")
    config = dc_ae_config(shapes, settings)
    version = OpenSora20HighCompression.version
    _expect_reductions(version, (config.time_factor, config.space_factor))
    names = {name: name for name in shapes}
    return Recipe(version, (config,), (checkpoint,), (names,), {"tiling": tiling_of(settings, DC_AE_TILING)})


_WHOLE: dict[FileKind, Callable[[Checkpoint], Recipe]] = {
    VAE_V12: _whole_pipeline,
    VAE_V13: _causal,
    HUNYUAN_VAE: _hunyuan,
    DC_AE: _dc_ae,
}
"""What to do with files that hold everything."""


def temporal_names(shapes: Shapes) -> dict[str, str]:
    """Names of a file with the temporal part alone, with or without its prefix; {} for any other file."""
    bare = {name: name.removeprefix(TEMPORAL_PREFIX) for name in shapes}
    if not any(name.startswith("decoder.block_res_blocks.") for name in bare.values()):
        return {}
    return {name: name if name in ("shift", "scale") else TEMPORAL_PREFIX + part for name, part in bare.items()}


def _split(checkpoint: Checkpoint, spatial: Checkpoint | None) -> Recipe:
    temporal = temporal_names(checkpoint.shapes)
    if not temporal:
        _refuse(checkpoint)
    if spatial is None:
        raise ValueError(
            f"{checkpoint.quoted} holds only the temporal half of Open-Sora 1.2's VAE; choose an SDXL or Stable "
            "Diffusion VAE file as spatial_vae."
        )
    configs = (
        spatial_config(spatial),
        temporal_config(
            {temporal[name].removeprefix(TEMPORAL_PREFIX): s for name, s in checkpoint.shapes.items()},
            checkpoint.settings(),
        ),
    )
    images = {name: PIPELINE_PREFIX + new for name, new in image_names(spatial.shapes).items()}
    return Recipe("1.2", _expect_halves(*configs), (checkpoint, spatial), (temporal, images))


def spatial_config(spatial: Checkpoint) -> ImageConfig:
    """Settings of the image VAE in a file of its own. ValueError for any other file."""
    if spatial.kind is not SD_VAE and not any(name.startswith("encoder.down_blocks.") for name in spatial.shapes):
        raise ValueError(
            f"{spatial.quoted} looks like {spatial.kind.sentence_part()}; expected a Stable Diffusion or SDXL image "
            "VAE as spatial_vae."
        )
    with reading(spatial.name):
        renamed = image_names(spatial.shapes)
        return image_config({renamed[name]: shape for name, shape in spatial.shapes.items()}, spatial.settings())


def _refuse(checkpoint: Checkpoint, flaw: str = "") -> NoReturn:
    if checkpoint.kind is SD_VAE:
        raise ValueError(
            f"{checkpoint.quoted} looks like {SD_VAE.title}, which is only the spatial half of Open-Sora 1.2's VAE; "
            "choose the temporal file as vae_name and this one as spatial_vae."
        )
    if checkpoint.kind is FLUX_VAE:
        raise ValueError(
            f"{checkpoint.quoted} looks like {FLUX_VAE.title}, which makes single pictures and is loaded with "
            f"ComfyUI's Load VAE; expected {EXPECTED}."
        )
    looks = checkpoint.kind.sentence_part() + (f", {flaw}" if flaw else "")
    raise ValueError(f"{checkpoint.quoted} looks like {looks}; expected {EXPECTED}.")


def image_config(shapes: Shapes, settings: Settings | None = None) -> ImageConfig:
    """Settings of an image autoencoder in current diffusers names; ``settings`` are those of its file."""
    levels = _count(shapes, "encoder.down_blocks.")
    widths = tuple(
        _shape(shapes, f"encoder.down_blocks.{level}.resnets.0.conv1.weight", 4)[0] for level in range(levels)
    )
    return ImageConfig(
        widths=widths,
        layers=_count(shapes, "encoder.down_blocks.0.resnets."),
        latent_channels=_shape(shapes, "decoder.conv_in.weight", 4)[1],
        groups=groups_of(settings or {}, widths, "image_"),
    )


def temporal_config(shapes: Shapes, settings: Settings | None = None) -> TemporalConfig:
    """Settings of a temporal autoencoder; ``settings`` are those of its file."""
    filters, channels = _shape(shapes, "encoder.conv_in.conv.weight", 5)[:2]
    levels = _count(shapes, "encoder.block_res_blocks.")
    widths = [_shape(shapes, f"encoder.block_res_blocks.{i}.0.conv1.conv.weight", 5)[0] for i in range(levels)]
    return TemporalConfig(
        channels=channels,
        latent_channels=_shape(shapes, "decoder.conv1.conv.weight", 5)[1],
        filters=filters,
        blocks=_count(shapes, "encoder.res_blocks."),
        multipliers=_multipliers(widths, filters),
        downsample=tuple(f"encoder.conv_blocks.{level}.conv.weight" in shapes for level in range(levels - 1)),
        groups=groups_of(settings or {}, [filters, *widths], "temporal_"),
    )


def causal_config(shapes: Shapes, settings: Settings | None = None) -> CausalConfig:
    """Settings of a causal 3-D autoencoder; ``settings`` are those of its file."""
    width = _shape(shapes, "encoder.conv_in.conv.weight", 5)[0]
    levels = _count(shapes, "encoder.down.")
    widths = [_shape(shapes, f"encoder.down.{i}.block.0.conv1.conv.weight", 5)[0] for i in range(levels)]
    return CausalConfig(
        width=width,
        multipliers=_multipliers(widths, width),
        blocks=_count(shapes, "encoder.down.0.block."),
        latent_channels=_shape(shapes, "decoder.conv_in.conv.weight", 5)[1],
        temporal_down=tuple(i for i in range(levels) if f"encoder.down.{i}.downsample.conv.conv.weight" in shapes),
        temporal_up=tuple(i for i in range(levels) if f"decoder.up.{i}.upsample.conv3d.conv1.conv.weight" in shapes),
        groups=groups_of(settings or {}, [width, *widths]),
    )


def _multipliers(widths: Sequence[int], unit: int) -> tuple[int, ...]:
    if any(width % unit for width in widths):
        raise ValueError(
            f"its levels have widths {list(widths)[:8]}, which are no multiples of the first width {unit}."
        )
    return tuple(width // unit for width in widths)


def _expect_halves(image: ImageConfig, temporal: TemporalConfig) -> tuple[ImageConfig, TemporalConfig]:
    """Both halves if they fit each other and Open-Sora 1.2; ValueError else."""
    if image.latent_channels != temporal.channels:
        raise ValueError(
            f"its temporal half reads {temporal.channels} channels, its spatial half makes {image.latent_channels}."
        )
    _expect_factors("1.2", temporal.latent_channels, len(image.widths) - 1, sum(temporal.downsample))
    return image, temporal


def _expect_factors(version: Version, channels: int, halvings: int, halvings_of_time: int) -> None:
    """Refuses an autoencoder whose latents no Open-Sora model could read."""
    if channels != LATENT_CHANNELS[version]:
        raise ValueError(f"its latents have {channels} channels; those of Open-Sora {version} have "
                         f"{LATENT_CHANNELS[version]}.")  # fmt: skip
    # Powers are compared by their exponents: a file may claim any number of levels.
    wanted = (SPATIAL_FACTOR.bit_length() - 1, FRAMES_PER_LATENT.bit_length() - 1)
    if (halvings, halvings_of_time) != wanted:
        raise ValueError(
            f"it halves pictures {halvings} and frames {halvings_of_time} times; Open-Sora {version} halves them "
            f"{wanted[0]} and {wanted[1]} times."
        )


def _expect_reductions(version: str, factors: tuple[int, int]) -> None:
    """Refuses an autoencoder of 2.0 that reduces frames or pixels by other factors than the released one."""
    release = release_named(version)
    wanted = (release.latents.lengths.step, release.latents.space)
    if factors != wanted:
        raise ValueError(
            f"it makes one latent of {factors[0]} frames and {factors[1]} pixels to a side; Open-Sora {version} makes "
            f"one of {wanted[0]} and {wanted[1]}."
        )


def _below(shapes: Shapes, prefix: str) -> dict[str, Shape]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _count(shapes: Shapes, prefix: str) -> int:
    count = count_blocks(shapes, prefix)
    if not count:
        raise ValueError(f"it has no tensor named like '{prefix}0'; download or export it again.")
    return count


def _shape(shapes: Shapes, name: str, dimensions: int) -> Shape:
    """Shape of a tensor that the network cannot do without."""
    shape = shapes.get(name)
    if shape is None:
        raise ValueError(f"it lacks '{name}'; it is incomplete, download or export it again.")
    if len(shape) != dimensions or 0 in shape:
        raise ValueError(f"its tensor '{name}' has the shape {list(shape)}; expected {dimensions} sizes of at least 1.")
    return shape


def _as_wanted(shape: Shape, wanted: Shape | None) -> Shape:
    """A 1×1 convolution counts as the linear layer it is."""
    return shape[:2] if wanted is not None and len(wanted) == 2 and set(shape[2:]) == {1} else shape


def plain_network(recipe: Recipe) -> nn.Module:
    """The network of a recipe with its weights, in ordinary torch layers on the CPU."""
    network = recipe.build()
    network.load_state_dict(recipe.load(), strict=False)
    return network.eval()
