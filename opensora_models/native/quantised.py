"""ComfyUI's quantised files: how they are told apart, and their weights in ComfyUI's current form."""

from __future__ import annotations

from typing import Any

import comfy.utils
from torch import Tensor

from ..checkpoint import Checkpoint
from ..reading import reading

# Per-layer scales, and the flag or metadata that announces them.
ENDINGS = (".weight_scale", ".input_scale", ".scale_weight", ".scale_input", ".comfy_quant", "scaled_fp8")
METADATA = "_quantization_metadata"


def is_quantised(checkpoint: Checkpoint) -> bool:
    """Whether the file's layers are packed in ComfyUI's way; shapes and types are then its own affair."""
    return METADATA in checkpoint.metadata or any(name.endswith(ENDINGS) for name in checkpoint.tensors)


def quantised_weights(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], Any]:
    """The weights in ComfyUI's current form, and what it must know to build their layers.

    Raises ValueError where the file's description of its layers is none.
    """
    with reading(checkpoint.name):
        weights, _ = comfy.utils.convert_old_quants(checkpoint.load(), "", metadata=dict(checkpoint.metadata))
        return weights, comfy.utils.detect_layer_quantization(weights, "")
