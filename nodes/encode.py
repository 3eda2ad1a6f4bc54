"""Pictures and clips to latents."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..opensora_models.native.sampling.clips import marked, vae_release
from ..opensora_models.native.vae.decoding import encode_images, own_vae
from ..opensora_models.native.vae.plans import AUTO, TILE_SIZES
from .door import OpenSoraNode

MODE, SAMPLE = "mode", "sample"


def tile_input() -> io.Input:
    """How much of a clip a VAE computes at once."""
    return io.Combo.Input(
        "tile_size",
        options=list(TILE_SIZES),
        default=AUTO,
        tooltip="Least memory for most pixels: each layer is computed in strips of about this area (512: 512 x 512 "
        "pixels). The result is the same but for rounding. auto: what fits into free memory. off: whole layers.",
    )


class Encode(OpenSoraNode):
    """``OSoraEncode``: images to Open-Sora latents, streamed."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraEncode",
            display_name="Open-Sora Encode",
            category="Open-Sora/latent",
            description="Encodes a picture or a clip of any length to latents, piece by piece.",
            search_aliases=["vae encode", "open-sora encode"],
            inputs=[
                io.Image.Input("images", tooltip="One picture, or the frames of one clip."),
                io.Vae.Input("vae", tooltip="From Open-Sora Load VAE."),
                tile_input(),
                io.Combo.Input(
                    "posterior",
                    options=[MODE, SAMPLE],
                    default=MODE,
                    advanced=True,
                    tooltip="mode: the likeliest latents, the same every time. sample: drawn with the seed, as the "
                    "original program does; the high-compression VAE of 2.0 has nothing to draw.",
                ),
                io.Int.Input(
                    "seed", default=0, min=0, max=2**63 - 1, advanced=True, tooltip="Only used by posterior sample."
                ),
            ],
            outputs=[
                io.Latent.Output(display_name="latent", tooltip="Latents of the clip, as VAE Encode gives them."),
            ],
        )

    @classmethod
    def execute(cls, images: torch.Tensor, vae: object, tile_size: str, posterior: str, seed: int) -> io.NodeOutput:
        latents = encode_images(own_vae(vae), images, tile_size, seed if posterior == SAMPLE else None)
        return io.NodeOutput(marked({"samples": latents}, vae_release(vae)))
