"""ComfyUI's quantised files: how they are told apart, and their weights in ComfyUI's current form."""

from __future__ import annotations

from typing import Any

import comfy.utils
from torch import Tensor

from ...checkpoint.opening import Checkpoint
from ...checkpoint.reading import reading
from ...messages.quoting import quoted

# Per-layer scales, and the flag or metadata that announces them.
SCALES = (".weight_scale", ".input_scale", ".scale_weight", ".scale_input")
ENDINGS = (*SCALES, ".comfy_quant", "scaled_fp8")
METADATA = "_quantization_metadata"


def is_quantised(checkpoint: Checkpoint) -> bool:
    """Whether the file's layers are packed in ComfyUI's way; shapes and types are then its own affair."""
    return METADATA in checkpoint.metadata or any(name.endswith(ENDINGS) for name in checkpoint.tensors)


def expect_scales(checkpoint: Checkpoint) -> None:
    """Holds each list of scales against its layer: one for all, or one for every row. Raises ValueError.

    Scales of blocks have two dimensions and an order of their own, which only ComfyUI's layers know.
    """
    for name, info in checkpoint.tensors.items():
        layer, _, ending = name.rpartition(".")
        weight = checkpoint.tensors.get(f"{layer}.weight")
        if f".{ending}" not in SCALES or weight is None or len(info.shape) > 1:
            continue
        rows = weight.shape[0] if weight.shape else 1
        if info.elements not in (1, rows):
            raise ValueError(
                f"{checkpoint.quoted} has {info.elements} scales in {quoted(name)} for a layer of {rows} rows; "
                "expected one for all or one for each; download or export it again."
            )


def quantised_weights(checkpoint: Checkpoint) -> tuple[dict[str, Tensor], Any]:
    """The weights in ComfyUI's current form, and what it must know to build their layers.

    Raises ValueError where the file's description of its layers is none.
    """
    expect_scales(checkpoint)
    with reading(checkpoint.name):
        weights, _ = comfy.utils.convert_old_quants(checkpoint.load(), "", metadata=dict(checkpoint.metadata))
        return weights, comfy.utils.detect_layer_quantization(weights, "")
