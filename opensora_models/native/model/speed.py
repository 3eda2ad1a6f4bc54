"""How many operations a second a network is computed with here: counted in every run, for the cost of the next one."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import comfy.model_management
import folder_paths
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP, get_all_wrappers
from torch import Tensor

from ...releases.release import Release
from ...storage.failures import CannotStore
from ...storage.speeds import keep_speed, speeds_in
from .step_cache import STEP_CACHE

logger = logging.getLogger("opensora")

KEY = METER = "opensora_speed"
"""Of the wrapper on a MODEL, and of the count among the options that reach the network."""
SAMPLE_CELLS = (1, 16, 16)
"""Networks are told apart by the operations of a row of this size."""


class Meter:
    """Counts the operations of a run."""

    def __init__(self) -> None:
        self.operations, self.whole = 0.0, True

    def count(self, operations: float, options: dict[str, Any]) -> None:
        """One forward. Something around the network may leave it out, as EasyCache does: then nothing is known."""
        self.operations += operations
        left_out = STEP_CACHE in options or get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options)
        self.whole = self.whole and not left_out


def measure(model: ModelPatcher) -> None:
    """Let every run of a MODEL be measured."""
    if not model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY):
        model.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, timed)


def timed(executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], *args: Any, **kwargs: Any) -> Tensor:
    """ComfyUI's ``Sampler.sample`` with the clock running; weights are loaded before it begins."""
    meter, started = Meter(), time.perf_counter()
    extra_args["model_options"].setdefault("transformer_options", {})[METER] = meter
    samples = executor(guider, sigmas, extra_args, *args, **kwargs)
    samples.flatten()[:1].tolist()  # waits for an accelerator to be done
    seconds = time.perf_counter() - started
    if meter.whole and meter.operations and seconds > 0:
        _note(guider, meter.operations / seconds)
    return samples


def speed_of(network: str, dtype: torch.dtype | None = None) -> float | None:
    """Operations a second of the last run of a network on the device models run on; None before the first one.

    Without ``dtype`` that of the last run counts.
    """
    start = _name(network, comfy.model_management.get_torch_device(), dtype)
    rates = [rate for name, rate in speeds_in(_file()).items() if name.startswith(start)]
    return rates[-1] if rates else None


def network_of(release: Release, row: float) -> str:
    """What a network is called among the measured ones; ``row``: its operations for :data:`SAMPLE_CELLS`."""
    return f"{release.id}, {row:.0f}"


def _name(network: str, device: torch.device, dtype: torch.dtype | None) -> str:
    named = comfy.model_management.get_torch_device_name(device)
    return f"{named}, {network}, " + ("" if dtype is None else str(dtype))


def _note(guider: Any, rate: float) -> None:
    model = guider.inner_model
    network = network_of(model.release, model.operations_of_row(SAMPLE_CELLS))
    try:
        keep_speed(_file(), _name(network, guider.model_patcher.load_device, model.get_dtype_inference()), rate)
    except CannotStore as error:
        logger.info("The speed of this run is not kept for the cost of the next: %s", error)


def _file() -> Path:
    return Path(folder_paths.get_system_user_directory("opensora")) / "speeds.json"


def cells_of(shape: Sequence[int]) -> tuple[int, int, int]:
    """Latent frames, height and width of latents [B, C, T, h, w]."""
    return shape[-3], shape[-2], shape[-1]
