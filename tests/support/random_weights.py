"""Makes tiny Open-Sora files with seeded random weights, in the key layout of the released checkpoints.

The files hold noise, not a trained model: every loader and node runs on them in a second, and they tell apart what a
trained model would smooth over. Nothing here imports ComfyUI or the rest of the pack, so a broken pack cannot break its
own test material.
"""

from __future__ import annotations

import json
import math
import re
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file

SEED = 1202
CAPTION_CHANNELS = 64  # width of the tiny text encoder
TEXT_LENGTH = 300  # tokens of the null text, as in the released models

TINY_NETWORK = {"hidden_size": 96, "num_heads": 4, "depth": 2, "mlp_ratio": 4}

TINY_MMDIT = {
    "hidden_size": 64,
    "num_heads": 2,
    "double": 2,
    "single": 2,
    "caption_channels": CAPTION_CHANNELS,
    "pooled": 16,
}
MMDIT_LATENTS = {"2.0": (16, 2), "2.0 high compression": (128, 1)}
"""Channels of a latent, and the side of a patch."""

NORM_WEIGHT = re.compile(r"norm(\d|_out)?\.(weight|scale)$")

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


def mmdit_shapes(
    release: str,
    *,
    hidden_size: int,
    num_heads: int,
    double: int,
    single: int,
    mlp_ratio: int = 4,
    caption_channels: int = 4096,
    pooled: int = 768,
) -> dict[str, Shape]:
    """Names and shapes of a saved MMDiT of Open-Sora 2.0 or its high-compression sibling, split projections, any size.

    The released models are ``hidden_size=3072, num_heads=24, double=19, single=38``.
    """
    channels, patch = MMDIT_LATENTS[release]
    features, head, hidden = channels * patch**2, hidden_size // num_heads, hidden_size
    shapes = linear("img_in", features, hidden) | linear("cond_in", features + patch**2, hidden)
    shapes |= linear("txt_in", caption_channels, hidden)
    for name, width in (("time_in", 256), ("vector_in", pooled)):
        shapes |= linear(f"{name}.in_layer", width, hidden) | linear(f"{name}.out_layer", hidden, hidden)
    norms = {f"norm.{part}_norm.scale": (head,) for part in ("query", "key")}
    for number in range(double):
        for stream in ("img", "txt"):
            name = f"double_blocks.{number}.{stream}"
            shapes |= linear(f"{name}_mod.lin", hidden, 6 * hidden)
            for part in ("q_proj", "k_proj", "v_proj", "proj"):
                shapes |= linear(f"{name}_attn.{part}", hidden, hidden)
            shapes |= {f"{name}_attn.{norm}": shape for norm, shape in norms.items()}
            shapes |= linear(f"{name}_mlp.0", hidden, mlp_ratio * hidden)
            shapes |= linear(f"{name}_mlp.2", mlp_ratio * hidden, hidden)
    for number in range(single):
        name = f"single_blocks.{number}"
        shapes |= linear(f"{name}.q_proj", hidden, hidden) | linear(f"{name}.k_proj", hidden, hidden)
        shapes |= linear(f"{name}.v_mlp", hidden, (1 + mlp_ratio) * hidden)
        shapes |= linear(f"{name}.linear2", (1 + mlp_ratio) * hidden, hidden)
        shapes |= {f"{name}.{norm}": shape for norm, shape in norms.items()}
        shapes |= linear(f"{name}.modulation.lin", hidden, 3 * hidden)
    shapes |= linear("final_layer.linear", hidden, features)
    return shapes | linear("final_layer.adaLN_modulation.1", hidden, 2 * hidden)


def seeded(name: str, shape: Shape) -> torch.Tensor:
    """Random float32 tensor depending on its name only; matrices keep the size of their input, norms are near 1."""
    generator = torch.Generator().manual_seed(zlib.crc32(f"{SEED}.{name}".encode()))
    values = torch.randn(shape, generator=generator)
    if len(shape) > 1:
        return values / math.sqrt(math.prod(shape[1:]))
    return 1 + 0.1 * values if NORM_WEIGHT.search(name) else 0.1 * values


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
    metadata = {"opensora.version": version, "opensora.note": "tiny random weights for tests"}
    if version == "1.3":
        metadata["opensora.config"] = json.dumps({"kernel_size": [8, 8, -1], "use_spatial_rope": True})
    return weights, metadata


def mmdit(release: str) -> tuple[Tensors, dict[str, str]]:
    """The tiny diffusion model of ``release`` and its file metadata."""
    metadata = {"opensora.version": release, "opensora.note": "tiny random weights for tests"}
    return fill(mmdit_shapes(release, **TINY_MMDIT)), metadata


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
    metadata = {"opensora.note": "tiny random weights for tests"}
    return {name: weight.half() for name, weight in weights.items()}, metadata


CLIP_WIDTH = 16
"""Width of the tiny CLIP-L, and so of the pooled state a tiny 2.0 reads."""


def clip_shapes(width: int, inner: int, layers: int) -> dict[str, Shape]:
    """Names and shapes of a saved CLIP-L text encoder; the released one is 768, 3072, 12."""
    shapes: dict[str, Shape] = {"text_projection.weight": (width, width)}
    shapes["text_model.embeddings.token_embedding.weight"] = (49408, width)
    shapes["text_model.embeddings.position_embedding.weight"] = (77, width)
    for layer in range(layers):
        block = f"text_model.encoder.layers.{layer}"
        for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
            shapes |= linear(f"{block}.self_attn.{part}", width, width)
        shapes |= linear(f"{block}.mlp.fc1", width, inner) | linear(f"{block}.mlp.fc2", inner, width)
        shapes |= norm(f"{block}.layer_norm1", width) | norm(f"{block}.layer_norm2", width)
    return shapes | norm("text_model.final_layer_norm", width)


def clip_l() -> tuple[Tensors, dict[str, str]]:
    """The tiny CLIP-L in half precision, with the real vocabulary."""
    return _halved(fill(clip_shapes(CLIP_WIDTH, 32, 2))), {"opensora.note": "tiny random weights for tests"}


def convolution(name: str, channels: int, out: int, *kernel: int, bias: bool = True) -> dict[str, Shape]:
    """Shapes of a convolution; ``kernel`` gives its extent in each axis."""
    return {f"{name}.weight": (out, channels, *kernel)} | ({f"{name}.bias": (out,)} if bias else {})


def norm(name: str, channels: int) -> dict[str, Shape]:
    """Shapes of a group norm."""
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def residual(
    name: str, channels: int, out: int, shortcut: str, inner: str, *kernel: int, bias: bool = True
) -> dict[str, Shape]:
    """A residual block; ``inner`` is what the key of its convolutions ends in, ``shortcut`` the widening one's name."""
    shapes = norm(f"{name}.norm1", channels) | norm(f"{name}.norm2", out)
    shapes |= convolution(f"{name}.conv1{inner}", channels, out, *kernel, bias=bias)
    shapes |= convolution(f"{name}.conv2{inner}", out, out, *kernel, bias=bias)
    if channels != out:
        shapes |= convolution(f"{name}.{shortcut}{inner}", channels, out, *(1 for _ in kernel), bias=bias)
    return shapes


def image_half(half: str, widths: list[int], blocks: int, step: str) -> dict[str, Shape]:
    """Encoder or decoder of the image autoencoder; ``widths`` in the order of its levels."""
    shapes: dict[str, Shape] = {}
    levels, steps = (f"{half}.down_blocks", "downsamplers") if step == "down" else (f"{half}.up_blocks", "upsamplers")
    channels = widths[0]
    for level, width in enumerate(widths):
        for number in range(blocks):
            name = f"{levels}.{level}.resnets.{number}"
            shapes |= residual(name, channels, width, "conv_shortcut", "", 3, 3)
            channels = width
        if level < len(widths) - 1:
            shapes |= convolution(f"{levels}.{level}.{steps}.0.conv", width, width, 3, 3)
    middle = widths[-1] if step == "down" else widths[0]
    shapes |= norm(f"{half}.mid_block.attentions.0.group_norm", middle)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= linear(f"{half}.mid_block.attentions.0.{part}", middle, middle)
    for number in range(2):
        shapes |= residual(f"{half}.mid_block.resnets.{number}", middle, middle, "", "", 3, 3)
    return shapes | norm(f"{half}.conv_norm_out", widths[-1])


def image_shapes(widths: list[int], blocks: int) -> dict[str, Shape]:
    """Names and shapes of the image autoencoder; SDXL's has widths 128, 256, 512, 512 and 2 blocks."""
    shapes = image_half("encoder", widths, blocks, "down") | image_half("decoder", widths[::-1], blocks + 1, "up")
    shapes |= convolution("encoder.conv_in", 3, widths[0], 3, 3) | convolution("encoder.conv_out", widths[-1], 8, 3, 3)
    shapes |= convolution("decoder.conv_in", 4, widths[-1], 3, 3) | convolution("decoder.conv_out", widths[0], 3, 3, 3)
    return shapes | convolution("quant_conv", 8, 8, 1, 1) | convolution("post_quant_conv", 4, 4, 1, 1)


def temporal_shapes(filters: int, blocks: int) -> dict[str, Shape]:
    """Names and shapes of the temporal autoencoder; the released one has 128 filters and 4 blocks per level."""
    widths = [filters, 2 * filters, 2 * filters, 4 * filters]
    shapes: dict[str, Shape] = {}

    def level(name: str, channels: int, width: int) -> None:
        for number in range(blocks):
            start = channels if number == 0 else width
            shapes.update(residual(f"{name}.{number}", start, width, "conv3", ".conv", 3, 3, 3, bias=False))

    for index, width in enumerate(widths):
        level(f"encoder.block_res_blocks.{index}", widths[max(0, index - 1)], width)
        level(f"decoder.block_res_blocks.{index}", widths[min(3, index + 1)], width)
        if index in (1, 2):
            shapes |= convolution(f"encoder.conv_blocks.{index}.conv", width, width, 3, 3, 3)
            shapes |= convolution(
                f"decoder.conv_blocks.{index}.conv", widths[index + 1], 2 * widths[index + 1], 3, 3, 3
            )
    for half in ("encoder", "decoder"):
        level(f"{half}.res_blocks", widths[-1], widths[-1])
    shapes |= convolution("encoder.conv_in.conv", 4, filters, 3, 3, 3, bias=False) | norm("encoder.norm1", widths[-1])
    shapes |= convolution("encoder.conv2.conv", widths[-1], 8, 1, 1, 1) | convolution("quant_conv.conv", 8, 8, 1, 1, 1)
    shapes |= convolution("decoder.conv1.conv", 4, widths[-1], 3, 3, 3) | norm("decoder.norm1", filters)
    shapes |= convolution("decoder.conv_out.conv", filters, 4, 3, 3, 3)
    return shapes | convolution("post_quant_conv.conv", 4, 4, 1, 1, 1)


def causal_half(half: str, widths: list[int], blocks: int, down: bool) -> dict[str, Shape]:
    """Encoder or decoder of the causal 3-D autoencoder; ``widths`` counted from the pixels."""
    shapes: dict[str, Shape] = {}
    order = range(4) if down else range(3, -1, -1)
    channels = widths[0] if down else widths[-1]
    for level in order:
        name = f"{half}.{'down' if down else 'up'}.{level}"
        for number in range(blocks):
            shapes |= residual(f"{name}.block.{number}", channels, widths[level], "nin_shortcut", ".conv", 3, 3, 3)
            channels = widths[level]
        if down and level < 3:
            inner, kernel = ("downsample.conv", (3, 3)) if level == 0 else ("downsample.conv.conv", (3, 3, 3))
            shapes |= convolution(f"{name}.{inner}", channels, channels, *kernel)
        elif not down and level == 1:
            shapes |= convolution(f"{name}.upsample.conv", channels, channels, 3, 3)
        elif not down and level > 1:
            shapes |= residual(f"{name}.upsample.conv3d", channels, channels, "", ".conv", 3, 3, 3)
    for number in (1, 2):
        shapes |= residual(f"{half}.mid.block_{number}", widths[-1], widths[-1], "", ".conv", 3, 3, 3)
    shapes |= norm(f"{half}.mid.attn_1.norm", widths[-1])
    for part in ("q", "k", "v", "proj_out"):
        shapes |= convolution(f"{half}.mid.attn_1.{part}.conv", widths[-1], widths[-1], 1, 1, 1)
    return shapes | norm(f"{half}.norm_out", channels)


def causal_shapes(widths: list[int], blocks: int, latents: int = 16) -> dict[str, Shape]:
    """Names and shapes of the v1.3 autoencoder; the released one has widths 128, 256, 512, 512 and 2 blocks."""
    shapes = causal_half("encoder", widths, blocks, True) | causal_half("decoder", widths, blocks + 1, False)
    shapes |= convolution("encoder.conv_in.conv", 3, widths[0], 3, 3, 3)
    shapes |= convolution("encoder.conv_out.conv", widths[-1], 2 * latents, 3, 3, 3)
    shapes |= convolution("decoder.conv_in.conv", latents, widths[-1], 3, 3, 3)
    return shapes | convolution("decoder.conv_out", widths[0], 3, 3, 3, 3)


def vae(version: str) -> tuple[Tensors, dict[str, str]]:
    """The tiny video autoencoder of ``version`` in half precision, and its file metadata."""
    metadata = {"opensora.version": version, "opensora.note": "tiny random weights for tests"}
    if version == "1.3":
        return _halved(fill(causal_shapes([32, 32, 64, 64], 1))), metadata
    shapes = {f"spatial_vae.module.{name}": shape for name, shape in image_shapes([32, 32, 64, 64], 1).items()}
    shapes |= {f"temporal_vae.{name}": shape for name, shape in temporal_shapes(32, 1).items()}
    weights = _halved(fill(shapes))
    weights["shift"] = torch.tensor([-0.10, 0.34, 0.27, 0.98]).reshape(1, 4, 1, 1, 1)
    weights["scale"] = torch.tensor([3.85, 2.32, 2.33, 3.06]).reshape(1, 4, 1, 1, 1)
    return weights, metadata


def vae_v2(kind: str) -> tuple[Tensors, dict[str, str]]:
    """A tiny autoencoder of 2.0, "hunyuan" or "dc_ae", and its file metadata."""
    from support import random_vaes  # which is built of what stands here

    return getattr(random_vaes, kind)()


def _halved(weights: Tensors) -> Tensors:
    return {name: weight.half() for name, weight in weights.items()}


FILES: dict[str, Callable[[], tuple[Tensors, dict[str, str]]]] = {
    "diffusion_models/random-v1.2.safetensors": lambda: stdit3("1.2"),
    "diffusion_models/random-v1.3.safetensors": lambda: stdit3("1.3"),
    "diffusion_models/random-v2.0.safetensors": lambda: mmdit("2.0"),
    "diffusion_models/random-v2.0-hc.safetensors": lambda: mmdit("2.0 high compression"),
    "vae/random-vae-v1.2.safetensors": lambda: vae("1.2"),
    "vae/random-vae-v1.3.safetensors": lambda: vae("1.3"),
    "vae/random-vae-v2.0.safetensors": lambda: vae_v2("hunyuan"),
    "vae/random-vae-v2.0-hc.safetensors": lambda: vae_v2("dc_ae"),
    "text_encoders/random-t5.safetensors": text_encoder,
    "text_encoders/random-clip-l.safetensors": clip_l,
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
