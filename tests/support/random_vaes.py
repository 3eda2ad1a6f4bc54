"""Names and shapes of the video autoencoders of Open-Sora 2.0, as the original's files have them, and tiny files."""

from __future__ import annotations

import torch

from support.random_weights import Shape, Tensors, convolution, fill, linear, norm, residual

HUNYUAN_WIDTHS = [16, 16, 32, 32]
DC_AE_WIDTHS = [16, 16, 32, 32, 64, 128]
METADATA = {"opensora.note": "tiny random weights for tests"}


def hunyuan_half(half: str, widths: list[int], blocks: int, steps: str, inside: int, out: int) -> dict[str, Shape]:
    """Encoder (``steps`` "down") or decoder ("up"); ``widths`` in the order of its levels."""
    channels = widths[0]
    shapes = convolution(f"{half}.conv_in.conv", inside, channels, 3, 3, 3)
    for level, width in enumerate(widths):
        name = f"{half}.{steps}_blocks.{level}"
        for number in range(blocks):
            shapes |= residual(f"{name}.resnets.{number}", channels, width, "conv_shortcut", ".conv", 3, 3, 3)
            channels = width
        if level < len(widths) - 1:
            shapes |= convolution(f"{name}.{steps}samplers.0.conv.conv", width, width, 3, 3, 3)
    middle = widths[-1] if steps == "down" else widths[0]
    for number in range(2):
        shapes |= residual(f"{half}.mid_block.resnets.{number}", middle, middle, "", ".conv", 3, 3, 3)
    shapes |= norm(f"{half}.mid_block.attentions.0.group_norm", middle)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= linear(f"{half}.mid_block.attentions.0.{part}", middle, middle)
    return (
        shapes | norm(f"{half}.conv_norm_out", channels) | convolution(f"{half}.conv_out.conv", channels, out, 3, 3, 3)
    )


def hunyuan_shapes(widths: list[int], blocks: int, latents: int = 16) -> dict[str, Shape]:
    """The Hunyuan VAE; the released one has widths 128, 256, 512, 512 and 2 blocks."""
    shapes = hunyuan_half("encoder", widths, blocks, "down", 3, 2 * latents)
    shapes |= hunyuan_half("decoder", widths[::-1], blocks + 1, "up", latents, 3)
    shapes |= convolution("quant_conv", 2 * latents, 2 * latents, 1, 1, 1)
    return shapes | convolution("post_quant_conv", latents, latents, 1, 1, 1)


def dc_ae_block(name: str, width: int, attention: bool, head: int) -> dict[str, Shape]:
    """A residual block, or one of linear attention and a gated layer."""
    if not attention:
        shapes = convolution(f"{name}.main.conv1.conv", width, width, 3, 3, 3)
        shapes |= convolution(f"{name}.main.conv2.conv", width, width, 3, 3, 3, bias=False)
        return shapes | norm(f"{name}.main.conv2.norm", width)
    one, two, mixed = f"{name}.context_module.main", f"{name}.local_module.main", 3 * (width // head * head)
    shapes = convolution(f"{one}.qkv.conv", width, mixed, 1, 1, 1, bias=False)
    shapes |= convolution(f"{one}.aggreg.0.0", 1, mixed, 5, 5, 5, bias=False)
    shapes |= convolution(f"{one}.aggreg.0.1", head, mixed, 1, 1, 1, bias=False)
    shapes |= convolution(f"{one}.proj.conv", 2 * mixed // 3, width, 1, 1, 1, bias=False)
    shapes |= norm(f"{one}.proj.norm", width)
    shapes |= convolution(f"{two}.inverted_conv.conv", width, 8 * width, 1, 1, 1)
    shapes |= convolution(f"{two}.depth_conv.conv", 1, 8 * width, 3, 3, 3)
    shapes |= convolution(f"{two}.point_conv.conv", 4 * width, width, 1, 1, 1, bias=False)
    return shapes | norm(f"{two}.point_conv.norm", width)


def dc_ae_shapes(widths: list[int], blocks: int, latents: int = 128, head: int = 32) -> dict[str, Shape]:
    """The DC-AE; released: widths 128, 256, 512, 512, 1024, 1024, 2 or 3 blocks, in the last three with attention."""
    shapes = convolution("encoder.project_in.conv", 3, widths[0], 3, 3, 3)
    shapes |= convolution("encoder.project_out.main.op_list.0.conv", widths[-1], latents, 3, 3, 3)
    shapes |= convolution("decoder.project_in.main.conv", latents, widths[-1], 3, 3, 3)
    shapes |= norm("decoder.project_out.op_list.0", widths[0])
    shapes |= convolution("decoder.project_out.op_list.2.conv", widths[0], 3, 3, 3, 3)
    for stage, width in enumerate(widths):
        last = stage == len(widths) - 1
        for number in range(blocks):
            for half, place in (("encoder", number), ("decoder", number + (not last))):
                shapes |= dc_ae_block(f"{half}.stages.{stage}.op_list.{place}", width, stage >= 3, head)
        if not last:
            wide = widths[stage + 1]
            shapes |= convolution(f"encoder.stages.{stage}.op_list.{blocks}.main.conv", width, wide, 3, 3, 3)
            shapes |= convolution(f"decoder.stages.{stage}.op_list.0.main.conv.conv", wide, width, 3, 3, 3)
    return shapes


def hunyuan() -> tuple[Tensors, dict[str, str]]:
    """The tiny Hunyuan VAE in half precision, and its file metadata."""
    return _halved(fill(hunyuan_shapes(HUNYUAN_WIDTHS, 1))), METADATA


def dc_ae() -> tuple[Tensors, dict[str, str]]:
    """The tiny DC-AE in half precision, and its file metadata."""
    return _halved(fill(dc_ae_shapes(DC_AE_WIDTHS, 1, head=16))), METADATA


def core_names(weights: Tensors) -> Tensors:
    """A Hunyuan VAE as ComfyUI names it: levels of the decoder counted from the pixels, projections as convolutions."""
    levels = len({name.split(".")[2] for name in weights if name.startswith("decoder.up_blocks.")})
    replaced = {
        "mid_block.resnets.0.": "mid.block_1.", "mid_block.resnets.1.": "mid.block_2.",
        "mid_block.attentions.0.": "mid.attn_1.", "group_norm.": "norm.", "to_out.0.": "proj_out.", "to_q.": "q.",
        "to_k.": "k.", "to_v.": "v.", "conv_shortcut": "nin_shortcut", "conv_norm_out": "norm_out",
        "down_blocks.": "down.", "downsamplers.0.": "downsample.", "upsamplers.0.": "upsample.",
        **{f"up_blocks.{level}.": f"up.{levels - 1 - level}." for level in range(levels)}, ".resnets.": ".block.",
    }  # fmt: skip
    renamed = {}
    for name, value in weights.items():
        for old, new in replaced.items():
            name = name.replace(old, new)
        renamed[name] = value[..., None, None, None] if ".attn_1." in name and value.ndim == 2 else value
    return renamed


def old_names(weights: Tensors) -> Tensors:
    """A Hunyuan VAE under the names of older versions of diffusers."""
    return {name.replace("to_q", "query").replace("to_out.0", "proj_attn"): value for name, value in weights.items()}


def _halved(weights: dict[str, torch.Tensor]) -> Tensors:
    return {name: weight.half() for name, weight in weights.items()}
