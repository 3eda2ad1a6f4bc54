"""Files of fp8 weights with a scale for each layer, in both forms that ComfyUI reads."""

from __future__ import annotations

import json

import torch


def scaled_fp8(weights: dict[str, torch.Tensor], part: str = ".attn.") -> dict[str, torch.Tensor]:
    """The older form of a scaled fp8 file: fp8 weights of linear layers, one scale each, and a flag."""
    scaled = {}
    for name, tensor in weights.items():
        if part in name and name.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.abs().max() / 448  # the largest float8_e4m3fn
            scaled[name] = (tensor / scale).to(torch.float8_e4m3fn)
            scaled[name.removesuffix("weight") + "scale_weight"] = scale.reshape(1)
        else:
            scaled[name] = tensor
    return scaled | {"scaled_fp8": torch.zeros(2, dtype=torch.float8_e4m3fn)}


def with_metadata(old: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """The newer form of a scaled fp8 file, and its metadata."""
    scaled = {
        name.replace(".scale_weight", ".weight_scale"): tensor.reshape(()) if name.endswith("scale_weight") else tensor
        for name, tensor in old.items()
        if name != "scaled_fp8"
    }
    layers = {name.removesuffix(".weight_scale"): {"format": "float8_e4m3fn"} for name in scaled if "_scale" in name}
    layers = {name: form for name, form in layers.items() if f"{name}.weight" in scaled}
    return scaled, {"_quantization_metadata": json.dumps({"format_version": "1.0", "layers": layers})}
