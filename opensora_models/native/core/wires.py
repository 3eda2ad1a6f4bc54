"""What may arrive on a wire. Values come from other nodes, and programs that queue prompts can send anything.

Each check gives None for a good value, else what is wrong with it, as the end of a sentence: "the input latent ...".
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ...messages.quoting import described
from ..sampling.reference_inputs import ReferenceChain
from .curves import TYPE as CURVE
from .curves import curve_of

Check = Callable[[Any], str | None]


def _latent(value: Any) -> str | None:
    samples = value.get("samples") if isinstance(value, dict) else None
    if not isinstance(samples, Tensor):
        got = described(value) if not isinstance(value, dict) else f"samples: {described(samples)}"
        return f"got {got}, but needs a LATENT with a tensor 'samples'; connect Empty Open-Sora Latent"
    if samples.ndim not in (4, 5) or 0 in samples.shape:
        return (
            f"holds latents of shape {list(samples.shape)}, but needs [batch, channels, frames, height, width] with "
            "every size at least 1; connect Empty Open-Sora Latent"
        )
    mask = value.get("noise_mask")
    if mask is not None and not (isinstance(mask, Tensor) and mask.ndim in (2, 3, 4, 5) and 0 not in mask.shape):
        return f"holds the noise mask {described(mask)}, but a mask is [batch, height, width] or one value per latent"
    return None


def _conditioning(value: Any) -> str | None:
    pairs = value if isinstance(value, (list, tuple)) else []
    fits = all(
        isinstance(pair, (list, tuple)) and len(pair) == 2 and isinstance(pair[0], Tensor) and isinstance(pair[1], dict)
        for pair in pairs
    )
    if not pairs or not fits:
        got = "an empty list" if isinstance(value, (list, tuple)) and not value else described(value)
        return f"got {got}, but needs a CONDITIONING; connect Open-Sora Text Encode"
    return None


def _image(value: Any) -> str | None:
    if isinstance(value, Tensor) and value.ndim == 4 and value.shape[-1] in (1, 3, 4) and 0 not in value.shape:
        return None
    return f"got {described(value)}, but needs pictures [frames, height, width, 3]; connect an IMAGE"


def _sigmas(value: Any) -> str | None:
    if not isinstance(value, Tensor) or value.ndim != 1 or len(value) < 2:
        return f"got {described(value)}, but needs SIGMAS, a list of at least 2 noise levels; connect Open-Sora Sigmas"
    if not all(math.isfinite(level) for level in value.tolist()):
        return "holds noise levels that are not numbers; connect Open-Sora Sigmas"
    return None


def _curve(value: Any) -> str | None:
    try:
        curve_of(value)
    except ValueError as error:
        sentence = str(error).removesuffix(".")
        return f"is no curve: {sentence[0].lower()}{sentence[1:]}"
    return None


def _of(kinds: type | tuple[type, ...], name: str, source: str) -> Check:
    def check(value: Any) -> str | None:
        return None if isinstance(value, kinds) else f"got {described(value)}, but needs a {name}; connect {source}"

    return check


def _with(methods: tuple[str, ...], name: str, source: str) -> Check:
    def check(value: Any) -> str | None:
        fits = all(callable(getattr(value, method, None)) for method in methods)
        return None if fits else f"got {described(value)}, but needs a {name}; connect {source}"

    return check


CHECKS: dict[str, Check] = {
    "LATENT": _latent,
    "CONDITIONING": _conditioning,
    "IMAGE": _image,
    "SIGMAS": _sigmas,
    CURVE: _curve,
    "MODEL": _of(ModelPatcher, "MODEL", "Open-Sora Load Model"),
    "CLIP": _with(("tokenize", "encode_from_tokens_scheduled"), "CLIP", "Open-Sora Load Text Encoder"),
    "VAE": _with(("encode", "decode"), "VAE", "Open-Sora Load VAE"),
    "OSORA_REFERENCES": _of(ReferenceChain, "chain of references", "Open-Sora Reference"),
}
"""The checks by ComfyUI's name of the type."""


def wrong_on_wire(io_type: str, value: Any) -> str | None:
    """What is wrong with ``value`` for an input of ``io_type``, or None; unknown types take anything."""
    check = CHECKS.get(io_type)
    return None if check is None else check(value)
