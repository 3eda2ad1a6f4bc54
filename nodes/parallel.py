"""Several devices for one clip."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..opensora_models.native.model.parallel import check_devices, in_parallel
from ..opensora_models.native.vae.decoding import own_vae
from ..opensora_models.parallel.devices import ALL
from .door import OpenSoraNode
from .step_cache import CATEGORY


class Parallel(OpenSoraNode):
    """``OSoraParallel``: computes every step of a MODEL on several devices."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraParallel",
            display_name="Open-Sora Parallel",
            category=CATEGORY,
            description="Computes every step of one clip on several devices, with the result of one. Works in every "
            "sampler.",
            search_aliases=["multi gpu", "multigpu", "sequence parallel", "ulysses", "context parallel", "faster"],
            inputs=[
                io.Model.Input("model", tooltip="A model of Open-Sora Load Model, with its LoRAs."),
                io.String.Input(
                    "devices",
                    default=ALL,
                    tooltip='Who shares a clip: "all" GPUs of this machine, or some of them as 0,1, among them the one '
                    'ComfyUI uses. For tries without GPUs: "cpu x 2".',
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="A VAE of Open-Sora Load VAE; the decode nodes of this pack then share their work, too.",
                ),
                io.String.Input(
                    "address",
                    default="",
                    optional=True,
                    advanced=True,
                    tooltip="Of a Ray cluster that has the other devices, as HEAD:6379. Empty: this machine alone.",
                ),
            ],
            outputs=[
                io.Model.Output(display_name="model", tooltip="The model with its workers; connect it to a sampler."),
                io.Vae.Output(display_name="vae", tooltip="The VAE with the same workers, if one was given."),
            ],
        )

    @classmethod
    def validate_inputs(cls, devices: str | None = None, address: str | None = None) -> bool | str:
        """Refuses devices that are not there before anything runs."""
        if devices is not None:
            check_devices(devices, address or "")
        return True

    @classmethod
    def execute(cls, model: Any, devices: str, vae: object | None = None, address: str = "") -> io.NodeOutput:
        return io.NodeOutput(*in_parallel(model, devices, None if vae is None else own_vae(vae), address))
