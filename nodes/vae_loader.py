"""Loading the video VAE."""

from __future__ import annotations

from comfy_api.latest import io

from ..opensora_models.native.files import VAES
from ..opensora_models.native.vae.decoding import VAE_DTYPES
from ..opensora_models.native.vae.vae import load_vae
from .door import OpenSoraNode
from .files import FileInput

NONE = "none"


class VAELoader(OpenSoraNode):
    """``OSoraVAELoader``: an Open-Sora 1.2 or 1.3 VAE file in, ComfyUI's VAE out."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraVAELoader",
            display_name="Open-Sora Load VAE",
            category="Open-Sora/loaders",
            description="Loads an Open-Sora 1.2 or 1.3 video VAE; the version is read off the file.",
            search_aliases=["open-sora vae", "load vae", "video vae"],
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
    def execute(cls, vae_name: str, spatial_vae: str, dtype: str, temporal_overlap: bool) -> io.NodeOutput:
        spatial = None if spatial_vae == NONE else VAES.path(spatial_vae)
        return io.NodeOutput(load_vae(VAES.path(vae_name), spatial, temporal_overlap, VAE_DTYPES[dtype]))
