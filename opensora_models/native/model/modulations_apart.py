"""2.0's modulation layers kept out of what ComfyUI moves to a device and counts: 27 % of the weights.

They see one vector per row and nothing of the clip. So all times of a run are computed together, once per prompt, each
layer passing through the device on its way; what stays of a step and a prompt is two megabytes. ComfyUI's memory
management sees a smaller model, because the layers are no submodules any more and the patcher's size is without them.

What belongs to the weights still finds them: their names are in the network's state dict (LoRA, merges, saving), and
their path of attributes leads to them. Patches are applied where a run computes them. While a prompt has hooks that
exchange weights nothing is kept between steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from comfy.model_patcher import LowVramPatch, ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor, nn

from ...mmdit.modulation import TIME_FACTOR, Modulations
from ...mmdit.network import MMDiT

KEY = "opensora_modulations"
"""Of the wrapper on the MODEL."""


@dataclass
class _Run:
    """One sampling: its times on the 0..1000 scale, and what was made for each pooled text so far."""

    model: Any
    times: dict[float, int]
    made: list[tuple[Tensor, Modulations]] = field(default_factory=list)


class ModulationsApart:
    """The layers of one network, by their names in it, and what the running sampling has made with them."""

    def __init__(self, network: MMDiT) -> None:
        names = {id(layer): name for name, layer in network.named_modules()}
        self.parts: dict[str, nn.Module] = {}
        for layer in network.modulation_layers():
            name, _, _ = names[id(layer)].rpartition(".")
            parent, _, child = name.rpartition(".")
            holder = network.get_submodule(parent)
            self.parts[name] = holder._modules.pop(child)  # type: ignore[assignment]
            holder.__dict__[child] = self.parts[name]
            layer.comfy_cast_weights = True  # type: ignore[assignment]  # weights go where the vector is
        self._run: _Run | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the weights."""
        return sum(tensor.nbytes for part in self.parts.values() for tensor in part.state_dict().values())

    def add_to(self, state: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """Puts the weights into a state dict of the network."""
        for name, part in self.parts.items():
            part.state_dict(destination=state, prefix=f"{prefix}{name}.", keep_vars=keep_vars)

    @contextmanager
    def running(self, patcher: ModelPatcher, sigmas: Tensor) -> Iterator[None]:
        """For one sampling over these noise levels: makes of every prompt all its modulations at once."""
        times = patcher.get_model_object("model_sampling").timestep(sigmas.float()).flatten().tolist()
        patched = self._patch(patcher)
        self._run = _Run(patcher.model, {time: number for number, time in enumerate(dict.fromkeys(times))})
        try:
            yield
        finally:
            self._run = None
            for layer in patched:
                layer.weight_function, layer.bias_function = [], []

    def _patch(self, patcher: ModelPatcher) -> list[Any]:
        """Has every use of a patched weight see its patches, as where ComfyUI streams a layer."""
        layers: list[Any] = []
        for name, part in self.parts.items():
            for path, layer in part.named_modules(prefix=f"diffusion_model.{name}"):
                for kind in ("weight", "bias"):
                    if f"{path}.{kind}" in patcher.patches:
                        setattr(layer, f"{kind}_function", [LowVramPatch(f"{path}.{kind}", patcher.patches)])
                        layers.append(layer)
        return layers

    def of_rows(self, network: MMDiT, timestep: Tensor, pooled: Tensor, like: Tensor) -> Modulations | None:
        """Those of these rows, on the device and in the dtype of ``like``; None where the call has to make its own."""
        run = self._run
        if run is None or getattr(getattr(run.model, "current_patcher", None), "current_hooks", None) is not None:
            return None
        times = timestep.tolist()
        if any(time not in run.times for time in times):  # between the noise levels of the run
            return None
        rows = [
            self._of_text(run, network, text, like).rows([run.times[time]])
            for time, text in zip(times, pooled, strict=True)
        ]
        return _joined(rows).to(like)

    def _of_text(self, run: _Run, network: MMDiT, pooled: Tensor, like: Tensor) -> Modulations:
        """All of one pooled text [width], on the CPU."""
        text = pooled.to("cpu", copy=True)
        for known, made in run.made:
            if torch.equal(known, text):
                return made
        times = torch.tensor(list(run.times), device=like.device) / TIME_FACTOR
        vector = network.vector(times, pooled[None], rows=len(run.times), dtype=like.dtype)
        made = network.modulations(vector).to("cpu")
        run.made.append((text, made))
        return made


def _joined(rows: list[Modulations]) -> Modulations:
    """One after another as rows of a batch."""
    first = rows[0]
    double = tuple(
        (torch.cat([row.double[number][0] for row in rows]), torch.cat([row.double[number][1] for row in rows]))
        for number in range(len(first.double))
    )
    single = tuple(torch.cat([row.single[number] for row in rows]) for number in range(len(first.single)))
    return Modulations(double, single, torch.cat([row.final for row in rows]))


@contextmanager
def patched_apart(patcher: ModelPatcher) -> Iterator[None]:
    """Where calls make their own modulations, layers that are kept apart see their patches."""
    apart = getattr(patcher.model.diffusion_model, "apart", None)
    if apart is None:
        yield
        return
    with apart.running(patcher, torch.empty(0)):
        yield


def keep_apart(patcher: ModelPatcher) -> None:
    """Takes the modulation layers of a freshly loaded 2.0 MODEL out of what ComfyUI moves and counts."""
    network = patcher.model.diffusion_model
    whole = patcher.model_size()
    network.apart = ModulationsApart(network)
    patcher.size = whole - network.apart.nbytes
    patcher.add_wrapper_with_key(WrappersMP.OUTER_SAMPLE, KEY, once_per_run)


def once_per_run(
    executor: Any, noise: Tensor, latent_image: Tensor, sampler: Any, sigmas: Tensor, *args: Any, **kwargs: Any
) -> Tensor:
    """ComfyUI's wrapper around one sampling."""
    patcher = executor.class_obj.model_patcher
    with patcher.model.diffusion_model.apart.running(patcher, sigmas):
        return executor(noise, latent_image, sampler, sigmas, *args, **kwargs)
