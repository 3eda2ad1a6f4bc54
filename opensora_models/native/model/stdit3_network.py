"""STDiT3 as ComfyUI's sampler wants to call it: its sign, its arguments, its hooks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ...sampling.flow import noised
from ...sampling.schedule import TRAIN_TIMESTEPS
from ...stdit3.config import STDiT3Config
from ...stdit3.network import GivenFrames, STDiT3
from ...transformer.arithmetic import UpstreamArithmetic
from ...transformer.handing import own
from ..memory import activation_bytes, check_forward_fits
from .clip_layout import ClipLayout
from .conds import from_fixed
from .frame_masks import active_at
from .fused import FusedArithmetic
from .helped import with_help
from .tables import as_linear
from .unplaced import tell_rows_apart, unplaced, warn_once, without_halves
from .wrappers import separated


class NativeSTDiT3(ClipLayout, STDiT3):
    """The network inside ComfyUI's MODEL; ComfyUI constructs it from ``unet_config`` and calls ``forward``."""

    def __init__(
        self,
        opensora: STDiT3Config,
        dtype: torch.dtype | None = None,
        device: torch.device | None = None,
        operations: Any = None,
        as_upstream: bool = False,
        **detection: Any,
    ) -> None:
        super().__init__(
            opensora,
            operations=operations,
            attention=optimized_attention,
            arithmetic=UpstreamArithmetic() if as_upstream else FusedArithmetic(),
            dtype=dtype,
            device=device,
        )
        as_linear(self)
        self.dtype = dtype
        self.in_channels = opensora.in_channels  # core's Renorm CFG reads it
        self._said: set[str] = set()

    def forward(  # type: ignore[override]  # ComfyUI's arguments, not the network's
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **conds: Any,
    ) -> Tensor:
        """``noise - x0`` of [B, C, T, h, w], C channels: what ComfyUI's flow sampling expects.

        ``timestep`` is [B] on the 0..1000 scale. ``context`` and ``control`` are ComfyUI's arguments for other models;
        our text comes as ``conds["text"]``. Runs inside every DIFFUSION_MODEL wrapper that is registered; what those
        are handed is theirs. Patches without a place are named in the log.
        """
        options = own(transformer_options or {})
        places = {"double_block": len(self.blocks())}
        if not torch.compiler.is_compiling():
            warn_once(unplaced(options, places, control), self._said, places)
            tell_rows_apart(options)
            check_forward_fits(activation_bytes(self.config, x.shape, x.element_size(), x.device.type), x)
        options = without_halves(options)
        wrappers = separated(get_all_wrappers(WrappersMP.DIFFUSION_MODEL, options))
        run = WrapperExecutor.new_class_executor(with_help(self, options), self, wrappers)
        return run.execute(x, timestep, context, transformer_options=options, **conds)

    def predict(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        *,
        transformer_options: dict[str, Any],
        text: Sequence[Tensor],
        frame_rate: Tensor,
        height: float,
        width: float,
        frame_ratios: Tensor | None = None,
        pixel_ratios: Tensor | None = None,
        noise: Tensor | None = None,
        given_latents: Tensor | None = None,
        given_mask: Tensor | None = None,
        given_frames: Sequence[int] | None = None,
        **unused: Any,
    ) -> Tensor:
        """One call of the network; the arguments are the entries of ``OpenSoraModel.extra_conds``.

        ``frame_ratios`` [B, 1, T, 1, 1] and ``pixel_ratios`` [B, 1, T, h, w] are int64 millionths, ``frame_rate`` [B]
        int64 millionths; ``noise`` [B, C, T, h, w] comes with ``pixel_ratios``.
        """
        frame_mask = None
        if frame_ratios is not None:
            active = active_at(frame_ratios, timestep)
            frame_mask = active[:, 0, :, 0, 0]
            if pixel_ratios is not None and noise is not None:
                # Kept pixels of a frame that is being made must be as noisy as the rest of that frame.
                fill = active & ~active_at(pixel_ratios, timestep)
                level = (timestep / TRAIN_TIMESTEPS).to(x.dtype).reshape(-1, 1, 1, 1, 1)
                x = torch.where(fill, noised(x, noise, level), x)
        given = None
        if given_latents is not None:
            given = GivenFrames(given_latents, given_mask, list(given_frames or ()))
        output = super().forward(
            x,
            timestep,
            text,
            fps=from_fixed(frame_rate),
            height=height,
            width=width,
            frame_mask=frame_mask,
            given=given,
            transformer_options=transformer_options,
        )
        # Open-Sora predicts x0 - noise, ComfyUI's flow convention is noise - x0; variance channels are unused.
        return -output[:, : self.config.in_channels]
