"""Makes tiny Open-Sora files with seeded random weights, in the key layout of the released checkpoints.

The files hold noise, not a trained model: they exist so that every loader, node and test can run in a second on any
machine. Run ``python demo/random_weights.py OUT`` or call :func:`main`; the result is a ComfyUI models folder::

    OUT/diffusion_models/opensora-tiny-v1.2.safetensors
    OUT/diffusion_models/opensora-tiny-v1.3.safetensors
    OUT/text_encoders/opensora-tiny-t5.safetensors

Nothing here imports ComfyUI or the rest of the pack, so a broken pack cannot break its own test material.
"""

from __future__ import annotations

import argparse
import json
import math
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

SEED = 1202
CAPTION_CHANNELS = 64  # width of the tiny text encoder
TEXT_LENGTH = 300  # tokens of the null text, as in the released models

TINY_NETWORK = {"hidden_size": 96, "num_heads": 4, "depth": 2, "mlp_ratio": 4}

Shape = tuple[int, ...]
Tensors = dict[str, torch.Tensor]


def linear(name: str, columns: int, rows: int) -> dict[str, Shape]:
    """Shapes of a linear layer that maps ``columns`` values to ``rows`` values."""
    return {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}


def patch_embedder(name: str, channels: int, hidden: int) -> dict[str, Shape]:
    """Shapes of the convolution that turns a 1x2x2 patch of latents into one token."""
    return {f"{name}.proj.weight": (hidden, channels, 1, 2, 2), f"{name}.proj.bias": (hidden,)}


def transformer_block(name: str, hidden: int, head: int, mlp_ratio: int) -> dict[str, Shape]:
    """Shapes of one spatial or temporal block."""
    return {
        f"{name}.scale_shift_table": (6, hidden),
        **linear(f"{name}.attn.qkv", hidden, 3 * hidden),
        f"{name}.attn.q_norm.weight": (head,),
        f"{name}.attn.k_norm.weight": (head,),
        **linear(f"{name}.attn.proj", hidden, hidden),
        **linear(f"{name}.cross_attn.q_linear", hidden, hidden),
        **linear(f"{name}.cross_attn.kv_linear", hidden, 2 * hidden),
        **linear(f"{name}.cross_attn.proj", hidden, hidden),
        **linear(f"{name}.mlp.fc1", hidden, mlp_ratio * hidden),
        **linear(f"{name}.mlp.fc2", mlp_ratio * hidden, hidden),
    }


def stdit3_shapes(
    version: str,
    *,
    hidden_size: int,
    num_heads: int,
    depth: int,
    mlp_ratio: int = 4,
    caption_channels: int = CAPTION_CHANNELS,
    text_length: int = TEXT_LENGTH,
) -> dict[str, Shape]:
    """Names and shapes of a saved STDiT3 of Open-Sora ``version`` ("1.2" or "1.3"), any size.

    The released models are ``hidden_size=1152, num_heads=16, depth=28, caption_channels=4096``.
    """
    channels = {"1.2": 4, "1.3": 16}[version]
    head = hidden_size // num_heads
    rotary = head // 2 if version == "1.2" else (head // 3) // 2
    shapes: dict[str, Shape] = {"rope.freqs": (rotary,), **patch_embedder("x_embedder", channels, hidden_size)}
    if version == "1.3":
        shapes |= patch_embedder("x_embedder_cond", channels, hidden_size)
        shapes |= patch_embedder("x_embedder_cond_mask", channels, hidden_size)
    for embedder in ("t_embedder", "fps_embedder"):
        shapes |= linear(f"{embedder}.mlp.0", 256, hidden_size) | linear(f"{embedder}.mlp.2", hidden_size, hidden_size)
    shapes |= linear("t_block.1", hidden_size, 6 * hidden_size)
    shapes["y_embedder.y_embedding"] = (text_length, caption_channels)
    shapes |= linear("y_embedder.y_proj.fc1", caption_channels, hidden_size)
    shapes |= linear("y_embedder.y_proj.fc2", hidden_size, hidden_size)
    for kind in ("spatial_blocks", "temporal_blocks"):
        for number in range(depth):
            shapes |= transformer_block(f"{kind}.{number}", hidden_size, head, mlp_ratio)
    shapes["final_layer.scale_shift_table"] = (2, hidden_size)
    shapes |= linear("final_layer.linear", hidden_size, 4 * 2 * channels)
    return shapes


def seeded(name: str, shape: Shape) -> torch.Tensor:
    """Random float32 tensor depending on its name only; matrices keep the size of their input, norms are near 1."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{SEED}.{name}".encode()))
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return values / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * values if name.endswith("norm.weight") else 0.1 * values


def fill(shapes: Mapping[str, Shape]) -> Tensors:
    """Random weights for every entry of ``shapes``."""
    return {name: seeded(name, shape) for name, shape in shapes.items()}


def rotary_frequencies(length: int) -> torch.Tensor:
    """The natural rotary frequencies ``10000^(-2i/r)`` of ``length`` pairs."""
    return 10000.0 ** (-torch.arange(length, dtype=torch.float32) / length)


def stdit3(version: str) -> tuple[Tensors, dict[str, str]]:
    """The tiny diffusion model of ``version`` and its file metadata."""
    weights = fill(stdit3_shapes(version, **TINY_NETWORK))
    weights["rope.freqs"] = rotary_frequencies(len(weights["rope.freqs"]))
    metadata = {"opensora.version": version, "opensora.note": "tiny random weights for tests and demonstrations"}
    if version == "1.3":
        metadata["opensora.config"] = json.dumps({"kernel_size": [8, 8, -1], "use_spatial_rope": True})
    return weights, metadata


def t5_shapes(d_model: int, d_ff: int, d_kv: int, heads: int, layers: int, vocabulary: int) -> dict[str, Shape]:
    """Names and shapes of a saved T5 v1.1 encoder; the XXL one is 4096, 10240, 64, 64, 24, 32128."""
    inner = heads * d_kv
    shapes: dict[str, Shape] = {"shared.weight": (vocabulary, d_model), "encoder.final_layer_norm.weight": (d_model,)}
    for layer in range(layers):
        attention, feed = f"encoder.block.{layer}.layer.0", f"encoder.block.{layer}.layer.1"
        shapes |= {f"{attention}.SelfAttention.{part}.weight": (inner, d_model) for part in "qkv"}
        shapes[f"{attention}.SelfAttention.o.weight"] = (d_model, inner)
        shapes |= {f"{feed}.DenseReluDense.{part}.weight": (d_ff, d_model) for part in ("wi_0", "wi_1")}
        shapes[f"{feed}.DenseReluDense.wo.weight"] = (d_model, d_ff)
        shapes |= {f"{block}.layer_norm.weight": (d_model,) for block in (attention, feed)}
    shapes["encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = (32, heads)
    return shapes


def text_encoder() -> tuple[Tensors, dict[str, str]]:
    """The tiny T5 in half precision; its vocabulary is the real one, which makes up nearly all of its size."""
    weights = fill(t5_shapes(CAPTION_CHANNELS, 128, 16, 4, 2, 32128))
    metadata = {"opensora.note": "tiny random weights for tests and demonstrations"}
    return {name: weight.half() for name, weight in weights.items()}, metadata


FILES: dict[str, Callable[[], tuple[Tensors, dict[str, str]]]] = {
    "diffusion_models/opensora-tiny-v1.2.safetensors": lambda: stdit3("1.2"),
    "diffusion_models/opensora-tiny-v1.3.safetensors": lambda: stdit3("1.3"),
    "text_encoders/opensora-tiny-t5.safetensors": text_encoder,
}


def main(out: str | Path) -> list[Path]:
    """Writes every tiny file below ``out`` and returns the paths; existing files are replaced."""
    written = []
    for name, make in FILES.items():
        path = Path(out) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tensors, metadata = make()
        save_file(tensors, path, metadata=metadata)
        written.append(path)
    return written


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", help="models folder to write into")
    main(parser.parse_args().out)
