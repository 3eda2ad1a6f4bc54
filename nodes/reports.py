"""Reports people look at to choose settings."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..opensora_models.native.messages import tell
from ..opensora_models.vae.plot import line_plots
from ..opensora_models.vae.quality import compared, psnr, same_shape, ssim
from .door import OpenSoraNode


class Reconstruction(OpenSoraNode):
    """``OSoraReconstruction``: how well a clip survived encoding and decoding."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="OSoraReconstruction",
            display_name="Open-Sora Reconstruction Report",
            category="Open-Sora/reports",
            description="Compares a clip with its reconstruction: PSNR and SSIM of every frame, plotted over time.",
            search_aliases=["psnr", "ssim", "compare videos", "vae quality"],
            is_output_node=True,
            inputs=[
                io.Image.Input("original", tooltip="The frames before encoding."),
                io.Image.Input("decoded", tooltip="The same frames after decoding."),
            ],
            outputs=[
                io.Image.Output(display_name="plot", tooltip="PSNR and SSIM over the frames."),
                io.Float.Output(display_name="psnr", tooltip="Mean PSNR in dB; identical frames count as 100."),
                io.Float.Output(display_name="ssim", tooltip="Mean SSIM; 1 is identical."),
                io.String.Output(display_name="report", tooltip="The numbers of every frame as text."),
            ],
        )

    @classmethod
    def execute(cls, original: torch.Tensor, decoded: torch.Tensor) -> io.NodeOutput:
        a, b = same_shape(original, decoded)
        tell(compared(original, decoded))
        ratios, similarities = psnr(a, b), ssim(a, b)
        lines = [
            f"frame {i}: PSNR {p:.2f} dB, SSIM {s:.4f}"
            for i, (p, s) in enumerate(zip(ratios, similarities, strict=True))
        ]
        means = sum(ratios) / len(ratios), sum(similarities) / len(similarities)
        report = "\n".join([f"mean of {len(lines)} frames: PSNR {means[0]:.2f} dB, SSIM {means[1]:.4f}", *lines])
        plot = line_plots([("PSNR in dB", ratios), ("SSIM", similarities)])
        return io.NodeOutput(plot, *means, report, ui=ui.PreviewImage(plot, cls=cls))
