"""A good value for every input of every node of the pack, for tests that then spoil one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from support.native import conditioning, randn

if TYPE_CHECKING:
    from support.comfyui import Executor

FRAMES = 17
SIDE = 64


class GoodInputs:
    """Values by ComfyUI's type, made once of the tiny random models; widgets get their defaults."""

    def __init__(self, executor: Executor) -> None:
        from opensora.opensora_models.native.sampling.reference_inputs import ReferenceChain
        from opensora.opensora_models.sampling.references import Reference

        model, clip, vae = executor.run(
            {
                "model": _node("OSoraModelLoader", model_name="random-v1.2.safetensors", weight_dtype="default",
                               rounding="accurate", window=0, spatial_rotary="automatic"),
                "clip": _node("OSoraTextEncoderLoader", text_encoder_name="random-t5.safetensors", precision="default",
                              device="default"),
                "vae": _node("OSoraVAELoader", vae_name="random-vae-v1.2.safetensors", spatial_vae="none",
                             dtype="default", temporal_overlap=True),
            },
            ("model", 0), ("clip", 0), ("vae", 0),
        )  # fmt: skip
        self._by_type: dict[str, Any] = {
            "MODEL": model,
            "CLIP": clip,
            "VAE": vae,
            "LATENT": {"samples": randn(1, 4, 5, SIDE // 8, SIDE // 8)},
            "CONDITIONING": conditioning(),
            "IMAGE": torch.rand(FRAMES, SIDE, SIDE, 3, generator=torch.Generator().manual_seed(1)),
            "SIGMAS": torch.tensor([1.0, 0.5, 0.0]),
            "OSORA_REFERENCES": ReferenceChain((Reference(randn(4, 1, SIDE // 8, SIDE // 8, seed=3)),)),
        }

    def of(self, entry: Any) -> Any:
        """A good value for an input of a schema."""
        kind = entry.get_io_type()
        if kind in self._by_type:
            return self._by_type[kind]
        if getattr(entry, "default", None) is not None:
            return entry.default
        if getattr(entry, "options", None):
            return entry.options[0]
        return "a wave" if kind == "STRING" else None

    def for_node(self, node: Any) -> dict[str, Any]:
        """Good values for all inputs of a node."""
        return {entry.id: self.of(entry) for entry in node.define_schema().inputs}


def _node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}
