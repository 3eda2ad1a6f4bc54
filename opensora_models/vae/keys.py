"""Brings the names of image autoencoder files to the one layout used here: current diffusers names.

Three layouts hold the same weights: current diffusers, diffusers before 0.17 (other names in the attention), and the
original latent-diffusion one, in which Stable Diffusion and SDXL VAE files usually come.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ..checkpoint.counting import count_blocks

PIPELINE_PREFIX = "spatial_vae.module."

NUMBER = "0|[1-9][0-9]{0,3}"  # as many digits as any number of blocks has
_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}
_LDM_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_LDM_OUTER = {"norm_out": "conv_norm_out"}


def image_names(names: Iterable[str]) -> dict[str, str]:
    """For each name of an image autoencoder (without prefix) its current diffusers name."""
    names = list(names)
    if any(name.startswith("encoder.down.") for name in names):
        levels = count_blocks(names, "decoder.up.")
        return {name: _from_latent_diffusion(name, levels) for name in names}
    return {name: _from_old_diffusers(name) for name in names}


def _from_old_diffusers(name: str) -> str:
    return re.sub(
        r"(mid_block\.attentions\.0\.)(query|key|value|proj_attn)\.",
        lambda found: f"{found[1]}{_OLD_ATTENTION[found[2]]}.",
        name,
    )


def _from_latent_diffusion(name: str, levels: int) -> str:
    half, _, rest = name.partition(".")
    if half not in ("encoder", "decoder"):
        return name
    return f"{half}.{_inner_name(rest, levels)}"


def _inner_name(rest: str, levels: int) -> str:
    if found := re.match(rf"down\.({NUMBER})\.block\.({NUMBER})\.(.+)", rest):
        return f"down_blocks.{found[1]}.resnets.{found[2]}.{_residual(found[3])}"
    if found := re.match(rf"down\.({NUMBER})\.downsample\.(.+)", rest):
        return f"down_blocks.{found[1]}.downsamplers.0.{found[2]}"
    # Levels of the decoder are counted from the pixels there, from the latents in diffusers.
    if found := re.match(rf"up\.({NUMBER})\.block\.({NUMBER})\.(.+)", rest):
        return f"up_blocks.{levels - 1 - int(found[1])}.resnets.{found[2]}.{_residual(found[3])}"
    if found := re.match(rf"up\.({NUMBER})\.upsample\.(.+)", rest):
        return f"up_blocks.{levels - 1 - int(found[1])}.upsamplers.0.{found[2]}"
    if found := re.match(r"mid\.block_([12])\.(.+)", rest):
        return f"mid_block.resnets.{int(found[1]) - 1}.{_residual(found[2])}"
    if found := re.match(r"mid\.attn_1\.(\w+)\.(.+)", rest):
        return f"mid_block.attentions.0.{_LDM_ATTENTION.get(found[1], found[1])}.{found[2]}"
    outer, dot, end = rest.partition(".")
    return f"{_LDM_OUTER.get(outer, outer)}{dot}{end}"


def _residual(rest: str) -> str:
    return rest.replace("nin_shortcut", "conv_shortcut")
