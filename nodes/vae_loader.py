"""Loading the video VAE."""

from __future__ import annotations

from comfy_api.latest import io

from ..opensora_models.native.files import VAES
from ..opensora_models.native.previews.colours import learn_colours
from ..opensora_models.native.vae.decoding import VAE_DTYPES
from ..opensora_models.native.vae.vae import AS_RELEASED, TILINGS, load_vae
from .door import OpenSoraNode
from .files import FileInput

NONE = "none"
SCALES: dict[str, float | None] = {"from the file": None, "1": 1.0, "0.493": 0.493}
"""Of the high-compression VAE: the original samples with 1 and was trained with 0.493."""


class VAELoader(OpenSoraNode):
    """``OSoraVAELoader``: an Open-Sora VAE file in, ComfyUI's VAE out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraVAELoader",
            display_name="Open-Sora Load VAE",
            category="Open-Sora/loaders",
            description="Loads the video VAE of Open-Sora 1.2, 1.3 or 2.0, also the high-compression one; which one it "
            "is is read off the file.",
            search_aliases=["open-sora", "text to video", "extend", "load vae", "video vae"],
            inputs=[
                FileInput("vae_name", VAES, tooltip="A file in models/vae."),
                FileInput(
                    "spatial_vae",
                    VAES,
                    others=[NONE],
                    advanced=True,
                    tooltip="Only where vae_name holds just the temporal half of the 1.2 VAE: an SDXL or Stable "
                    "Diffusion VAE for the other half.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=list(VAE_DTYPES),
                    default="default",
                    advanced=True,
                    tooltip="What the VAE computes in. default: ComfyUI decides. fp32 is the most accurate and takes "
                    "twice the memory of bf16.",
                ),
                io.Boolean.Input(
                    "temporal_overlap",
                    default=True,
                    advanced=True,
                    tooltip="Open-Sora 1.3 only: groups of 17 frames share one frame, which is blended, as released, "
                    "unless the file was saved without. Off: groups lie side by side.",
                ),
                io.Combo.Input(
                    "tiling",
                    options=list(TILINGS),
                    default=AS_RELEASED,
                    optional=True,
                    advanced=True,
                    tooltip="Open-Sora 2.0 only. Its VAEs work in overlapping tiles, each by itself, so this changes "
                    "the pictures. as released: what the file says, else as in the original. one piece: no tiles, "
                    "which needs far more memory. temporal too: also in time, for clips of any length.",
                ),
                io.Combo.Input(
                    "scaling_factor",
                    options=list(SCALES),
                    default=next(iter(SCALES)),
                    optional=True,
                    advanced=True,
                    tooltip="High-compression VAE of Open-Sora 2.0 only: what its latents are divided by. from the "
                    "file: what was saved with it, else 1. The original samples with 1 and was trained with 0.493.",
                ),
            ],
            outputs=[
                io.Vae.Output(display_name="vae", tooltip="The VAE, for VAE Decode and every other VAE input."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, vae_name: str | None, spatial_vae: str | None, **kwargs: object) -> str:
        """Loads again when a file on disk has changed."""
        return f"{VAES.fingerprint(vae_name)} {VAES.fingerprint(spatial_vae)}"

    @classmethod
    def execute(
        cls, vae_name: str, spatial_vae: str, dtype: str, temporal_overlap: bool, tiling: str = AS_RELEASED,
        scaling_factor: str = next(iter(SCALES)),
    ) -> io.NodeOutput:  # fmt: skip
        spatial = None if spatial_vae == NONE else VAES.path(spatial_vae)
        scale = SCALES[scaling_factor]
        vae = load_vae(VAES.path(vae_name), spatial, temporal_overlap, VAE_DTYPES[dtype], tiling, scale)
        learn_colours(vae)
        return io.NodeOutput(vae)
