"""STDiT3 of Open-Sora 1.2 and 1.3: whole forward passes and single components.

Float32 cases run the default arithmetic, bfloat16 cases the one that rounds as upstream does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from golden.runner import Case, fill_by_rule, runs_cases
from opensora.opensora_models.stdit3.blocks import Block
from opensora.opensora_models.stdit3.conditions import BlockContext, GivenFrames, PackedText, kept_tokens, pack
from opensora.opensora_models.stdit3.config import STDiT3Config
from opensora.opensora_models.stdit3.keys import to_checkpoint_key
from opensora.opensora_models.stdit3.network import STDiT3
from opensora.opensora_models.transformer.arithmetic import Arithmetic, UpstreamArithmetic
from opensora.opensora_models.transformer.attention import plain_attention
from opensora.opensora_models.transformer.positions import sinusoid
from opensora.opensora_models.transformer.rows import tile_rows

FAMILIES = ("stdit3-v1.2", "stdit3-v1.3")
TRACE = "trace."
PER_POSITION = "temporal_blocks."


def config_of(case: Case) -> STDiT3Config:
    """The network's numbers; settings of the original that do not matter for inference are left out."""
    known = STDiT3Config.__dataclass_fields__
    settings = {key: tuple(v) if isinstance(v, list) else v for key, v in case.config.items() if key in known}
    return STDiT3Config(version=case.family.removeprefix("stdit3-v"), **settings)


def network_of(case: Case) -> STDiT3:
    """The case's network, filled by rule, in the case's dtype."""
    if case.config.get("skip_y_embedder"):
        raise ValueError("skip_y_embedder takes projected text, which the network does not")
    network = STDiT3(config_of(case))
    fill_by_rule(network, case, to_checkpoint_key)
    if case.dtype != torch.float32:
        network = network.to(case.dtype)
        network.arithmetic = UpstreamArithmetic()
    return network.eval()


@runs_cases(lambda case: case.kind == "model_forward", *FAMILIES)
def forward(case: Case) -> dict[str, Tensor]:
    """``out.y`` and every recorded value of a submodule."""
    network = network_of(case)
    traced = {key.removeprefix(TRACE): key for key in case.expected if key.startswith(TRACE)}
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        return lambda _module, _inputs, out: seen.__setitem__(path, out.clone())

    for path in traced:
        try:
            network.get_submodule(path).register_forward_hook(keep(path))
        except AttributeError:
            raise ValueError(f"the network has no {path}, whose value the case records") from None
    out = {"y": network(**arguments(case)).float()}
    for path in traced:
        if path.startswith("y_embedder"):
            # Recorded at its last call and before tokens are picked; ours projects the picked ones only.
            null = case.input("y_null")
            seen[path] = network.y_embedder((case.need("y") if null is None else null).to(case.dtype))
    return out | {key: _in_recorded_layout(case, path, seen[path]) for path, key in traced.items()}


def arguments(case: Case, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """A case's inputs as our forward takes them."""
    x, mask = case.need("x").to(dtype or case.dtype), case.input("mask")
    given = None
    indices = _given_indices(case)
    if indices is not None:
        null = case.input("y_null")
        given = GivenFrames(
            case.need("cond"), case.need("cond_mask"), indices, None if null is None else kept_tokens(null, mask)
        )
    return {
        "x": x,
        "timestep": case.need("timestep"),
        "text": kept_tokens(case.need("y"), mask),
        "fps": case.need("fps"),
        "height": case.need("height")[0].item(),
        "width": case.need("width")[0].item(),
        "frame_mask": case.input("x_mask"),
        "given": given,
    }


def _given_indices(case: Case) -> list[int] | None:
    return (case.info.get("args") or {}).get("mask_index")


def _in_recorded_layout(case: Case, path: str, value: Tensor) -> Tensor:
    """Tokens are [B, T, S, C] here; the original flattens them in one way or another."""
    want = case.expected[TRACE + path]
    given = _given_indices(case)
    if path.endswith(".cross_attn") and given:  # recorded at its last call: the frames that are not given
        value = value[:, [frame for frame in range(value.shape[1]) if frame not in given]]
    elif ".attn" in path and path.startswith("spatial_blocks."):
        value = _heads_first(path, value.flatten(0, value.ndim - want.ndim))
    elif path.endswith(".attn") and case.config.get("kernel_size") is not None:
        rows, columns = want.shape[1:3]
        return value.transpose(1, 2).unflatten(1, (rows, columns))
    elif ".attn" in path and case.config.get("kernel_size") is None:
        value = _heads_first(path, value.transpose(1, 2).flatten(0, 1))
    # What remains is [B, tokens, C] or one row per token, in the order of the original.
    return value.reshape(want.shape) if value.numel() == want.numel() else value


def _heads_first(path: str, value: Tensor) -> Tensor:
    return value.transpose(1, 2) if path.endswith("_norm") else value


@runs_cases(lambda case: case.kind == "component", *FAMILIES)
def component(case: Case) -> dict[str, Tensor]:
    """The calls of a component case, one after another."""
    network = network_of(case)
    results: dict[str, Tensor] = {}
    for call in case.info["calls"]:
        args = [_value(case, arg) for arg in call.get("args", [])]
        kwargs = {key: _value(case, arg) for key, arg in call.get("kwargs", {}).items()}
        out = _runner(call, network)(network, call["path"], *args, **kwargs)
        names = call["out"] if isinstance(call["out"], list) else [call["out"]]
        results |= zip(names, out if isinstance(call["out"], list) else [out], strict=True)
    return results


def _value(case: Case, argument: Any) -> Any:
    return case.tensors[argument] if isinstance(argument, str) and argument.startswith("in.") else argument


def _runner(call: Mapping[str, Any], network: STDiT3) -> Callable[..., Any]:
    """How to call what the case calls: its method, its kind of module, or simply the submodule of that name."""
    method, path = call.get("method"), call["path"]
    if method is not None:
        return _METHODS[method]
    if isinstance(network.get_submodule(path), Block):
        return _block
    return _MODULES.get(path.rpartition(".")[2], lambda net, path, *args: net.get_submodule(path)(*args))


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
    mask: list[int],
    x_mask: Tensor | None = None,
    t0: Tensor | None = None,
    T: int = 1,
    S: int | None = None,
    H: int | None = None,
    W: int | None = None,
    scale: float | None = None,
    mask_index: list[int] | None = None,
    y_null: Tensor | None = None,
) -> Tensor:
    """``mask`` is the number of text tokens of each row, as in the original's blocks."""
    size = S or x.shape[1] // T
    modulation = t.unflatten(-1, (6, -1))[:, None]
    if x_mask is not None:
        modulation = torch.where(x_mask[:, :, None, None], modulation, t0.unflatten(-1, (6, -1))[:, None])
    context = _context(
        network,
        T,
        (H or 1, W or size),
        scale or 1.0,
        modulation=modulation,
        text=PackedText(y[0], tuple(mask)),
        null_text=None if y_null is None else PackedText(y_null[0], tuple(mask)),
        given=tuple(mask_index or ()),
    )
    return network.get_submodule(path)(x.unflatten(1, (T, size)), context).flatten(1, 2)


def _self_attention(
    network: STDiT3, path: str, x: Tensor, scale: float | None = None, H: int | None = None, W: int | None = None
) -> Tensor:
    scale = scale or 1.0
    attention = network.get_submodule(path)
    if x.ndim == 5:  # [B, H, W, T, C]
        context = _context(network, x.shape[3], tuple(x.shape[1:3]), scale)
        tokens = x.permute(0, 3, 1, 2, 4)
        return attention(tokens.flatten(2, 3), context).view(tokens.shape).permute(0, 2, 3, 1, 4)
    if path.startswith(PER_POSITION):  # [B·S, T, C]
        return attention(x[:, :, None], _context(network, x.shape[1], (1, 1)))[:, :, 0]
    return attention(x[:, None], _context(network, 1, (H or 1, W or x.shape[1]), scale))[:, 0]


def _cross_attention(network: STDiT3, path: str, x: Tensor, cond: Tensor, mask: list[int] | None = None) -> Tensor:
    """Rows of ``mask`` tokens each; without it every row has its own row of ``cond`` (1.3), or they share all (1.2)."""
    if mask is None:
        shared = network.config.version == "1.2"
        mask = [cond.shape[:2].numel()] if shared else [cond.shape[1]] * cond.shape[0]
    rows = x.reshape(len(mask), 1, -1, x.shape[-1])
    context = _context(network, 1, (1, rows.shape[2]), text=PackedText(cond.flatten(0, 1), tuple(mask)))
    return network.get_submodule(path)(rows, context).view(x.shape)


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
    network: STDiT3, _path: str, x: Tensor, h: int, w: int, scale: float | None = 1.0, base_size: int | None = None
) -> Tensor:
    return network.pos_embed(h, w, scale or 1.0, base_size, precision=x.dtype).to(x.dtype)


def _sizes(network: STDiT3, _path: str, s: Tensor, bs: int) -> Tensor:
    """Several sizes per row are embedded one by one and put side by side."""
    sizes = tile_rows(s.unflatten(0, (-1, 1)) if s.ndim == 1 else s, bs)
    return network.fps_embedder(sizes.flatten(), sizes.dtype).view(bs, -1)


def _time(network: STDiT3, _path: str, t: Tensor, dtype: str) -> Tensor:
    return network.t_embedder(t, getattr(torch, dtype.removeprefix("torch.")))


def _encode_text(network: STDiT3, _path: str, y: Tensor, mask: Tensor | None = None) -> tuple[Tensor, Tensor]:
    text = pack(kept_tokens(y, mask))
    return network.y_embedder(text.tokens)[None], torch.tensor(text.lengths)


def _rotate_along(network: STDiT3, _path: str, q: Tensor, scale: float | None = None) -> Tensor:
    rotary = network.rope.along(q.shape[2], device=q.device, scale=scale or 1.0)
    return rotary.rotate(q.transpose(1, 2)).transpose(1, 2)


def _rotate_over_grid(
    network: STDiT3, _path: str, q: Tensor, rows: int, columns: int, scale: float | None = None
) -> Tensor:
    """Recorded tokens are ordered row, column, frame; ours frame, row, column."""
    frames = q.shape[2] // (rows * columns)
    rotary = network.rope.over_grid(frames, rows, columns, scale=scale or 1.0, device=q.device)
    ours = q.unflatten(2, (rows, columns, frames)).movedim(4, 2).flatten(2, 4)
    turned = rotary.rotate(ours.transpose(1, 2)).transpose(1, 2)
    return turned.unflatten(2, (frames, rows, columns)).movedim(2, 4).flatten(2, 4)


_METHODS: dict[str, Callable[..., Any]] = {
    "timestep_embedding": lambda _network, _path, t, width: sinusoid(t, width),
    "rotate_queries_or_keys": _rotate_along,
    "rotate_3d": _rotate_over_grid,
    "encode_text": _encode_text,
}
_MODULES: dict[str, Callable[..., Any]] = {
    **dict.fromkeys(
        ("x_embedder", "x_embedder_cond", "x_embedder_cond_mask"),
        lambda network, path, x: network.get_submodule(path)(x).flatten(1, 2),
    ),
    "y_embedder": lambda network, _path, text, *_training: network.y_embedder(text),
    "t_embedder": _time,
    "fps_embedder": _sizes,
    "pos_embed": _position_table,
    "final_layer": _final_layer,
    "q_norm": _head_norm,
    "k_norm": _head_norm,
    "attn": _self_attention,
    "cross_attn": _cross_attention,
}
