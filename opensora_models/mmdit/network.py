"""MMDiT: the diffusion transformer of Open-Sora 2.0.

Papers and sources: Open-Sora 2.0 (arXiv 2503.09642), Flux.1 (Black Forest Labs), MMDiT (arXiv 2403.03206); upstream
``opensora/models/mmdit`` of release 2.0. One network serves 2.0, its high-compression sibling and Flux.1-dev; what
differs stands in :class:`~.config.MMDiTConfig`.

**Places where others can hook in**, all through ``transformer_options`` of a call and absent at no cost, as in
ComfyUI's Flux:

* ``block_type`` ("double", "single"), ``block_index`` (from 0 in each type), ``total_blocks`` (of the type) and, in
  single blocks, ``img_slice`` (first image token, all tokens) are set for every block, and every attention call gets
  ``transformer_options``, so ``optimized_attention_override`` is honoured.
* ``patches_replace["dit"][("double_block", i)]``: a function ``(args, {"original_block": run})`` in place of double
  block i. ``args`` holds ``img`` [B, n, C], ``txt`` [B, l, C], ``vec`` (the block's modulation, see
  :class:`~.modulation.Modulations`), ``pe`` (the rotation) and ``transformer_options``; ``run(args)`` and the function
  return a dict with ``img`` and ``txt``. ``("single_block", i)``: the same with ``img`` [B, l + n, C], text first,
  and no ``txt``.
* ``patches["double_block"]`` and ``patches["single_block"]``: lists of functions called with the same dict and
  ``block_index`` after every block.
* ``patches["attn1_output_patch"]``: functions ``(out, options)`` on what every attention gives, [B, l + n, C],
  text first; ``options`` are the ``transformer_options`` with ``img_slice``.
* ``opensora_stack_hook``: a function ``(x, modulation, run)`` around all blocks; ``run(x)`` computes them. x are the
  image tokens [B, n, C] after embedding, ``modulation`` [B, 2, C] that of the last layer; the answer is what the last
  layer reads of the image tokens, shaped like x. ``run(x, enter)`` takes a share of the image tokens, of some rows;
  ``enter(text, modulations, context)`` gives what belongs to it in place of the text tokens [B, l, C], the
  :class:`~.modulation.Modulations` and the :class:`~.blocks.BlockContext` of the whole call.
* ``opensora_before_block``: a function called with every block just before it runs.
* ``opensora_arithmetic``: an :class:`~..transformer.arithmetic.Arithmetic` for this call alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..transformer.arithmetic import ARITHMETIC, Arithmetic, Attention
from ..transformer.attention import plain_attention
from ..transformer.rows import tile_rows
from ..transformer.stack import STACK_HOOK
from .blocks import BlockContext, DoubleBlock, FinalLayer, SingleBlock
from .config import TIME_WIDTH, MMDiTConfig
from .modulation import Modulations, VectorEmbedder, embedded_time
from .positions import rotary
from .tokens import image_ids, pack, text_ids, token_grid, unpack

BEFORE_BLOCK = "opensora_before_block"

Enter = Callable[[Tensor, Modulations, BlockContext], tuple[Tensor, Modulations, BlockContext]]
"""What a stack hook may hand to ``run``: see the module's text."""


class MMDiT(nn.Module):
    """The network. Layers come from ``operations`` (``torch.nn`` or ComfyUI's), attention from ``attention``.

    Keys are those of the released checkpoints, norms of queries and keys excepted: see :mod:`.keys`.
    """

    def __init__(
        self,
        config: MMDiTConfig,
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
        width, place = config.hidden_size, {"dtype": dtype, "device": device}
        layers = (operations, dtype, device)
        self.img_in = operations.Linear(config.in_channels, width, **place)
        self.time_in = VectorEmbedder(TIME_WIDTH, width, *layers)
        self.vector_in = VectorEmbedder(config.vec_in_dim, width, *layers)
        if config.guidance_embed:
            self.guidance_in = VectorEmbedder(TIME_WIDTH, width, *layers)
        if config.cond_embed:
            self.cond_in = operations.Linear(config.reference_features, width, **place)
        self.txt_in = operations.Linear(config.context_in_dim, width, **place)
        self.double_blocks = nn.ModuleList(DoubleBlock(config, *layers) for _ in range(config.depth))
        self.single_blocks = nn.ModuleList(SingleBlock(config, *layers) for _ in range(config.depth_single_blocks))
        self.final_layer = FinalLayer(config, *layers)

    def forward(
        self,
        x: Tensor,
        time: Tensor | None,
        text: Tensor,
        pooled: Tensor | None = None,
        *,
        reference: Tensor | None = None,
        guidance: Tensor | None = None,
        modulations: Modulations | None = None,
        transformer_options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """Velocity noise - clean of noisy latents.

        Args:
            x: latents [B, C, T, h, w] in the computing dtype; h and w multiples of the patch.
            time: [B] or [1], 0 … 1; keep it float32, 1 is pure noise.
            text: states [B, l, context_in_dim] of all tokens, padding included.
            pooled: [B, vec_in_dim] or [1, vec_in_dim].
            reference: mask and given latents [B, 1 + C, T, h, w] (:func:`~.tokens.reference_features`); None where
                nothing is given, which is the same as zeros.
            guidance: [B] or [1], the scale a network with a guidance embedding is told.
            modulations: what :meth:`modulations` gave for these rows; then ``time``, ``pooled`` and ``guidance`` are
                not read.
            transformer_options: see the module's text.

        Returns:
            [B, C, T, h, w] in the dtype of ``x``. Raises ValueError for shapes that do not fit.
        """
        self._check(x, text, reference)
        grid = token_grid(x, self.config.patch_size)
        if modulations is None:
            modulations = self.modulations(self.vector(time, pooled, guidance, rows=x.shape[0], dtype=x.dtype))
        ids = torch.cat([text_ids(text.shape[1], x.device), image_ids(grid, x.device)])
        tokens = self.velocity(
            pack(x, self.config.patch_size),
            text,
            ids,
            modulations,
            reference=None if reference is None else pack(reference.to(x), self.config.patch_size),
            transformer_options=transformer_options,
        )
        return unpack(tokens, grid, self.config.patch_size)

    def velocity(
        self,
        tokens: Tensor,
        text: Tensor,
        ids: Tensor,
        modulations: Modulations,
        *,
        reference: Tensor | None = None,
        transformer_options: Mapping[str, Any] | None = None,
    ) -> Tensor:
        """:meth:`forward` of packed tokens [B, n, in_channels].

        ``ids`` [l + n, 3] or [B, l + n, 3] say where text and image tokens stand; ``reference`` is packed like the
        tokens, [B, n, features] or None.
        """
        options = dict(transformer_options or {})
        arithmetic = options.get(ARITHMETIC, self.arithmetic)
        context = BlockContext(rotary(ids, self.config), arithmetic, self.attention, options)
        states = [self.embed(tokens, reference), self.txt_in(text.to(tokens))]
        hook = options.get(STACK_HOOK)
        if hook is None:
            out = self._run_blocks(states, modulations, context)
        else:
            img, txt = states

            def run(x: Tensor, enter: Enter | None = None) -> Tensor:
                told = (txt, modulations, context) if enter is None else enter(txt, modulations, context)
                return self._run_blocks([x, told[0]], *told[1:])

            out = hook(img, modulations.final.clone(), run)
        return self.final_layer(out, modulations.final, arithmetic)

    def _run_blocks(self, states: list[Tensor], modulations: Modulations, context: BlockContext) -> Tensor:
        """All blocks on image and text tokens, which are taken out of the list; gives the image tokens."""
        img, txt = states
        states.clear()  # nothing may keep tokens alive that the blocks have finished with
        for run in self._double_runs(modulations, context):
            img, txt = run(img, txt)
        length, joint = txt.shape[1], torch.cat([txt, img], dim=1)
        del img, txt
        context.options["img_slice"] = [length, joint.shape[1]]
        for run in self._single_runs(modulations, context):
            joint = run(joint)
        return joint[:, length:]

    def embed(self, tokens: Tensor, reference: Tensor | None = None) -> Tensor:
        """Image tokens [B, n, in_channels] and their reference features, if any, as vectors [B, n, C].

        Without a reference the layer still adds its bias: zeros were shown to it in training, too.
        """
        img = self.img_in(tokens)
        if not self.config.cond_embed:
            return img
        if reference is None:
            reference = tokens.new_zeros(1, 1, self.config.reference_features)
        return img + self.cond_in(reference)

    def vector(
        self,
        time: Tensor | None,
        pooled: Tensor | None,
        guidance: Tensor | None = None,
        *,
        rows: int | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        """[rows, C] in ``dtype``: what all modulations are made of. Inputs as in :meth:`forward`, tiled to ``rows``."""
        if time is None or pooled is None or (self.config.guidance_embed and guidance is None):
            wanted = " and a guidance scale" if self.config.guidance_embed else ""
            raise ValueError(f"This network needs a time, a pooled text state{wanted}, or finished modulations.")
        if pooled.shape[-1] != self.config.vec_in_dim:
            raise ValueError(
                f"The pooled text state is {pooled.shape[-1]} wide, but this model reads {self.config.vec_in_dim}."
            )
        rows = rows or max(time.shape[0], pooled.shape[0])
        dtype = dtype or pooled.dtype
        vector = self.time_in(self._embedded(time, rows, dtype))
        if self.config.guidance_embed and guidance is not None:
            vector = vector + self.guidance_in(self._embedded(guidance, rows, dtype))
        return vector + self.vector_in(tile_rows(pooled.to(vector), rows))

    def modulations(self, vector: Tensor) -> Modulations:
        """Shift, scale and gate vectors of all blocks for rows of :meth:`vector` [B, C].

        For all times of a run this is one call of as many rows; ``modulations.rows([k, k])`` are those of step k for a
        forward of two rows.
        """
        activated = F.silu(vector)
        return Modulations(
            tuple(block.modulation(activated) for block in self._doubles()),
            tuple(block.modulation(activated) for block in self._singles()),
            self.final_layer.modulation(activated),
        )

    def modulation_layers(self) -> Iterator[nn.Module]:
        """The layers that :meth:`modulations` uses and nothing else does; 27 % of the released weights."""
        for block in self._doubles():
            yield from (block.img_mod.lin, block.txt_mod.lin)
        yield from (block.modulation.lin for block in self._singles())
        yield self.final_layer.adaLN_modulation[1]

    def _doubles(self) -> list[DoubleBlock]:
        return cast("list[DoubleBlock]", list(self.double_blocks))

    def _singles(self) -> list[SingleBlock]:
        return cast("list[SingleBlock]", list(self.single_blocks))

    def _embedded(self, values: Tensor, rows: int, dtype: torch.dtype) -> Tensor:
        return embedded_time(tile_rows(values, rows), self.config.round_time, dtype)

    def _check(self, x: Tensor, text: Tensor, reference: Tensor | None) -> None:
        channels = self.config.channels
        if x.ndim != 5 or x.shape[1] != channels:
            raise ValueError(f"This MMDiT takes latents [B, {channels}, T, h, w], not {list(x.shape)}.")
        if text.ndim != 3 or text.shape[0] != x.shape[0] or text.shape[2] != self.config.context_in_dim:
            raise ValueError(
                f"{x.shape[0]} row(s) of latents need text states [{x.shape[0]}, tokens, "
                f"{self.config.context_in_dim}], not {list(text.shape)}."
            )
        if reference is None:
            return
        if not self.config.cond_embed:
            raise ValueError("This model has no reference input; leave the reference away.")
        wanted = (1 + channels, *x.shape[2:])
        if reference.ndim != 5 or reference.shape[0] not in (1, x.shape[0]) or tuple(reference.shape[1:]) != wanted:
            raise ValueError(
                f"The reference must be [{x.shape[0]}, {', '.join(map(str, wanted))}] (a mask channel and the latent's "
                f"own), not {list(reference.shape)}."
            )

    def _double_runs(self, modulations: Modulations, context: BlockContext) -> Iterator[Callable[..., Any]]:
        """Every double block in turn, as a function of image and text tokens."""
        blocks = list(zip(self._doubles(), modulations.double, strict=True))
        for (block, values), patched in zip(blocks, _patches("double", len(blocks), context), strict=True):
            _announce(block, context)

            def run(img: Tensor, txt: Tensor, block: Any = block, values: Any = values, patched: Any = patched) -> Any:
                if patched is None:
                    return block(img, txt, values, context)

                def original(args: Mapping[str, Any]) -> dict[str, Any]:
                    image, text = block(args["img"], args["txt"], args["vec"], _changed(context, args))
                    return {**args, "img": image, "txt": text}

                out = patched({"img": img, "txt": txt, "vec": values}, original)
                return out["img"], out.get("txt", txt)  # which a patch of pictures may leave out

            yield run

    def _single_runs(self, modulations: Modulations, context: BlockContext) -> Iterator[Callable[[Tensor], Tensor]]:
        """Every single block in turn, as a function of all tokens."""
        blocks = list(zip(self._singles(), modulations.single, strict=True))
        for (block, values), patched in zip(blocks, _patches("single", len(blocks), context), strict=True):
            _announce(block, context)

            def run(joint: Tensor, block: Any = block, values: Any = values, patched: Any = patched) -> Tensor:
                if patched is None:
                    return block(joint, values, context)

                def original(args: Mapping[str, Any]) -> dict[str, Any]:
                    return {**args, "img": block(args["img"], args["vec"], _changed(context, args))}

                return patched({"img": joint, "vec": values}, original)["img"]

            yield run


def _announce(block: nn.Module, context: BlockContext) -> None:
    if BEFORE_BLOCK in context.options:
        context.options[BEFORE_BLOCK](block)


def _patches(kind: str, count: int, context: BlockContext) -> Iterator[Callable[..., dict[str, Any]] | None]:
    """What ComfyUI's patches make of each block of a kind, None where there are none; tells them where we are."""
    options, name = context.options, f"{kind}_block"
    options.update(block_type=kind, total_blocks=count)
    replacements = options.get("patches_replace", {}).get("dit", {})
    after = options.get("patches", {}).get(name, ())
    for index in range(count):
        options["block_index"] = index
        replacement = replacements.get((name, index))
        yield None if replacement is None and not after else _patched(replacement, after, context)


def _patched(replacement: Any, after: Any, context: BlockContext) -> Callable[..., dict[str, Any]]:
    """Runs one block through patches: ``run(args, original) -> args``."""

    def run(args: dict[str, Any], original: Callable[[Mapping[str, Any]], dict[str, Any]]) -> dict[str, Any]:
        args = {**args, "pe": context.rotary, "attn_mask": None, "transformer_options": context.options}
        out = original(args) if replacement is None else replacement(args, {"original_block": original})
        for patch in after:
            out = patch({**args, **out, "block_index": context.options["block_index"]})
        return out

    return run


def _changed(context: BlockContext, args: Mapping[str, Any]) -> BlockContext:
    """The context as a patch left it."""
    return replace(context, rotary=args["pe"], options=args["transformer_options"])
