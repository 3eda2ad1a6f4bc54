"""From a weight file to the settings of the autoencoder it holds, or one sentence saying why it holds none."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint import Checkpoint, expect_shapes
from ..checkpoint_kinds import FULL_CHECKPOINT, SD_VAE, VAE_V12, VAE_V13
from ..frames import Version
from .autoencoder import OpenSora12, OpenSora13
from .causal import CausalConfig
from .image import ImageConfig
from .keys import PIPELINE_PREFIX, image_names
from .temporal import TemporalConfig

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]

EXPECTED = "an Open-Sora 1.2 or 1.3 video VAE"
TEMPORAL_PREFIX = "temporal_vae."
# Group norms have this many groups in every released autoencoder; narrower tiny ones use what divides their width.
GROUPS = 32


@dataclass(frozen=True)
class Recipe:
    """What a file (or a pair of files) holds: settings, and for each file its tensors under our names."""

    version: Version
    settings: tuple[Any, ...]
    parts: tuple[Checkpoint, ...]
    names: tuple[Mapping[str, str], ...]

    def build(self, **options: Any) -> OpenSora12 | OpenSora13:
        """The empty network; ``options`` go to its constructor (``operations``, ``overlap``)."""
        if self.version == "1.2":
            options.pop("overlap", None)
            return OpenSora12(*self.settings, **options)
        return OpenSora13(*self.settings, **options)

    def check(self) -> list[str]:
        """Hold the files against the network: ValueError for missing or wrong tensors, else names not used."""
        with torch.device("meta"):
            wanted = {name: tuple(value.shape) for name, value in self.build().state_dict().items()}
        merged = {}
        for part, names in zip(self.parts, self.names, strict=True):
            merged.update({ours: part.tensors[theirs] for theirs, ours in names.items()})
        found = {name: info._replace(shape=_as_wanted(info.shape, wanted.get(name))) for name, info in merged.items()}
        return expect_shapes(replace(self.parts[0], tensors=found), wanted, ignore=("shift", "scale"))

    def load(self) -> dict[str, Tensor]:
        """All tensors under our names, on the CPU; 1×1 convolutions of old files become the linear layers they are."""
        loaded: dict[str, Tensor] = {}
        for part, names in zip(self.parts, self.names, strict=True):
            for theirs, tensor in part.load().items():
                ours = names.get(theirs)
                if ours is not None:
                    loaded[ours] = tensor.flatten(1) if _is_projection(ours, tensor.shape) else tensor
        return loaded


def recognise(checkpoint: Checkpoint, spatial: Checkpoint | None = None) -> Recipe:
    """What ``checkpoint`` holds; ``spatial`` is the image VAE where the main file has only the temporal part.

    Raises ValueError with one sentence for anything that is not an Open-Sora 1.2 or 1.3 video VAE.
    """
    shapes = checkpoint.shapes
    if checkpoint.kind is VAE_V13 or checkpoint.kind is VAE_V12:
        if spatial is not None:
            raise ValueError(
                f"'{checkpoint.name}' already holds everything; leave spatial_vae on none instead of '{spatial.name}'."
            )
        if checkpoint.kind is VAE_V13:
            settings = causal_config(shapes, checkpoint.settings().get("groups"))
            return Recipe("1.3", (settings,), (checkpoint,), ({name: name for name in shapes},))
        return _whole_pipeline(checkpoint)
    temporal = _temporal_names(shapes)
    if temporal:
        return _split(checkpoint, temporal, spatial)
    if checkpoint.kind is SD_VAE:
        raise ValueError(
            f"'{checkpoint.name}' looks like {SD_VAE.title}, which is only the spatial half of Open-Sora 1.2's VAE; "
            "choose the temporal file as vae_name and this one as spatial_vae."
        )
    raise ValueError(f"'{checkpoint.name}' looks like {checkpoint.kind.sentence_part()}; expected {EXPECTED}.")


def _whole_pipeline(checkpoint: Checkpoint) -> Recipe:
    shapes = checkpoint.shapes
    inner = [name.removeprefix(PIPELINE_PREFIX) for name in shapes if name.startswith(PIPELINE_PREFIX)]
    renamed = image_names(inner)
    names = {name: name for name in shapes}
    names.update({PIPELINE_PREFIX + old: PIPELINE_PREFIX + new for old, new in renamed.items()})
    ours = {names[name]: shape for name, shape in shapes.items()}
    groups = checkpoint.settings().get("groups")
    settings = (
        image_config(_below(ours, PIPELINE_PREFIX), groups),
        temporal_config(_below(ours, TEMPORAL_PREFIX), groups),
    )
    return Recipe("1.2", settings, (checkpoint,), (names,))


def _temporal_names(shapes: Shapes) -> dict[str, str]:
    """Names of a file with the temporal part alone, with or without its prefix; {} for any other file."""
    bare = {name: name.removeprefix(TEMPORAL_PREFIX) for name in shapes}
    if not any(name.startswith("decoder.block_res_blocks.") for name in bare.values()):
        return {}
    return {name: name if name in ("shift", "scale") else TEMPORAL_PREFIX + part for name, part in bare.items()}


def _split(checkpoint: Checkpoint, temporal: dict[str, str], spatial: Checkpoint | None) -> Recipe:
    if spatial is None:
        raise ValueError(
            f"'{checkpoint.name}' holds only the temporal half of Open-Sora 1.2's VAE; choose an SDXL or Stable "
            "Diffusion VAE file as spatial_vae."
        )
    if spatial.kind is not SD_VAE and not any(name.startswith("encoder.down_blocks.") for name in spatial.shapes):
        hint = " (extract its VAE first)" if spatial.kind is FULL_CHECKPOINT else ""
        raise ValueError(
            f"'{spatial.name}' looks like {spatial.kind.sentence_part()}{hint}; expected a Stable Diffusion or SDXL "
            "image VAE as spatial_vae."
        )
    renamed = image_names(spatial.shapes)
    images = {name: PIPELINE_PREFIX + new for name, new in renamed.items()}
    settings = (
        image_config({renamed[name]: shape for name, shape in spatial.shapes.items()}),
        temporal_config({temporal[name].removeprefix(TEMPORAL_PREFIX): s for name, s in checkpoint.shapes.items()}),
    )
    return Recipe("1.2", settings, (checkpoint, spatial), (temporal, images))


def image_config(shapes: Shapes, groups: int | None = None) -> ImageConfig:
    """Settings of an image autoencoder in current diffusers names; ``groups`` as for :func:`causal_config`."""
    levels = _count(shapes, r"encoder\.down_blocks\.(\d+)\.")
    widths = tuple(_shape(shapes, f"encoder.down_blocks.{level}.resnets.0.conv1.weight")[0] for level in range(levels))
    return ImageConfig(
        widths=widths,
        layers=_count(shapes, r"encoder\.down_blocks\.0\.resnets\.(\d+)\."),
        latent_channels=_shape(shapes, "decoder.conv_in.weight")[1],
        groups=groups or _groups(widths),
    )


def temporal_config(shapes: Shapes, groups: int | None = None) -> TemporalConfig:
    """Settings of a temporal autoencoder; ``groups`` as for :func:`causal_config`."""
    filters, channels = _shape(shapes, "encoder.conv_in.conv.weight")[:2]
    levels = _count(shapes, r"encoder\.block_res_blocks\.(\d+)\.")
    widths = [_shape(shapes, f"encoder.block_res_blocks.{i}.0.conv1.conv.weight")[0] for i in range(levels)]
    return TemporalConfig(
        channels=channels,
        latent_channels=_shape(shapes, "decoder.conv1.conv.weight")[1],
        filters=filters,
        blocks=_count(shapes, r"encoder\.res_blocks\.(\d+)\."),
        multipliers=tuple(width // filters for width in widths),
        downsample=tuple(f"encoder.conv_blocks.{level}.conv.weight" in shapes for level in range(levels - 1)),
        groups=groups or _groups(widths),
    )


def causal_config(shapes: Shapes, groups: int | None = None) -> CausalConfig:
    """Settings of a causal 3-D autoencoder; ``groups`` is what the file says of its group norms, if anything."""
    width = _shape(shapes, "encoder.conv_in.conv.weight")[0]
    levels = _count(shapes, r"encoder\.down\.(\d+)\.")
    widths = [_shape(shapes, f"encoder.down.{i}.block.0.conv1.conv.weight")[0] for i in range(levels)]
    return CausalConfig(
        width=width,
        multipliers=tuple(value // width for value in widths),
        blocks=_count(shapes, r"encoder\.down\.0\.block\.(\d+)\."),
        latent_channels=_shape(shapes, "decoder.conv_in.conv.weight")[1],
        temporal_down=tuple(i for i in range(levels) if f"encoder.down.{i}.downsample.conv.conv.weight" in shapes),
        temporal_up=tuple(i for i in range(levels) if f"decoder.up.{i}.upsample.conv3d.conv1.conv.weight" in shapes),
        groups=groups or _groups(widths),
    )


def _below(shapes: Shapes, prefix: str) -> dict[str, Shape]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _count(shapes: Shapes, pattern: str) -> int:
    """One more than the largest number the pattern finds."""
    numbers = [int(found[1]) for name in shapes if (found := re.match(pattern, name))]
    if not numbers:
        raise ValueError(f"The VAE file has no tensor named like '{_plain(pattern)}'; download or export it again.")
    return 1 + max(numbers)


def _plain(pattern: str) -> str:
    return pattern.replace("\\", "").replace("(d+)", "0")


def _shape(shapes: Shapes, name: str) -> Shape:
    if name not in shapes:
        raise ValueError(f"The VAE file lacks '{name}'; it is incomplete, download or export it again.")
    return shapes[name]


def _groups(widths: tuple[int, ...] | list[int]) -> int:
    return math.gcd(GROUPS, *widths)


def _is_projection(name: str, shape: Shape) -> bool:
    return ".attentions.0.to_" in name and name.endswith("weight") and len(shape) == 4


def _as_wanted(shape: Shape, wanted: Shape | None) -> Shape:
    """A 1×1 convolution counts as the linear layer it is."""
    return shape[:2] if wanted is not None and len(wanted) == 2 and shape[2:] == (1, 1) else shape


def plain_network(recipe: Recipe) -> nn.Module:
    """The network of a recipe with its weights, in ordinary torch layers on the CPU."""
    network = recipe.build()
    network.load_state_dict(recipe.load(), strict=False)
    return network.eval()
