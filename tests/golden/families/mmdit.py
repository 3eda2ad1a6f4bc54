"""MMDiT of Open-Sora 2.0: whole forward passes, rotary tables and the embedding of times."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from golden.runner import Case, fill_by_rule, runs_cases
from opensora.opensora_models.mmdit.config import TIME_WIDTH, MMDiTConfig
from opensora.opensora_models.mmdit.keys import to_checkpoint_key
from opensora.opensora_models.mmdit.modulation import scaled_time
from opensora.opensora_models.mmdit.network import MMDiT
from opensora.opensora_models.mmdit.positions import rotary
from opensora.opensora_models.transformer.positions import sinusoid

FAMILY = "v2-mmdit"


def config_of(settings: dict[str, Any], *, round_time: bool = False) -> MMDiTConfig:
    """The network's numbers from upstream's settings. Float32 cases know no rounding of the time."""
    known = MMDiTConfig.__dataclass_fields__
    values = {
        key: tuple(value) if isinstance(value, list) else value for key, value in settings.items() if key in known
    }
    layout = "half-split" if settings["use_liger_rope"] else "interleaved"
    return MMDiTConfig(**values, rotation=layout, round_time=round_time)


def network_of(case: Case, settings: dict[str, Any]) -> MMDiT:
    """The case's network, filled by rule, in the case's dtype."""
    dtype = getattr(torch, settings.get("dtype", "float32"))
    network = MMDiT(config_of(settings, round_time=dtype == torch.bfloat16))
    fill_by_rule(network, case, to_checkpoint_key)
    return network.to(dtype).eval()


@runs_cases(lambda case: case.family == FAMILY and case.input("img") is not None)
def forward(case: Case) -> dict[str, Tensor]:
    """The velocity and the recorded values on the way."""
    network = network_of(case, case.config)
    img, txt, cond = case.input("img"), case.input("txt"), case.input("cond")
    seen: dict[str, Any] = {}
    for name, blocks in (("double0", network.double_blocks), ("single0", network.single_blocks)):
        if len(blocks):
            blocks[0].register_forward_hook(lambda _module, _inputs, out, name=name: seen.__setitem__(name, out))
    vector = network.vector(
        case.input("timesteps"), case.input("y_vec"), case.input("guidance"), rows=img.shape[0], dtype=img.dtype
    )
    ids = torch.cat([case.input("txt_ids"), case.input("img_ids")], dim=1).float()
    out = {
        "img_embed": network.embed(img, cond),
        "txt_embed": network.txt_in(txt),
        "vec": vector,
        "velocity": network.velocity(img, txt, ids, network.modulations(vector), reference=cond),
    }
    if "double0" in seen:
        out["double0_img"], out["double0_txt"] = seen["double0"]
    return out | ({"single0": seen["single0"]} if "single0" in seen else {})


@runs_cases(lambda case: case.family == FAMILY and "axes_dim" in case.config and case.input("q") is not None)
def rotation(case: Case) -> dict[str, Tensor]:
    """Rotary tables and rotated vectors [B, heads, L, d] in both layouts."""
    heads = case.input("q").shape[1]
    settings = {
        "axes_dim": tuple(case.config["axes_dim"]),
        "theta": case.config["theta"],
        "hidden_size": heads * case.config["head_dim"],
        "num_heads": heads,
    }
    out: dict[str, Tensor] = {}
    for layout, name in (("half-split", "halfsplit"), ("interleaved", "interleaved")):
        table = rotary(case.input("ids"), MMDiTConfig(**settings, rotation=layout))
        for vectors in ("q", "k"):
            turned = table.rotate(case.input(vectors).transpose(1, 2)).transpose(1, 2)
            out[f"{vectors}_{name}"] = turned
        cos, sin = (values.squeeze(-2) for values in (table.cos, table.sin))
        if layout == "half-split":
            out["halfsplit_cos"], out["halfsplit_sin"] = (torch.cat([values, values], dim=-1) for values in (cos, sin))
        else:
            out["interleaved_matrix"] = torch.stack([cos, -sin, sin, cos], dim=-1).unflatten(-1, (2, 2))[:, None]
    return out


@runs_cases(lambda case: case.family == FAMILY and "time_factor" in case.config)
def time_embedding(case: Case) -> dict[str, Tensor]:
    """Sinusoids of flow times, exact and rounded as in training."""
    times, width = case.input("t"), case.config.get("dim", TIME_WIDTH)
    return {
        "emb256": sinusoid(scaled_time(times, False), width),
        "emb256_bf16": sinusoid(scaled_time(times, True), width).bfloat16().float(),
        "t_bf16_times_1000": scaled_time(times, True),
    }
