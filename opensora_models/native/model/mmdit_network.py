"""MMDiT as ComfyUI's sampler wants to call it: its arguments, its hooks, latents of any size."""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.common_dit import pad_to_patch_size
from comfy.ldm.modules.attention import optimized_attention
from comfy.patcher_extension import WrapperExecutor, WrappersMP, get_all_wrappers
from torch import Tensor

from ...mmdit.blocks import ATTENTION_OUTPUT
from ...mmdit.config import MMDiTConfig
from ...mmdit.memory import activation_bytes
from ...mmdit.modulation import TIME_FACTOR, Modulations
from ...mmdit.network import BEFORE_BLOCK, MMDiT
from ...mmdit.upstream import UpstreamHeads
from ...transformer.handing import own
from ..memory import check_forward_fits
from .clip_layout import ClipLayout
from .fused_heads import FusedHeads
from .helped import with_help
from .modulations_apart import ModulationsApart
from .prefetch import looking_ahead
from .unplaced import tell_rows_apart, unplaced, warn_once, without_halves
from .wrappers import separated


class NativeMMDiT(ClipLayout, MMDiT):
    """The network inside ComfyUI's MODEL; ComfyUI constructs it from ``unet_config`` and calls ``forward``."""

    def __init__(
        self,
        opensora: MMDiTConfig,
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
            arithmetic=UpstreamHeads() if as_upstream else FusedHeads(),
            dtype=dtype,
            device=device,
        )
        self.dtype = dtype
        self.in_channels = opensora.channels  # core's Renorm CFG reads it
        self.apart: ModulationsApart | None = None
        self._said: set[str] = set()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """As in PyTorch, with the weights of layers that are kept apart."""
        state = super().state_dict(*args, **kwargs)
        if self.apart is not None:
            self.apart.add_to(state, kwargs.get("prefix", ""), kwargs.get("keep_vars", False))
        return state

    def forward(  # type: ignore[override]  # ComfyUI's arguments, not the network's
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor | None = None,
        control: Any = None,
        transformer_options: dict[str, Any] | None = None,
        **conds: Any,
    ) -> Tensor:
        """``noise - x0`` of [B, C, T, h, w], which is what both Open-Sora 2.0 and ComfyUI's flow sampling mean.

        ``timestep`` is [B] on the 0..1000 scale. ``context`` and ``control`` are ComfyUI's arguments for other models;
        our text comes as ``conds["text"]``. Runs inside every DIFFUSION_MODEL wrapper that is registered; what those
        are handed is theirs. Patches without a place are named in the log.
        """
        options = own(transformer_options or {})
        places = {"double_block": len(self.double_blocks), "single_block": len(self.single_blocks)}
        if not torch.compiler.is_compiling():
            warn_once(unplaced(options, places, control, (ATTENTION_OUTPUT,)), self._said, places)
            tell_rows_apart(options)
            tokens = conds["text"].shape[1] if "text" in conds else 0
            needed = activation_bytes(self.config, x.shape, tokens, x.element_size(), x.device.type)
            check_forward_fits(needed, x)
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
        text: Tensor,
        pooled: Tensor,
        reference: Tensor | None = None,
        modulations: Modulations | None = None,
        **unused: Any,
    ) -> Tensor:
        """One call of the network; the arguments are the entries of ``MMDiTModel.extra_conds``.

        ``text`` [B, L, width], ``pooled`` [B, width], ``reference`` [B, 1 + C, T, h, w]; ``modulations`` of these rows
        where they are made already.
        """
        height, width = x.shape[-2:]
        made = self.made_apart(timestep, pooled, x) if modulations is None else modulations
        blocks = (*self.double_blocks, *self.single_blocks)
        with looking_ahead(blocks, x.device, transformer_options) as prefetch:
            ahead = {} if prefetch is None else {BEFORE_BLOCK: prefetch}
            output = super().forward(
                self._padded(x),
                timestep / TIME_FACTOR,
                text,
                pooled,
                reference=None if reference is None else self._padded(reference),
                modulations=made,
                transformer_options={**transformer_options, **ahead},
            )
        return output[..., :height, :width]

    def made_apart(self, timestep: Tensor, pooled: Tensor, x: Tensor) -> Modulations | None:
        """Modulations of these rows as the running sampling has made them; None where the call makes its own."""
        return None if self.apart is None else self.apart.of_rows(self, timestep, pooled, x)

    def _padded(self, x: Tensor) -> Tensor:
        """With rows and columns added up to whole patches, as core does it."""
        return pad_to_patch_size(x, (1, self.config.patch_size, self.config.patch_size))
