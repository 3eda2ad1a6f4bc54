"""One clip on several devices: a MODEL whose blocks are computed by workers, too, in whatever sampler it works.

Workers belong to that MODEL and to the copies made of it: a LoRA put on it later is loaded by the same processes. They
end when ComfyUI unloads the MODEL, forgets it, or ends.
"""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy
import comfy.cli_args
import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import CallbacksMP, WrappersMP
from torch import Tensor

from ...mmdit.config import MMDiTConfig
from ...parallel.clips import MMDiTClip
from ...parallel.devices import ALL, CPU, GPU, cluster_devices, shared_devices, written
from ...parallel.memory import Sharing
from ...parallel.on_ray import RayProcess, connected, free_gpus, own_address
from ...parallel.plan import divides
from ...parallel.ranks import LOOPBACK
from ...parallel.workers import Workers, started
from ...sampling.effort import GIGA
from ..messages import tell
from ..vae.helped import with_workers
from ..vae.vae import OpenSoraVAE
from .helped import PARALLEL, Helpers
from .parallel_settings import numbers_of, settings_of

KEY = PARALLEL
"""Of the wrapper and the callback on a MODEL."""

ROWS = (1, 2, 3)
"""Rows of a step."""

START = """
import sys, types
pack = sys.modules["opensora"] = types.ModuleType("opensora")
pack.__path__ = [sys.argv[1]]
from opensora.opensora_models.native.parallel_worker import main
main(sys.argv[2])
"""
"""The program of a worker: this pack without its nodes, below a package, since names of its modules count elsewhere."""

ROOT = Path(__file__).resolve().parents[3]
VISIBLE = ("CUDA_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES")


@dataclass(frozen=True)
class ParallelRun:
    """ComfyUI's wrapper around ``Sampler.sample``: workers stand ready while it samples."""

    workers: Workers

    @property
    def sharing(self) -> Sharing:
        """Among whom, and by which link as far as it is known before or since they have met."""
        return Sharing(self.workers.count + 1, self.workers.link)

    def making_room(
        self, executor: Any, model: ModelPatcher, shape: Sequence[int], conds: Mapping[str, list[Any]], *args: Any,
        **kwargs: Any,
    ) -> Any:  # fmt: skip
        """ComfyUI's wrapper around making room for a run: of activations there is room for what this device holds."""
        rows = max(1, sum(len(entries) for entries in conds.values()))
        with model.model.shared_among(self.sharing):
            tell(memory_of_share(model, [rows * shape[0], *shape[1:]]), level=logging.INFO)
            return executor(model, shape, conds, *args, **kwargs)

    def __call__(
        self, executor: Any, guider: Any, sigmas: Tensor, extra_args: dict[str, Any], *args: Any, **kwargs: Any
    ) -> Tensor:
        """Prepares workers, and says at the end how the work was dealt."""
        options = extra_args["model_options"].setdefault("transformer_options", {})
        numbers = numbers_of(guider.model_patcher)
        self.workers.prepare(settings_of(guider.model_patcher), numbers)
        options[PARALLEL] = Helpers(self.workers, numbers)
        try:
            with guider.model_patcher.model.shared_among(self.sharing):
                return executor(guider, sigmas, extra_args, *args, **kwargs)
        finally:
            options.pop(PARALLEL, None)
            tell(self.workers.note)
            tell(self.workers.said, level=logging.INFO)

    def end_with_model(self, model: ModelPatcher, unpatched: bool) -> None:
        """ComfyUI's callback behind ``detach``; where nothing is unpatched, the network stays for another copy."""
        if unpatched:
            self.workers.close()


def sharing_of(model: ModelPatcher) -> Sharing | None:
    """Among whom the calls of a MODEL are shared; None where nobody shares them."""
    runs = model.get_wrappers(WrappersMP.SAMPLER_SAMPLE, KEY)
    return runs[0].sharing if runs else None


def memory_of_share(model: ModelPatcher, shape: list[int]) -> str:
    """What one device holds of a call with latents [rows, C, T, h, w] that is shared, for the person who waits."""
    network = model.model
    share, sharing = network.memory_required(shape), network.sharing
    plan = sharing.plan(shape[0], network.clip_of(shape, {}))
    rows = f"{shape[0]} row{'s' if shape[0] > 1 else ''}"
    return (
        f"Each of {sharing.ranks} devices holds all weights ({model.model_size() / GIGA:.2f} GB) and at most "
        f"{share / GIGA:.2f} GB of a step with {rows} at most, as {plan.rows} x {plan.sequence}."
    )


def in_parallel(
    model: ModelPatcher, text: str, vae: OpenSoraVAE | None = None, address: str = ""
) -> tuple[ModelPatcher, Any]:
    """A copy of ``model`` that samples on all devices that ``text`` names, by a worker on each but ComfyUI's own.

    And one of ``vae`` that decodes there. ``address``: of a Ray cluster that has the other devices. Where that is one
    device, both as they are. Raises ValueError for a MODEL or VAE that workers cannot be told of, for devices that are
    not there or cannot share a clip, and where no Ray is.
    """
    own = _own_device(model.load_device)
    address = address.strip()
    ray = connected(address) if address else None
    devices = shared_devices(text, own, _gpus()) if ray is None else cluster_devices(text, own, free_gpus(ray))
    if len(devices) > 1:
        settings_of(model)  # refuses what workers cannot be told
        devices = _sharing(model, text, devices)
    if len(devices) == 1:
        tell(f"Nothing is shared, since {_named(own)} is alone: the model is as it was.")
        return model, vae
    patched = model.clone()
    for place in (WrappersMP.SAMPLER_SAMPLE, WrappersMP.PREPARE_SAMPLING):
        patched.remove_wrappers_with_key(place, KEY)
    patched.remove_callbacks_with_key(CallbacksMP.ON_DETACH, KEY)
    run = ParallelRun(workers_on(devices) if ray is None else workers_on_ray(ray, address, devices))
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, run)
    patched.add_wrapper_with_key(WrappersMP.PREPARE_SAMPLING, KEY, run.making_room)
    patched.add_callback_with_key(CallbacksMP.ON_DETACH, KEY, run.end_with_model)
    who = f"{len(devices)} processes of the CPU" if own == CPU else ", ".join(map(_named, devices))
    if ray is not None:
        who = f"{_named(own)} and {len(devices) - 1} more device{'s' if len(devices) > 2 else ''} on Ray"
    tell(f"Every step of a run is shared by {who}; the sampler says how.", level=logging.INFO)
    return patched, None if vae is None else with_workers(vae, run.workers)


def check_devices(text: str, address: str) -> None:
    """Refuse a text that names no devices of this ComfyUI, or of any cluster. Raises ValueError."""
    own = _own_device(comfy.model_management.get_torch_device())
    if address.strip():
        cluster_devices(text, own, 1)
    else:
        shared_devices(text, own, _gpus())


def workers_on(devices: Sequence[str]) -> Workers:
    """A worker on each device but the first, which is ComfyUI's own; to be started when the first run begins."""
    environments = [{**_paths(), **_visible(device)} for device in devices]
    return Workers(
        lambda rank: started(_command(), environments[rank]),
        len(devices) - 1,
        meanwhile=comfy.model_management.throw_exception_if_processing_interrupted,
        direct=_direct(devices),
        weighed=CPU not in devices,
    )


def workers_on_ray(ray: Any, address: str, devices: Sequence[str]) -> Workers:
    """The same in a cluster, where this pack, ComfyUI, Python and the models lie under the paths they have here."""
    host = own_address(ray, address)
    there = host if host == LOOPBACK else ""
    return Workers(
        lambda rank: RayProcess(ray, _command(), _paths(), int(devices[rank] == GPU), there),
        len(devices) - 1,
        meanwhile=comfy.model_management.throw_exception_if_processing_interrupted,
        direct=_direct(devices),
        host=host,
        weighed=CPU not in devices,
    )


def _direct(devices: Sequence[str]) -> bool:
    return CPU not in devices and torch.distributed.is_available() and torch.distributed.is_nccl_available()


def _sharing(model: ModelPatcher, text: str, devices: tuple[str, ...]) -> tuple[str, ...]:
    """As many of ``devices`` as can share a clip: only those of "all" may be fewer, which is said."""
    most = next(count for count in range(len(devices), 0, -1) if _can_share(model.model.opensora, count))
    if most == len(devices):
        return devices
    rule = f"{len(devices)} devices cannot share this model, whose heads they do not divide"
    if text.strip().lower() != ALL:
        raise ValueError(
            f"The input devices names too many: {rule}; the nearest good value is {written(devices[:most])}."
        )
    tell(f"{rule}: {most} of them are used.")
    return devices[:most]


def _can_share(config: Any, ranks: int) -> bool:
    if not isinstance(config, MMDiTConfig):
        return True
    row = MMDiTClip(config, image=ranks, text=config.text_tokens)
    return any(divides(batch, row, ranks) for batch in ROWS)


def _own_device(device: torch.device) -> str:
    """ComfyUI's own device as it is written in a list; one that is no GPU of CUDA or ROCm shares with nobody."""
    return str(device.index or 0) if device.type == "cuda" else CPU


def _gpus() -> int:
    return torch.cuda.device_count() if not comfy.model_management.cpu_mode() else 0


def _named(device: str) -> str:
    return "the CPU" if device == CPU else f"GPU {device}"


def _command() -> list[str]:
    given = {name: value for name, value in vars(comfy.cli_args.args).items() if _is_plain(value)}
    given["fast"] = [feature.value for feature in comfy.cli_args.args.fast]
    return [sys.executable, "-c", START, str(ROOT), json.dumps(given)]


def _paths() -> dict[str, str]:
    """Where ComfyUI is found."""
    paths = [str(Path(comfy.__path__[0]).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {"PYTHONPATH": os.pathsep.join(paths)}


def _visible(device: str) -> dict[str, str]:
    """The only GPU to be seen, which this process may know by another number."""
    if device == CPU:
        return {}
    seen = next((os.environ[name].split(",") for name in VISIBLE if os.environ.get(name)), [])
    return dict.fromkeys(VISIBLE, seen[int(device)].strip() if int(device) < len(seen) else device)


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (bool, int, float, str))
