"""STDiT3: the spatial-temporal diffusion transformer of Open-Sora 1.2 and 1.3.

Papers and sources: Open-Sora (arXiv 2412.20404), DiT (arXiv 2212.09748), PixArt-α (arXiv 2310.00426); upstream
``opensora/models/stdit/stdit3.py`` of releases 1.2 and 1.3. One network serves both; what differs stands in
:class:`~.config.STDiT3Config`.

**Places where others can hook in**, all through ``transformer_options`` of a call and absent at no cost. Blocks are
numbered 0 … 2·depth - 1 in the order they run: even numbers are spatial, odd ones temporal.

* ``block_index`` and ``total_blocks`` are set for every block, and every attention call gets ``transformer_options``,
  so ``optimized_attention_override`` is honoured.
* ``patches_replace["dit"][("double_block", i)]``: a function ``(args, {"original_block": run})`` in place of block i.
  ``args`` holds ``img`` [B, tokens, C] (frames, rows, columns), ``txt`` [all text tokens, C], ``vec`` (modulation
  [B, frames or 1, 6, C]), ``pe`` None and ``transformer_options``; ``run(args)`` and the function return a dict with
  ``img``. ``patches["double_block"]``: a list of functions called with the same dict and ``block_index`` after
  every block.
* ``patches["attn1_output_patch"]`` and ``["attn2_output_patch"]``: functions ``(out, options)`` on what every self
  attention and every cross attention gives, [B, tokens, C].
* ``opensora_stack_hook``: a function ``(x, modulation, run)`` around all blocks; ``run(x)`` computes them. x is
  [B, tokens, C]. ``run(x, enter)`` takes the tokens of some rows and frames; ``enter(index, tokens, context)`` is
  called before every block with tokens [B, T, S, C] and a :class:`~.conditions.BlockContext` of the whole call, and
  gives the tokens and the context the block shall see. A block without tokens is left out.
* ``opensora_branch_hook``: a function ``(kind, transformer_options, run)`` around each residual branch of each block;
  ``kind`` is "attn", "cross" or "mlp", ``run()`` gives the gated branch [B, T, S, C] that is added to the tokens.
* ``opensora_arithmetic``: an ``Arithmetic`` for this call alone, e.g. ``UpstreamArithmetic()``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..transformer.arithmetic import ARITHMETIC, Arithmetic, Attention
from ..transformer.attention import plain_attention
from ..transformer.handing import own
from ..transformer.positions import Rotary
from ..transformer.rows import tile_rows
from ..transformer.stack import STACK_HOOK
from .attention import SpatialAttention, TemporalAttention, WindowedAttention
from .blocks import Block, FinalLayer
from .conditions import BlockContext, GivenFrames, PackedText, pack
from .config import STDiT3Config
from .embedders import CaptionEmbedder, PatchEmbedder, ScalarEmbedder
from .positions import PositionEmbedding2D, RotaryEmbedding, rounded_number
from .windows import Extent, cut

Enter = Callable[[int, Tensor, BlockContext], tuple[Tensor, BlockContext]]
"""What a stack hook may hand to ``run``: see the module's text."""


class STDiT3(nn.Module):
    """The network. Layers come from ``operations`` (``torch.nn`` or ComfyUI's), attention from ``attention``.

    Keys are those of the released checkpoints, tables excepted: see :mod:`.keys`.
    """

    def __init__(
        self,
        config: STDiT3Config,
        *,
        operations: Any = nn,
        attention: Attention = plain_attention,
        arithmetic: Arithmetic | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.config, self.attention, self.arithmetic = config, attention, arithmetic or Arithmetic()
        self.dtype = dtype
        layers = (config, operations, dtype, device)
        self.rope = RotaryEmbedding(config.rotated_width, device)
        self.pos_embed = PositionEmbedding2D(config.hidden_size)
        self.x_embedder = PatchEmbedder(*layers)
        if config.takes_given_frames:
            self.x_embedder_cond = PatchEmbedder(*layers)
            self.x_embedder_cond_mask = PatchEmbedder(*layers)
        self.t_embedder = ScalarEmbedder(*layers)
        self.fps_embedder = ScalarEmbedder(*layers)
        six = operations.Linear(config.hidden_size, 6 * config.hidden_size, dtype=dtype, device=device)
        self.t_block = nn.Sequential(nn.SiLU(), six)
        self.y_embedder = CaptionEmbedder(*layers)
        temporal = TemporalAttention if config.kernel_size is None else WindowedAttention
        pairs = range(config.depth)
        self.spatial_blocks = nn.ModuleList(Block(config, SpatialAttention, *layers[1:]) for _ in pairs)
        if not config.skip_temporal:
            self.temporal_blocks = nn.ModuleList(Block(config, temporal, *layers[1:]) for _ in pairs)
        self.final_layer = FinalLayer(*layers)

    def forward(
        self,
        x: Tensor,
        timestep: Tensor,
        text: Sequence[Tensor] | Tensor,
        *,
        fps: Tensor | float,
        height: float,
        width: float,
        frame_mask: Tensor | None = None,
        given: GivenFrames | None = None,
        transformer_options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Velocity x0 - noise (and the unused second half of the channels) of noisy latents.

        Args:
            x: normalised latents [B, I, T, Hx, Wx] in the computing dtype.
            timestep: [B] or [1], 0 … 1000; keep it float32, 1000 is pure noise.
            text: one tensor [L_b, caption_channels] per row (the kept tokens only), or one tensor [B, L, channels].
            fps: frames per second, a number or [B]; 120 for a single image.
            height, width: size of the decoded frames in pixels.
            frame_mask: [B, T] bool or None; False marks a frame that is clean already (time 0).
            given: frames the model is told; Open-Sora 1.3 only.
            transformer_options: see the module's text.

        Returns:
            [B, out_channels, T, Hx, Wx] in the dtype of ``x``.
        """
        self._check(x, text, given)
        options = {**(transformer_options or {}), "total_blocks": len(self.blocks())}
        arithmetic = options.get(ARITHMETIC, self.arithmetic)
        tokens, grid, scale = self._tokens(x, given, height, width, arithmetic)
        time, modulation = self._time(timestep, fps, x, arithmetic)
        clean_time = None
        if frame_mask is not None:
            clean_time, clean_modulation = self._time(torch.zeros_like(timestep), fps, x, arithmetic)
            modulation = torch.where(frame_mask[:, :, None, None], modulation, clean_modulation)
        context = BlockContext(
            modulation=modulation,
            text=self._text(text, x),
            grid=grid,
            arithmetic=arithmetic,
            attention=self.attention,
            options=options,
            **self._null_text(text, given, x),
            **self.positions(x.shape[2], grid, scale, x.device, arithmetic.precision(x.dtype)),
        )
        tokens = self._run_stack(tokens, context, options)
        patches = self.final_layer(tokens, time, arithmetic, frame_mask, clean_time)
        return self._unpatchify(patches, grid)[..., : x.shape[-2], : x.shape[-1]]

    def blocks(self) -> list[Block]:
        """All blocks in the order they run."""
        spatial = cast("list[Block]", list(self.spatial_blocks))
        if self.config.skip_temporal:
            return spatial
        temporal = cast("list[Block]", list(self.temporal_blocks))
        return [block for pair in zip(spatial, temporal, strict=True) for block in pair]

    def positions(
        self, frames: int, grid: tuple[int, int], scale: float, device: torch.device, precision: torch.dtype
    ) -> dict[str, Any]:
        """The rotations of :class:`BlockContext` for a clip of ``frames`` frames of ``grid`` tokens."""
        if self.config.kernel_size is None:
            return {"temporal_rotary": self.rope.along(frames, device=device, precision=precision).per_frame()}

        def over(extent: Extent) -> Rotary:
            return self.rope.over_grid(*extent, scale=scale, device=device, precision=precision)

        windows = [(piece, over(piece.window)) for piece in cut((frames, *grid), self.config.kernel_size)]
        spatial = over((1, *grid)) if self.config.use_spatial_rope else None
        return {"spatial_rotary": spatial, "windows": tuple(windows)}

    def _check(self, x: Tensor, text: Sequence[Tensor] | Tensor, given: GivenFrames | None) -> None:
        if x.ndim != 5 or x.shape[1] != self.config.in_channels:
            raise ValueError(
                f"Open-Sora {self.config.version} takes latents [B, {self.config.in_channels}, T, H, W], "
                f"not {list(x.shape)}."
            )
        if len(text) != x.shape[0] or any(row.shape[-2] == 0 for row in text):
            raise ValueError(
                f"{x.shape[0]} row(s) of latents need as many texts of at least one token, "
                f"not lengths {[row.shape[-2] for row in text]}."
            )
        if given is None:
            return
        if not self.config.takes_given_frames:
            raise ValueError("Open-Sora 1.2 has no embedder for given frames; keep them with a frame mask instead.")
        if any(not 0 <= index < x.shape[2] for index in given.indices):
            raise ValueError(
                f"The given frames {list(given.indices)} must lie in the latent frames 0 … {x.shape[2] - 1}."
            )

    def _tokens(
        self, x: Tensor, given: GivenFrames | None, height: float, width: float, arithmetic: Arithmetic
    ) -> tuple[Tensor, tuple[int, int], float]:
        """Patches plus given frames plus positions [B, T, S, C], the token grid, and the scale of positions."""
        patch_rows, patch_columns = self.config.patch_size[1:]
        rows, columns = -(-x.shape[3] // patch_rows), -(-x.shape[4] // patch_columns)
        precision = arithmetic.precision(x.dtype)
        pixels = rounded_number(height, precision) * rounded_number(width, precision)
        scale = pixels**0.5 / self.config.input_sq_size
        tokens = self.x_embedder(x)
        if given is not None:
            latents = given.latents.to(x)
            tokens = tokens + self.x_embedder_cond(latents)
            tokens = tokens + self.x_embedder_cond_mask(given.mask.to(x).expand_as(latents))
        base_size = round((rows * columns) ** 0.5)
        table = self.pos_embed(rows, columns, scale, base_size, device=x.device, precision=precision)
        return (tokens + table).to(x.dtype).contiguous(), (rows, columns), scale

    def _time(self, timestep: Tensor, fps: Tensor | float, x: Tensor, arithmetic: Arithmetic) -> tuple[Tensor, Tensor]:
        """The time vector [B, C] and its six modulation vectors [B, 1, 6, C]."""
        precision = arithmetic.precision(x.dtype)
        rates = torch.as_tensor(fps, dtype=torch.float32, device=x.device).reshape(-1).to(precision)
        time = timestep.float() if self.config.float_time else timestep.to(precision)
        vector = self.t_embedder(tile_rows(time, x.shape[0]), x.dtype)
        vector = vector + self.fps_embedder(tile_rows(rates, x.shape[0]), x.dtype)
        return vector, self.t_block(vector).unflatten(-1, (6, -1))[:, None]

    def _text(self, text: Sequence[Tensor] | Tensor, x: Tensor) -> PackedText:
        packed = pack(text)
        return replace(packed, tokens=self.y_embedder(packed.tokens.to(x)))

    def _null_text(self, text: Sequence[Tensor] | Tensor, given: GivenFrames | None, x: Tensor) -> dict[str, Any]:
        """The text of the given frames: what the caller says, or the learned null text as long as each prompt."""
        if given is None or not given.indices:
            return {}
        null = given.null_text
        if null is None:
            null = [self.y_embedder.y_embedding[: row.shape[-2]] for row in text]
        return {"null_text": self._text(null, x), "given": tuple(given.indices)}

    def _run_stack(self, tokens: Tensor, context: BlockContext, options: dict[str, Any]) -> Tensor:
        hook = options.get(STACK_HOOK)
        if hook is None:
            return self._run_blocks(tokens, context, options)
        shape = tokens.shape

        def run(x: Tensor, enter: Enter | None = None) -> Tensor:
            tokens = x.reshape(x.shape[0], x.shape[1] // shape[2], *shape[2:])
            return self._run_blocks(tokens, context, options, enter).flatten(1, 2)

        return hook(tokens.flatten(1, 2), context.modulation.clone(), run).reshape(shape)

    def _run_blocks(
        self, tokens: Tensor, context: BlockContext, options: dict[str, Any], enter: Enter | None = None
    ) -> Tensor:
        replacements = options.get("patches_replace", {}).get("dit", {})
        after = options.get("patches", {}).get("double_block", ())
        seen = context
        for index, block in enumerate(self.blocks()):
            options["block_index"] = index
            if enter is not None:
                tokens, seen = enter(index, tokens, context)
                if not tokens.numel():
                    continue
            replacement = replacements.get(("double_block", index))
            if replacement is None and not after:
                tokens = block(tokens, seen)
                continue
            tokens = _run_patched(block, tokens, seen, options, replacement, after)
        return tokens

    def _unpatchify(self, patches: Tensor, grid: tuple[int, int]) -> Tensor:
        """[B, T, S, patch rows·patch columns·channels] -> [B, channels, T, rows, columns] of the padded latents."""
        sizes = (*self.config.patch_size[1:], self.config.out_channels)
        boxes = patches.unflatten(3, sizes).unflatten(2, grid)
        return boxes.permute(0, 6, 1, 2, 4, 3, 5).flatten(5, 6).flatten(3, 4)


def _run_patched(
    block: Block, tokens: Tensor, context: BlockContext, options: dict[str, Any], replacement: Any, after: Any
) -> Tensor:
    """One block through ComfyUI's block patches, which see [B, tokens, C] and may write into what they see."""
    shape = tokens.shape

    def original(args: Mapping[str, Any]) -> dict[str, Any]:
        text = PackedText(args["txt"], context.text.lengths)
        changed = replace(context, text=text, modulation=args["vec"], options=args["transformer_options"])
        return {**args, "img": block(args["img"].reshape(shape), changed).flatten(1, 2)}

    def handed(img: Tensor) -> dict[str, Any]:
        tensors = own({"img": img, "txt": context.text.tokens, "vec": context.modulation})
        return {**tensors, "pe": None, "transformer_options": own(options)}

    args = handed(tokens.flatten(1, 2))
    out = original(args) if replacement is None else replacement(args, {"original_block": original})
    for patch in after:
        out = patch({**args, **out, **handed(out["img"]), "block_index": options["block_index"]})
    return out["img"].reshape(shape)
