"""Reads weights that a command line names into networks; whatever does not fit is said in one line."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .refused import Refused


def weights_in(file: Path) -> dict[str, Tensor]:
    """All tensors of a safetensors file; Refused if there is none or it cannot be read."""
    if not file.is_file():
        raise Refused(f"There is no '{file}'.")
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise Refused(f"'{file}' cannot be read as a safetensors file ({error}).") from None


def fill(module: nn.Module, weights: Mapping[str, Tensor], file: Path, own: tuple[str, ...] = ()) -> None:
    """Gives ``module`` the weights of ``file``; Refused if they are not exactly those it has, in its sizes.

    Names that begin with one of ``own`` are the module's own and in no file.
    """
    wanted = {name: value.shape for name, value in module.state_dict().items() if not name.startswith(own)}
    for name in sorted(wanted.keys() | weights.keys()):
        if name not in weights or name not in wanted or weights[name].shape != wanted[name]:
            what = "lacks" if name not in weights else "has another" if name in wanted else "also has"
            raise Refused(f"'{file}' {what} '{name}': its weights are those of another network or recipe.")
    module.load_state_dict({name: weights[name].float() for name in wanted}, strict=False)
