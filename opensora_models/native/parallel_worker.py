"""The program beside one device, started by ``model/parallel.py``; it loads MODELs and computes a share of their calls.

What needs ComfyUI is imported when it is needed, since ComfyUI's settings must be in place before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ..parallel.memory import Sharing
from ..parallel.stack import Crew
from ..parallel.worker import Task, serve_pipes
from ..parallel.workers import VAE


class ModelTask:
    """A MODEL loaded as rank 0 has it."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        import torch

        from .model.parallel_settings import loaded, numbers_of, numbers_told

        with torch.inference_mode():
            self.patcher = loaded(settings)
            self.fingerprint = numbers_told(settings) if settings["streamed"] else numbers_of(self.patcher)

    def ready(self, crew: Crew, inputs: Mapping[str, Any]) -> None:
        """The weights are on the device."""
        import comfy.model_management

        with self.patcher.model.shared_among(Sharing(crew.everybody.size, crew.link)):
            needed = self.patcher.model.memory_required(list(inputs["x"].shape))
        comfy.model_management.load_models_gpu([self.patcher], memory_required=needed)

    def compute(self, crew: Crew, inputs: Mapping[str, Any]) -> None:
        """The share of this rank."""
        import torch

        from ..mmdit.modulation import Modulations
        from ..transformer.stack import STACK_HOOK
        from .model.helped import hook_of
        from .model.modulations_apart import patched_apart

        network = self.patcher.model.diffusion_model
        with torch.inference_mode(), patched_apart(self.patcher):
            here = {name: _on(value, self.patcher.load_device) for name, value in inputs.items()}
            options = {STACK_HOOK: hook_of(network, crew, here)}
            if here.get("modulations") is not None:
                here["modulations"] = Modulations(*here["modulations"])
            network.predict(**here, transformer_options=options)


class DecodingTask:
    """A VAE loaded as rank 0 has it."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        import torch

        from .model.parallel_settings import numbers_told
        from .vae.helped import loaded_vae, numbers_of_vae

        with torch.inference_mode():
            self.vae = loaded_vae(settings)
            self.fingerprint = numbers_told(settings) if settings["streamed"] else numbers_of_vae(self.vae)

    def ready(self, crew: Crew, inputs: Mapping[str, Any]) -> None:
        """The weights are on the device."""
        from ..vae.strips import Strips
        from .vae.plans import prepared

        prepared(self.vae, inputs["latents"].shape, Strips(**inputs["plan"]), decoding=True)

    def compute(self, crew: Crew, inputs: Mapping[str, Any]) -> None:
        """The pieces of this rank."""
        import torch

        from ..parallel.pieces import SharedDecoding
        from ..vae.strips import Strips

        with torch.inference_mode():
            latents = inputs["latents"].to(self.vae.device)
            layout, compute = self.vae.network.decoding(latents, inputs["num_frames"], Strips(**inputs["plan"]))
            pieces = layout.needed(inputs["first_part"], inputs["end_part"])
            SharedDecoding(crew.everybody, len(latents)).help(layout, compute, pieces)


def load(settings: Mapping[str, Any]) -> Task:
    """What the settings are of."""
    return DecodingTask(settings) if settings.get("kind") == VAE else ModelTask(settings)


def _on(value: Any, device: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return type(value)(_on(each, device) for each in value)
    return value.to(device) if isinstance(value, Tensor) else value


def main(settings: str) -> None:
    """Be a worker of a ComfyUI with these settings, a JSON object of its command line's plain values."""
    import comfy.cli_args

    given = json.loads(settings)
    given["fast"] = {comfy.cli_args.PerformanceFeature(name) for name in given["fast"]}
    vars(comfy.cli_args.args).update(given)
    serve_pipes(load)
