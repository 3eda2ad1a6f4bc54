"""Which ComfyUI config reads a diffusion model: one line per kind of file, for our loader and for core's."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ...checkpoint.kinds import MMDIT_V20, MMDIT_V20_DCAE, STDIT3_V12, STDIT3_V13, FileKind
from ...checkpoint.settings import Choices
from .base_model import OpenSoraConfigBase, Shape
from .mmdit_model import MMDiTModelConfig
from .stdit3_model import OpenSoraConfig


@dataclass(frozen=True)
class Family:
    """The release a kind of file belongs to, and the class that knows its network."""

    release: str
    config_class: type[OpenSoraConfigBase]

    def network_config(self, shapes: Mapping[str, Shape]) -> Any:
        """The network's numbers, read off names and shapes. Raises ValueError where something is missing."""
        return self.config_class.config_from_shapes(shapes)

    def complete(self, config: Any, settings: Mapping[str, Any], choices: Choices | None = None) -> Any:
        """The numbers with what weights cannot tell. Raises ValueError for what no network can have."""
        return self.config_class.complete(config, settings, choices)

    def model_config(self, config: Any, as_upstream: bool = False) -> Any:
        """ComfyUI's description of the model."""
        return self.config_class.of(config, self.release, as_upstream)


FAMILIES: dict[FileKind, Family] = {
    STDIT3_V12: Family("1.2", OpenSoraConfig),
    STDIT3_V13: Family("1.3", OpenSoraConfig),
    MMDIT_V20: Family("2.0", MMDiTModelConfig),
    MMDIT_V20_DCAE: Family("2.0 high compression", MMDiTModelConfig),
}
"""Every kind of diffusion model this pack runs."""

CONFIG_CLASSES = tuple(dict.fromkeys(family.config_class for family in FAMILIES.values()))

EXPECTED = "an Open-Sora 1.2, 1.3 or 2.0 diffusion model"
