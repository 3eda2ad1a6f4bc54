"""STDiT3 of Open-Sora 1.2 and 1.3: whole forward passes and single components.

Float32 cases run the default arithmetic, bfloat16 cases the one that rounds as upstream does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from golden.runner import Case, fill_by_rule, runs_cases
from opensora.opensora_models.stdit3.arithmetic import Arithmetic, UpstreamArithmetic
from opensora.opensora_models.stdit3.attention import plain_attention
from opensora.opensora_models.stdit3.blocks import Block
from opensora.opensora_models.stdit3.conditions import (
    BlockContext,
    GivenFrames,
    PackedText,
    kept_tokens,
    pack,
    tile_rows,
)
from opensora.opensora_models.stdit3.config import STDiT3Config
from opensora.opensora_models.stdit3.keys import to_checkpoint_key
from opensora.opensora_models.stdit3.network import STDiT3
from opensora.opensora_models.stdit3.positions import sinusoid

TRACE = "trace."
PER_POSITION = "temporal_blocks."


def network_of(case: Case) -> STDiT3:
    """The case's network, filled by rule, in the case's dtype."""
    known = STDiT3Config.__dataclass_fields__
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in case.config.items() if key in known}
    network = STDiT3(STDiT3Config(version=case.family.removeprefix("stdit3-v"), **settings))
    fill_by_rule(network, case, to_checkpoint_key)
    if case.info["dtype"] == "bfloat16":
        network = network.to(torch.bfloat16)
        network.arithmetic = UpstreamArithmetic()
    return network.eval()


@runs_cases(lambda case: case.family.startswith("stdit3-v") and case.kind == "model_forward")
def forward(case: Case) -> dict[str, Tensor]:
    """``out.y`` and every recorded value of a submodule."""
    network = network_of(case)
    traced = {key.removeprefix(TRACE): key for key in case.expected if key.startswith(TRACE)}
    seen: dict[str, Tensor] = {}
    for path in traced:
        network.get_submodule(path).register_forward_hook(lambda _m, _i, out, path=path: seen.__setitem__(path, out))
    out = {"y": network(**arguments(case)).float()}
    if "y_embedder" in seen:  # recorded at its last call, before tokens are picked; ours projects the picked ones only
        null = case.input("y_null")
        seen["y_embedder"] = network.y_embedder(case.input("y") if null is None else null)
    return out | {key: _in_recorded_layout(case, path, seen[path]) for path, key in traced.items()}


def arguments(case: Case, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """A case's inputs as our forward takes them."""
    dtype = dtype or getattr(torch, case.info["dtype"])
    x, mask = case.input("x").to(dtype), case.input("mask")
    given = None
    indices = case.info.get("args", {}).get("mask_index")
    if indices is not None:
        null = case.input("y_null")
        given = GivenFrames(
            case.input("cond"), case.input("cond_mask"), indices, None if null is None else kept_tokens(null, mask)
        )
    return {
        "x": x,
        "timestep": case.input("timestep"),
        "text": kept_tokens(case.input("y"), mask),
        "fps": case.input("fps"),
        "height": case.input("height")[0].item(),
        "width": case.input("width")[0].item(),
        "frame_mask": case.input("x_mask"),
        "given": given,
    }


def _in_recorded_layout(case: Case, path: str, value: Tensor) -> Tensor:
    """Tokens are [B, T, S, C] here; the original flattens them in one way or another."""
    if path.endswith(".attn") and path.startswith("spatial_blocks."):
        return value.flatten(0, 1)
    if path.endswith(".attn"):
        by_position = value.transpose(1, 2)
        if case.config.get("kernel_size") is None:
            return by_position.flatten(0, 1)
        rows, columns = (-(-size // 2) for size in case.input("x").shape[3:])
        return by_position.unflatten(1, (rows, columns))
    return value.flatten(1, 2) if value.ndim == 4 and path != "y_embedder" else value


@runs_cases(lambda case: case.family.startswith("stdit3-v") and case.kind == "component")
def component(case: Case) -> dict[str, Tensor]:
    """The calls of a component case, one after another."""
    network = network_of(case)
    results: dict[str, Tensor] = {}
    for call in case.info["calls"]:
        args = [_value(case, arg) for arg in call["args"]]
        kwargs = {key: _value(case, arg) for key, arg in call.get("kwargs", {}).items()}
        out = _runner(call, network)(network, call["path"], *args, **kwargs)
        names = call["out"] if isinstance(call["out"], list) else [call["out"]]
        results |= zip(names, out if isinstance(call["out"], list) else [out], strict=True)
    return results


def _value(case: Case, argument: Any) -> Any:
    return case.tensors[argument] if isinstance(argument, str) and argument.startswith("in.") else argument


def _runner(call: Mapping[str, Any], network: STDiT3) -> Callable[..., Any]:
    method, path = call.get("method"), call["path"]
    if method is not None:
        return {
            "timestep_embedding": lambda _network, _path, t, width: sinusoid(t, width),
            "rotate_queries_or_keys": _rotate_along,
            "rotate_3d": _rotate_over_grid,
            "encode_text": _encode_text,
        }[method]
    if isinstance(network.get_submodule(path), Block):
        return _block
    return {
        "x_embedder": lambda net, _path, x: net.x_embedder(x).flatten(1, 2),
        "y_embedder": lambda net, _path, text, _train: net.y_embedder(text),
        "t_embedder": lambda net, _path, t, dtype: net.t_embedder(t, getattr(torch, dtype.removeprefix("torch."))),
        "fps_embedder": _sizes,
        "pos_embed": _position_table,
        "final_layer": _final_layer,
        "q_norm": _head_norm,
        "attn": _self_attention,
        "cross_attn": _cross_attention,
    }[path.rpartition(".")[2]]


def _context(network: STDiT3, frames: int, grid: tuple[int, int], scale: float = 1.0, **more: Any) -> BlockContext:
    """A context for tokens of this shape; parts a component does not read stay neutral."""
    settings = {
        "modulation": torch.zeros(1, 1, 6, network.config.hidden_size),
        "text": PackedText(torch.zeros(0, network.config.hidden_size), (0,)),
        "arithmetic": network.arithmetic,
        "attention": plain_attention,
        "grid": grid,
    }
    positions = network.positions(frames, grid, scale, torch.device("cpu"), torch.float32)
    return BlockContext(**{**settings, **positions, **more})


def _block(
    network: STDiT3,
    path: str,
    x: Tensor,
    y: Tensor,
    t: Tensor,
    lengths: list[int],
    x_mask: Tensor | None = None,
    t0: Tensor | None = None,
    *,
    T: int,
    S: int,
    H: int = 1,
    W: int | None = None,
    scale: float = 1.0,
    mask_index: list[int] = (),
    y_null: Tensor | None = None,
) -> Tensor:
    modulation = t.unflatten(-1, (6, -1))[:, None]
    if x_mask is not None:
        modulation = torch.where(x_mask[:, :, None, None], modulation, t0.unflatten(-1, (6, -1))[:, None])
    context = _context(
        network,
        T,
        (H, W or S),
        scale,
        modulation=modulation,
        text=PackedText(y[0], tuple(lengths)),
        null_text=None if y_null is None else PackedText(y_null[0], tuple(lengths)),
        given=tuple(mask_index),
    )
    return network.get_submodule(path)(x.unflatten(1, (T, S)), context).flatten(1, 2)


def _self_attention(
    network: STDiT3, path: str, x: Tensor, H: int = 1, W: int | None = None, scale: float = 1.0
) -> Tensor:
    attention = network.get_submodule(path)
    if x.ndim == 5:  # [B, H, W, T, C]
        context = _context(network, x.shape[3], tuple(x.shape[1:3]), scale)
        tokens = x.permute(0, 3, 1, 2, 4)
        return attention(tokens.flatten(2, 3), context).view(tokens.shape).permute(0, 2, 3, 1, 4)
    if path.startswith(PER_POSITION):  # [B·S, T, C]
        return attention(x[:, :, None], _context(network, x.shape[1], (1, 1)))[:, :, 0]
    return attention(x[:, None], _context(network, 1, (H, W or x.shape[1]), scale))[:, 0]


def _cross_attention(network: STDiT3, path: str, x: Tensor, cond: Tensor, lengths: list[int]) -> Tensor:
    context = _context(network, 1, (1, x.shape[1]), text=PackedText(cond[0], tuple(lengths)))
    return network.get_submodule(path)(x[:, None], context)[:, 0]


def _head_norm(network: STDiT3, path: str, q: Tensor) -> Tensor:
    norm = network.get_submodule(path)
    return Arithmetic().norm_rotary(q, q, norm, norm, None)[0]


def _final_layer(
    network: STDiT3,
    _path: str,
    x: Tensor,
    t: Tensor,
    x_mask: Tensor | None = None,
    t0: Tensor | None = None,
    T: int = 1,
    S: int | None = None,
) -> Tensor:
    tokens = x.unflatten(1, (T, S or x.shape[1]))
    return network.final_layer(tokens, t, network.arithmetic, x_mask, t0).flatten(1, 2)


def _position_table(
    network: STDiT3, _path: str, like: Tensor, rows: int, columns: int, base_size: int | None, scale: float
) -> Tensor:
    return network.pos_embed(rows, columns, scale, base_size, precision=like.dtype).to(like.dtype)


def _sizes(network: STDiT3, _path: str, sizes: Tensor, rows: int) -> Tensor:
    """Several sizes per row are embedded one by one and put side by side."""
    sizes = tile_rows(sizes.unflatten(0, (-1, 1)) if sizes.ndim == 1 else sizes, rows)
    return network.fps_embedder(sizes.flatten(), sizes.dtype).view(rows, -1)


def _encode_text(network: STDiT3, _path: str, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    text = pack(kept_tokens(y, mask))
    return network.y_embedder(text.tokens)[None], torch.tensor(text.lengths)


def _rotate_along(network: STDiT3, _path: str, q: Tensor, scale: float = 1.0) -> Tensor:
    rotary = network.rope.along(q.shape[2], device=q.device, scale=scale)
    return rotary.rotate(q.transpose(1, 2)).transpose(1, 2)


def _rotate_over_grid(network: STDiT3, _path: str, q: Tensor, rows: int, columns: int, scale: float) -> Tensor:
    """Recorded tokens are ordered row, column, frame; ours frame, row, column."""
    frames = q.shape[2] // (rows * columns)
    rotary = network.rope.over_grid(frames, rows, columns, scale=scale, device=q.device)
    ours = q.unflatten(2, (rows, columns, frames)).movedim(4, 2).flatten(2, 4)
    turned = rotary.rotate(ours.transpose(1, 2)).transpose(1, 2)
    return turned.unflatten(2, (frames, rows, columns)).movedim(2, 4).flatten(2, 4)
