"""Settings that weights cannot show, as they travel with a file: JSON in its metadata, in a tensor, or beside it.

ComfyUI's own save nodes write no metadata of ours, but every tensor they are given. So what a saved model or VAE must
not lose goes along as one small tensor of JSON bytes under the name of the metadata entry.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from ..messages.quoting import shown
from .reading import parse_json

NAME = "opensora.config"
"""Of the metadata entry and of the tensor."""

LARGEST = 65_536
"""Bytes of such a tensor; ours have about a hundred."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Choices:
    """A person's own settings of a diffusion model; None leaves a value to the file.

    ``window`` is the side of the temporal blocks' square window in tokens, ``spatial_rotary`` whether positions inside
    a frame are rotated (both Open-Sora 1.3 only), ``input_sq_size`` the reference size of positions (1.2 and 1.3).
    ``rotation``: which numbers of a head make a pair, "half-split" or "interleaved" (2.0 only).
    """

    window: int | None = None
    spatial_rotary: bool | None = None
    input_sq_size: int | None = None
    rotation: str | None = None

    def expect_only(self, *names: str, network: str) -> None:
        """Raises ValueError where anything but ``names`` is chosen for a ``network`` that has nothing else."""
        chosen = [each.name for each in fields(self) if getattr(self, each.name) is not None]
        foreign = ", ".join(name for name in chosen if name not in names)
        if foreign:
            raise ValueError(f"{network} has no {foreign} to choose; leave it on automatic (a window on 0).")


def parse_settings(text: str | bytes, where: str) -> dict[str, Any]:
    """A JSON object from ``text``; ``where`` names its origin in the ValueError for anything else."""
    if not isinstance(text, (str, bytes)):
        raise ValueError(f"The settings in {where} are {shown(text)}, not text; repair or remove them.")
    return expect_object(parse_json(text, where), where)


def expect_object(value: Any, where: str) -> dict[str, Any]:
    """``value`` if it is a JSON object; ValueError saying ``where`` it stands for anything else."""
    if not isinstance(value, dict):
        raise ValueError(f'The settings in {where} must be a JSON object such as {{"kernel_size": [8, 8, -1]}}.')
    return value


def to_tensor(settings: Settings) -> Tensor:
    """The settings as a tensor of bytes, for a state dict."""
    return torch.tensor(list(json.dumps(dict(settings), sort_keys=True).encode("utf-8")), dtype=torch.uint8)


def from_tensor(tensor: Tensor, where: str) -> dict[str, Any]:
    """The inverse of :func:`to_tensor`, also for bytes that a program has turned into floats on its way.

    Raises ValueError saying ``where`` it stands if it holds no settings.
    """
    values = tensor.detach().flatten().to("cpu", torch.float64)
    if (
        not len(values)
        or len(values) > LARGEST
        or not bool(((values >= 0) & (values <= 255) & (values % 1 == 0)).all())
    ):
        raise ValueError(f"The settings in the tensor '{NAME}' of {where} are damaged; export the file again.")
    return parse_settings(bytes(values.to(torch.uint8).tolist()), f"the tensor '{NAME}' of {where}")


def whole_number(value: Any, name: str, least: int, most: int) -> int:
    """``value`` if it is a whole number in these limits; ValueError with the nearest good value for anything else."""
    if not isinstance(value, bool) and isinstance(value, int) and least <= value <= most:
        return value
    near = ""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        near = f"; the nearest good value is {min(max(round(value), least), most)}"
    raise ValueError(f"{name} is {shown(value)}; expected a whole number from {least} to {most}{near}.")


def yes_or_no(value: Any, name: str) -> bool:
    """``value`` if it is true or false; ValueError for anything else."""
    if isinstance(value, bool):
        return value
    raise ValueError(f"{name} is {shown(value)}; expected true or false.")
